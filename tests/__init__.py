"""Tests mirror the code: tests/data for pipeline/data and so on."""
