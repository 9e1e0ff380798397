"""From documents to annotated shards: everything that touches text, tokens and files, without torch or Ray."""
