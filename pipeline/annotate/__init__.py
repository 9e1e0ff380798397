"""The main command: it reads documents and writes an annotated dataset.

`python -m pipeline.annotate --help` lists its settings.
"""
