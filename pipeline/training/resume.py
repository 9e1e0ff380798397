"""SIGTERM, as schedulers and clusters send it before they kill: the training ends between two steps."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from pipeline.models.model_card import CARD_FILE
from pipeline.training.distributed import full_tensor, this_process

EXIT_CODE = 128 + signal.SIGTERM
"""Of a command that a signal ended, as shells report it."""


class StoppedError(SystemExit):
    """Ends the command; the state is saved."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come since. What handled it before is put back.

    Only a process's main thread can handle signals: elsewhere, as in Ray's workers, the answer is always no.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def handle(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


SETTINGS_FILE = "unfinished.json"
STATES = "unfinished-*.safetensors"
STATE = re.compile(r"unfinished-\d{1,18}\.safetensors")


@dataclass(frozen=True)
class TrainingState:
    """How far a training is, and the sum of its losses since the last evaluation."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: float = 0.0
    since: int = 0
    batches: dict[str, Any] = field(default_factory=dict)
    """State of the batches, where they have one."""

    def after(self, loss: float, tokens: int, seconds: float) -> Self:
        """One step later; `seconds` are those of the whole training."""
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + tokens,
            seconds=seconds,
            losses=self.losses + loss,
            since=self.since + 1,
        )

    def afresh(self) -> Self:
        """After an evaluation."""
        return replace(self, losses=0.0, since=0)


def begin(output: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder for a training, or takes it up again where the same training was interrupted.

    A folder with nothing but settings is of a training that ended before its first step, by a mistake: it is free.

    Raises:
        ValueError: if it holds anything else.
    """
    wanted = json.loads(json.dumps(settings, default=str))
    if output.is_file() or (output.is_dir() and any(file.name != SETTINGS_FILE for file in output.iterdir())):
        there = _settings(output)
        differing = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
        if differing:
            shown = "; ".join(f"{name} {there.get(name)} there, {wanted.get(name)} now" for name in sorted(differing))
            raise ValueError(f"--output {output} holds another unfinished training ({shown}); choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    write(output / SETTINGS_FILE, json.dumps(wanted, indent=2))


def begin_on_main(output: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder, or takes it up again; every process goes on when that is done.

    Args:
        settings: all that the model depends on: not where, nor in how many processes, it is trained.

    Raises:
        ValueError: as begin does.
    """
    if this_process().is_main_process:
        begin(output, settings)
    this_process().wait_for_everyone()


def finish(output: Path) -> None:
    """Removes what was kept for an interruption; the finished model must be in place."""
    for file in (*states(output), output / SETTINGS_FILE):
        file.unlink(missing_ok=True)


def is_finished(output: Path) -> bool:
    """Whether the folder holds a model whose training came to its end: its card is written last, then states go."""
    return (output / CARD_FILE).is_file() and not states(output)


def states(output: Path) -> list[Path]:
    """Files of states, the oldest first."""
    found = {file: STATE.fullmatch(file.name) for file in output.glob(STATES)}
    return sorted((file for file, step in found.items() if step), key=lambda file: int(file.stem.rpartition("-")[2]))


def save(
    output: Path, model: nn.Module, optimizer: Optimizer, place: TrainingState, *, keep: int = 1, writes: bool = True
) -> None:
    """Keeps the training as it is now, and of older states so many that there are `keep`.

    Every process takes part, since each may hold a shard of the state; one of them writes.
    """
    tensors = {}
    for name, tensor in _tensors(model, optimizer):
        complete = full_tensor(tensor.detach())
        if writes:
            tensors[name] = complete.cpu().contiguous()
    if not writes:
        return
    file = output / f"unfinished-{place.step}.safetensors"
    unfinished = file.with_name(f".{file.name}")
    save_file(tensors, unfinished, metadata={"place": json.dumps(asdict(place))})
    _settle(unfinished, file)
    for old in states(output)[:-keep]:
        old.unlink()


def load(output: Path, model: nn.Module, optimizer: Optimizer) -> TrainingState:
    """Puts weights and optimizer back to where they were at the newest state that can be read.

    The very beginning where none was kept.

    Raises:
        ValueError: if no state that was kept can be read.
    """
    found = states(output)
    for file in reversed(found):
        try:
            with safe_open(file, framework="pt") as stored, torch.no_grad():
                return _restored(stored, model, optimizer)
        except SafetensorError:
            continue
        except (RuntimeError, KeyError, TypeError, ValueError) as error:  # a state, but of something else
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{file} holds no state of this training ({reason}); delete the folder to begin again"
            ) from error
    if found:
        raise ValueError(f"none of the states in {output} can be read; delete the folder to begin again")
    return TrainingState()


def write(file: Path, text: str) -> None:
    """Puts a text in a file's place, at once."""
    unfinished = file.with_name(f".{file.name}")
    unfinished.write_text(text, encoding="utf-8")
    _settle(unfinished, file)


def _settings(output: Path) -> dict[str, Any]:
    """Of the unfinished training in a folder."""
    file = output / SETTINGS_FILE
    if not file.is_file():
        raise ValueError(f"--output {output} is there already; delete it or choose another folder")
    try:
        there: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete {output} or choose another folder") from error
    if not isinstance(there, dict):
        raise ValueError(f"{file} is damaged (no JSON object); delete {output} or choose another folder")
    return there


def _restored(stored: Any, model: nn.Module, optimizer: Optimizer) -> TrainingState:
    for name, tensor in _weights(model):
        tensor.copy_(_like(tensor, stored.get_tensor(f"model {name}")))
    for name, parameter in model.named_parameters():
        kept = {key.split(" ")[1]: key for key in stored.keys() if _is_optimizers(key, name)}  # noqa: SIM118 (no dict)
        optimizer.state[parameter] = {
            part: _beside(parameter, part, stored.get_tensor(key)) for part, key in kept.items()
        }
    place = TrainingState(**json.loads(stored.metadata()["place"]))
    numbers = {**asdict(place), **place.batches, "batches": 0}
    if not all(isinstance(number, int | float) for number in numbers.values()):
        raise ValueError("a place that is no numbers")
    return place


def _settle(unfinished: Path, file: Path) -> None:
    """Renames a file that is complete to its name, so that neither is lost when the power is."""
    for path, rename in ((unfinished, True), (file.parent, False)):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        if rename:
            unfinished.replace(file)


def _tensors(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    yield from ((f"model {name}", tensor) for name, tensor in _weights(model))
    for name, parameter in model.named_parameters():
        yield from ((f"optimizer {key} {name}", value) for key, value in optimizer.state[parameter].items())


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
    return value.clone() if part == "step" else _like(parameter, value).clone()


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """A stored value on the tensor's device, sharded as the tensor is."""
    if isinstance(tensor, DTensor):
        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    return value.to(tensor.device)
