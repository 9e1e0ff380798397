"""One training loop, its batches and its objectives. It is handed models and batches; it reads no files."""
