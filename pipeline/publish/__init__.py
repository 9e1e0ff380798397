"""Publishing of annotated datasets on the Hugging Face Hub: shards, ledger and card."""
