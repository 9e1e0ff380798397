"""What an interrupted training goes on from: weights, optimizer and place, in one file that is no pickle.

The order of the data and what dropout drops follow from the seed and the step, so that nothing else is kept.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

STATE_FILE, SETTINGS_FILE = "unfinished.safetensors", "unfinished.json"


@dataclass(frozen=True)
class Place:
    """How far a training is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def begin(output: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder for a training, or takes it up again where the same training was interrupted.

    Raises:
        ValueError: if it holds anything else.
    """
    wanted = json.loads(json.dumps(settings, default=str))
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        file = output / SETTINGS_FILE
        if not file.is_file():
            raise ValueError(f"--output {output} is there already; delete it or choose another folder")
        there = json.loads(file.read_text())
        differing = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
        if differing:
            shown = "; ".join(f"{name} {there.get(name)} there, {wanted.get(name)} now" for name in sorted(differing))
            raise ValueError(f"--output {output} holds another unfinished training ({shown}); choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    (output / SETTINGS_FILE).write_text(json.dumps(wanted, indent=2))


def finish(output: Path) -> None:
    """Removes what was kept for an interruption; the finished model must be in place."""
    for name in (STATE_FILE, SETTINGS_FILE):
        (output / name).unlink(missing_ok=True)


def save(output: Path, model: nn.Module, optimizer: Optimizer, place: Place) -> None:
    """Keeps the training as it is now, in place of what was kept before."""
    tensors = {f"model {name}": tensor for name, tensor in _weights(model)}
    for name, parameter in model.named_parameters():
        tensors |= {f"optimizer {key} {name}": value for key, value in optimizer.state[parameter].items()}
    unfinished = output / f".{STATE_FILE}"
    copies = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(copies, unfinished, metadata={"place": json.dumps(asdict(place))})
    unfinished.replace(output / STATE_FILE)


def load(output: Path, model: nn.Module, optimizer: Optimizer) -> Place:
    """Puts weights and optimizer back to where they were; the very beginning where nothing was kept."""
    if not (output / STATE_FILE).is_file():
        return Place()
    with safe_open(output / STATE_FILE, framework="pt") as stored, torch.no_grad():
        for name, tensor in _weights(model):
            tensor.copy_(stored.get_tensor(f"model {name}"))
        for name, parameter in model.named_parameters():
            kept = {key.split(" ")[1]: key for key in stored.keys() if _is_optimizers(key, name)}  # noqa: SIM118 (no dict)
            optimizer.state[parameter] = {
                part: _beside(parameter, part, stored.get_tensor(key)) for part, key in kept.items()
            }
        return Place(**json.loads(stored.metadata()["place"]))


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, tied ones once, and the buffers that belong to the model's state."""
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in model.state_dict())


def _is_optimizers(key: str, name: str) -> bool:
    return key.startswith("optimizer ") and key.endswith(f" {name}")


def _beside(parameter: Tensor, part: str, value: Tensor) -> Tensor:
    """A tensor of the optimizer where it keeps it: AdamW's count of steps stays on the CPU.

    In memory of its own: kernels round otherwise at addresses as odd as those within a file.
    """
    return value.clone() if part == "step" else value.to(parameter.device, copy=True)
