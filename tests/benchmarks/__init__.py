"""Benchmarks of speed and memory: `make bench`. Only `test_quick.py` is collected as a test."""
