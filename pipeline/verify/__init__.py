"""Checks an annotated dataset: its ledger, every shard, and a sample that is labelled again; and repairs it."""
