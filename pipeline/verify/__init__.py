"""Checks and repair of annotated datasets: the ledger, every shard, and a sample of labels against the model."""
