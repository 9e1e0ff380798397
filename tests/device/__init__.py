"""Measurements of this project on a GPU, which take minutes: `python -m tests.device --minutes 8`.

Labels in bfloat16 are compared with labels in float32. The speed of each label method is compared with the device's
speed of matrix products, with the paper's procedure, and with other libraries. The training loop is compared with bare
training steps. The speed of a worker's CPU work (all except labelling) is compared with the device's speed.
Models have random weights and real sizes, and documents are as long as those of FineWeb.

The measurements need torch, transformers, accelerate, tokenizers, pyarrow and huggingface-hub. The section
`checkpoints`, which trains models, also needs cyclopts. Neither Ray, nor `datasets`, nor any data file is needed.
pytest collects only `test_device.py`.
"""
