"""Experiments that the measuring jobs run: label methods on known sources, objectives on few documents, and figures."""
