"""Publishes annotated datasets on the Hugging Face Hub: shards, ledger, and the card that describes them."""
