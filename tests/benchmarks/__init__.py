"""What measures speed and memory: `make bench`. Nothing here is collected as a test but `test_quick.py`."""
