"""Checks of annotated datasets (the ledger, every shard, a sample of labels), and repair of damaged datasets."""
