"""Documents in, annotated shards out: everything that touches text, tokens and files. No torch, no ray."""
