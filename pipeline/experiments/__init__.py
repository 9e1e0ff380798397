"""Experiments behind the measuring jobs: label methods on known sources, objectives on few documents, figures."""
