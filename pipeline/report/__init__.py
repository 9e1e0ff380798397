"""Annotated datasets for people to look at: a page, a document in a notebook, a document in a terminal."""
