"""Annotated datasets for people to look at: a page, a document in a notebook, a document in a terminal."""

from pipeline.reporting.page import write_report
from pipeline.reporting.view import DocumentView, show

__all__ = ["DocumentView", "show", "write_report"]
