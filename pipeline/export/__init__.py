"""Annotated datasets as the token files of other trainers."""
