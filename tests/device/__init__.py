"""What a GPU does with this project, measured in minutes: `python -m tests.device --minutes 8`.

Labels are held against float32, label methods against the card's matrix rate, the published procedure and other
people's way, training against bare steps, and a worker's host path against what the device takes. Weights are random
and of real shapes, lengths those of FineWeb documents. Nothing here needs Ray, datasets or a file: torch, transformers,
accelerate, tokenizers, pyarrow and huggingface-hub will do, and for the checkpoints cyclopts. `test_device.py` alone is
collected as a test.
"""
