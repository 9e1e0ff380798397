"""Measurements of this project on a GPU, which take minutes: `python -m tests.device --minutes 8`.

Labels in bfloat16 are compared with labels in float32. The speed of a label method is compared with the device's
matrix rate, with the published procedure and with that of other libraries. Training is compared with bare steps, and
a worker's host path with the speed of the device. Models have random weights and real sizes, and documents are as long
as those of FineWeb. The measurements need torch, transformers, accelerate, tokenizers, pyarrow and huggingface-hub, and
for the checkpoints cyclopts, but neither Ray nor datasets nor any file. Only `test_device.py` is collected as a test.
"""
