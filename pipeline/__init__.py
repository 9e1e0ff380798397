"""Per-token entropy labels: documents -> windows -> label method -> annotated shards -> training with the labels."""
