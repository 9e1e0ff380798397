"""The main command: documents in, an annotated dataset out. `python -m pipeline.annotate --help` lists its settings."""
