"""Publishing of annotated datasets on the Hugging Face Hub: shards, a receipt for each shard, and the dataset card."""
