"""Publishing of annotated datasets on the Hugging Face Hub: shards, their ledger of receipts, and the dataset card."""
