"""Tests of README.md and docs/: their commands and snippets work, and their paths, flags and links exist."""
