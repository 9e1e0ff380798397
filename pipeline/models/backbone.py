"""Backbones: pretrained causal language models around which a checkpoint of this project is built.

A backbone is frozen, adapted by LoRA (arXiv 2106.09685), or trained as a whole. A checkpoint holds the weights that
were trained, and a record that names the backbone. The name is a repository with a commit, or the path of a folder or a
file. If the record says `held`, the checkpoint also holds a copy of the backbone, in a folder that is named after the
backbone's role.

B rows, T tokens, D width.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models.checkpoint import TOKENIZER_FILES, Checkpoint
from pipeline.models.checkpoint_files import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, weight_files
from pipeline.models.sizes import Tuning
from schemas.decoding import decoded

Role = Literal["decoder", "encoder"]


@dataclass(frozen=True)
class Backbone:
    """Record of a backbone in a checkpoint's configuration."""

    name: str
    """USER/NAME@COMMIT, the path of a folder or GGUF file, or smollm2; see `Checkpoint.find`."""
    sha256: str
    """Digest of the backbone's configuration and weights."""
    held: bool = False
    """True if the checkpoint holds a copy of the backbone."""

    @classmethod
    def named(cls, name: str, *, held: bool = False) -> "Backbone":
        """Return the record of a causal language model.

        Raises:
            ValueError: if there is no such model, or it is not a causal language model.
        """
        checkpoint = Checkpoint.find(name)
        checkpoint.require_kind("causal")
        if checkpoint.repository is not None:
            name = checkpoint.repository
        elif Path(name).exists():
            name = str(Path(name).resolve())
        return cls(name, checkpoint.sha256, held)

    @classmethod
    def from_values(cls, values: object) -> "Backbone":
        """Return the record from the values of its JSON object, or raise ValueError."""
        return decoded(cls, values, "its backbone")

    def checkpoint(self, folder: Path, role: Role) -> Checkpoint:
        """Return the backbone's checkpoint, for a model whose own checkpoint is in `folder`.

        Raises:
            ValueError: if the backbone cannot be found, or is not the one with which the checkpoint was trained.
        """
        found = Checkpoint(folder / role) if self.held else Checkpoint.find(self.name)
        if found.repository != self.name and found.sha256 != self.sha256:  # a commit's content cannot change
            raise ValueError(
                f"{folder} was trained around {self.name}, whose weights or {CONFIG_FILE} have changed since; name a "
                "checkpoint that was trained around the model that is there"
            )
        return found

    def hold(self, folder: Path, role: Role) -> None:
        """Copy the backbone's configuration, weights and tokenizer into the checkpoint in `folder`."""
        source = Checkpoint.find(self.name).folder
        (folder / role).mkdir(parents=True, exist_ok=True)
        extra = [source / name for name in (CONFIG_FILE, INDEX_FILE, *TOKENIZER_FILES) if (source / name).is_file()]
        for file in (*weight_files(source), *extra):
            shutil.copyfile(file, folder / role / file.name)


def hold_trained(backbone: Backbone, model: PreTrainedModel, folder: Path, role: Role) -> Backbone:
    """Write a backbone to the checkpoint in `folder`, since all its weights were trained. Return its new record."""
    model.save_pretrained(folder / role)
    return replace(backbone, sha256=Checkpoint(folder / role).sha256, held=True)


def record(backbone: Backbone | None) -> dict[str, Any] | None:
    """Return a backbone's record in the form that a configuration stores."""
    return None if backbone is None else asdict(backbone)


def require_tuning(tuning: str) -> None:
    """Raise if a backbone cannot be tuned in this way here.

    Raises:
        ValueError: if the tuning is unknown, or it is LoRA and the package peft is missing.
    """
    if tuning not in get_args(Tuning):
        raise ValueError(
            f"tuning {tuning!r} of the language model is unknown; choose from {', '.join(get_args(Tuning))}"
        )
    if tuning == "lora" and find_spec("peft") is None:
        raise ValueError("LoRA needs the package peft; install it with pip install 'token-entropy[lora]'")


def tune(model: nn.Module, stack: PreTrainedModel, tuning: Tuning, lora_rank: int) -> None:
    """Select the weights of a model that training changes.

    With `frozen`, no weight is trained. With `lora`, LoRA updates are added to all linear layers of `stack`, which is a
    part of the model, and only these updates are trained. With `whole`, all weights are trained.
    """
    require_tuning(tuning)
    model.requires_grad_(tuning == "whole")
    if tuning != "lora":
        return
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, module in stack.named_modules() if _is_linear(module)]
    inject_adapter_in_model(LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=names), stack)


def tuned(tuning: Tuning, lora_rank: int) -> str:
    """Return, in words, how a backbone was trained."""
    return f"lora, rank {lora_rank}" if tuning == "lora" else tuning


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's layers


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model that are trained, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_weights(weights: dict[str, Tensor], folder: Path) -> None:
    """Write weights to the checkpoint in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(stored, folder / WEIGHTS_FILE, metadata={"format": "pt"})


@torch.no_grad()
def load_weights(weights: dict[str, Tensor], folder: Path) -> None:
    """Copy the weights that `save_weights` wrote to a checkpoint into the weights of a model.

    Raises:
        ValueError: if the checkpoint holds other weights, or weights of other shapes.
    """
    stored = load_file(weight_files(folder)[0])
    if odd := stored.keys() ^ weights.keys():
        raise ValueError(f"{folder} lacks or has too many weights: {min(odd)}; fetch or save it again")
    for name, weight in weights.items():
        if stored[name].shape != weight.shape:
            raise ValueError(f"the weights of {folder} do not fit its {CONFIG_FILE}: {name}; fetch or save both again")
        weight.copy_(stored[name])


class FrozenStates:
    """Cache of the states that a frozen stack of layers computes for rows of tokens.

    States of up to `tokens` positions are kept. The states of any further rows are computed each time.
    """

    def __init__(self, states: Callable[[Tensor], Tensor], tokens: int) -> None:
        self.states = states
        self.room = tokens
        self.kept: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def __call__(self, input_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the states [B, T + 1, D] of a start token and of right-padded rows; zeros after a row's last token."""
        keys = [_key(ids_T[:length]) for ids_T, length in zip(input_ids_BT, lengths_B.tolist(), strict=True)]
        missing = [row for row, key in enumerate(keys) if key not in self.kept]
        computed = dict(zip(missing, self._computed(input_ids_BT[missing], lengths_B[missing]), strict=True))
        rows = [computed[row] if row in computed else self.kept[key] for row, key in enumerate(keys)]
        for row in missing:
            self._keep(keys[row], computed[row])
        width = int(rows[0].shape[-1])
        states_BSD = rows[0].new_zeros(len(rows), input_ids_BT.shape[1] + 1, width, device=input_ids_BT.device)
        for row, states_SD in enumerate(rows):
            states_BSD[row, : len(states_SD)] = states_SD
        return states_BSD

    def _computed(self, input_ids_BT: Tensor, lengths_B: Tensor) -> Iterator[Tensor]:
        if not len(input_ids_BT):
            return iter(())
        states_BSD = self.states(input_ids_BT[:, : int(lengths_B.max())])
        return (states_SD[: length + 1] for states_SD, length in zip(states_BSD, lengths_B.tolist(), strict=True))

    def _keep(self, key: bytes, states_SD: Tensor) -> None:
        if len(states_SD) <= self.room and key not in self.kept:
            self.room -= len(states_SD)
            self.kept[key] = states_SD.cpu().clone()


def _key(ids_T: Tensor) -> bytes:
    return bytes(ids_T.cpu().numpy().tobytes())
