"""The checks of pipeline.verify: ledger, shards, a sample labelled anew; and the repair."""
