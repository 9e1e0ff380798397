"""Resuming interrupted training: the run's folder, its saved states, and the signal that stops a run between two steps.

During training, the folder holds the run's settings and its newest states. A command that resumes the run must have
the same settings. A state is a safetensors file with the weights, the optimizer's tensors and a `TrainingState`. If
weights are averaged, the state also has the average. Tensors are stored unsharded, so that any number of processes can
load them.

Schedulers and clusters send SIGTERM before they kill a process. After this signal, the run saves a state and ends. The
finished model replaces the settings and the states. If the training can be continued with more steps, `more_steps`
keeps the settings and one of the states in a folder of their own.
"""

import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, NoReturn, Self

import torch
from accelerate.utils import gather
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from pipeline.data.atomic import UNFINISHED, is_unfinished, settle, write_text
from pipeline.messages import say
from pipeline.models.model_card import CARD_FILE
from pipeline.training.config import TrainingConfig
from pipeline.training.distributed import full_tensor, this_process
from pipeline.training.more_steps import CONTINUED, reopen, set_aside

SETTINGS_FILE = "unfinished.json"
STATES = "unfinished-*.safetensors"
STATE = re.compile(r"unfinished-\d{1,18}\.safetensors")
STATE_FILE = "unfinished-{step}.safetensors"
NO_AVERAGE: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class TrainingState:
    """Progress of a training run, and the sum of its losses since the last evaluation."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: float = 0.0
    since: int = 0
    """Number of steps since the last evaluation."""
    batches: dict[str, Any] = field(default_factory=dict)
    """State of the iterator of batches if it is `Resumable`, otherwise empty."""

    def after(self, loss: float, tokens: int, seconds: float) -> Self:
        """Return the state after one more step.

        `loss` and `tokens` are values of this step, and `seconds` is the duration of the whole run so far.
        """
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + tokens,
            seconds=seconds,
            losses=self.losses + loss,
            since=self.since + 1,
        )

    def after_evaluation(self) -> Self:
        return replace(self, losses=0.0, since=0)


def begin_on_main(output: Path, settings: Mapping[str, Any], training: TrainingConfig | None = None) -> None:
    """Call `begin` in the main process while the other processes wait.

    Raises:
        ValueError: in the main process, if the folder holds other files or another run.
    """
    if this_process().is_main_process:
        begin(output, settings, training)
    this_process().wait_for_everyone()


def begin(output: Path, settings: Mapping[str, Any], training: TrainingConfig | None = None) -> None:
    """Create the folder of a new run, or accept the folder of the same run after an interruption.

    Another run may reuse a folder that holds only settings, since the run with these settings failed before its first
    step.

    Args:
        settings: all settings that the model depends on, by name, without the folder's path and the number of
            processes.
        training: settings of the training. If the folder holds a finished run with fewer steps, the run is continued.
            With None, the folder of a finished run is refused.

    Raises:
        ValueError: if the folder holds other files or another run.
    """
    requested = json.loads(json.dumps(settings, default=str))
    file = output / SETTINGS_FILE
    if training is not None and (output / CONTINUED / SETTINGS_FILE).is_file() and not file.is_file():
        reopen(file, requested, training, STATE_FILE)
    if output.is_file() or (output.is_dir() and any(file.name != SETTINGS_FILE for file in output.iterdir())):
        existing = _read_settings(output)
        differing = [name for name in {**existing, **requested} if existing.get(name) != requested.get(name)]
        if differing:
            shown = "; ".join(
                f"{name} {existing.get(name)} there, {requested.get(name)} now" for name in sorted(differing)
            )
            raise ValueError(f"`output` {output} holds another unfinished training ({shown}); choose another folder")
    write_text(file, json.dumps(requested, indent=2))


def finish(output: Path, lasting: int | None = None) -> None:
    """Remove a run's settings and states, and files that a killed process left unfinished.

    The model must already be saved.

    Unless `lasting` is None, the settings and the state of the step `lasting` are set aside first, so that the finished
    training can be continued with more steps.
    """
    if lasting is not None:
        set_aside(output, output / STATE_FILE.format(step=lasting), output / SETTINGS_FILE)
    for file in (*states(output), *filter(is_unfinished, output.iterdir()), output / SETTINGS_FILE):
        file.unlink(missing_ok=True)


def is_finished(output: Path) -> bool:
    """True if the folder holds a model card and no states.

    A finished run writes its card last, and then removes its states.
    """
    return (output / CARD_FILE).is_file() and not states(output)


def states(output: Path) -> list[Path]:
    """Return the files of all saved states, oldest first."""
    files = [file for file in output.glob(STATES) if STATE.fullmatch(file.name)]
    return sorted(files, key=_step)


def save(
    output: Path,
    model: nn.Module,
    optimizer: Optimizer,
    state: TrainingState,
    average: Mapping[str, Tensor] = NO_AVERAGE,
    *,
    keep: int = 1,
    lasting: int | None = None,
) -> None:
    """Save the current state of training, and keep only the newest `keep` states up to this step.

    The state of the step `lasting` is kept in addition.

    `average` has the average of the weights by name, sharded like the weights.

    States of later steps are removed too. They are unreadable, since the run would otherwise have resumed from them.
    Every process must call this function, since each process may hold a shard of the state. Only the main process
    writes.
    """
    tensors, writes = {}, this_process().is_main_process
    for name, tensor in _tensors(model, optimizer, average):
        complete = full_tensor(tensor.detach())
        if writes:
            tensors[name] = complete.cpu().contiguous()
    if not writes:
        return
    file = output / STATE_FILE.format(step=state.step)
    unfinished = file.with_name(f".{file.name}{UNFINISHED}")  # a fixed name: leftovers of a kill are overwritten
    save_file(tensors, unfinished, metadata={"place": json.dumps(asdict(state))})
    settle(unfinished, file)
    kept = [each for each in states(output) if _step(each) <= state.step][-keep:]
    for each in set(states(output)).difference(kept, [output / STATE_FILE.format(step=lasting)]):
        each.unlink()


def load(
    output: Path, model: nn.Module, optimizer: Optimizer, average: Mapping[str, Tensor] = NO_AVERAGE
) -> TrainingState:
    """Load weights, optimizer and average from the newest readable state, and return the state's `TrainingState`.

    If there are no states, return the initial `TrainingState`. No process returns before all processes have loaded the
    state, so that no state is removed too early.

    Raises:
        ValueError: if there are states, but none can be read; if the newest readable state belongs to another run; or
            if processes load different states.
    """
    state = _newest(output, model, optimizer, average)
    steps = gather(torch.tensor([state.step], device=this_process().device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(f"processes resume from different steps {steps}: `output` must be one folder that all share")
    return state


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Context manager that yields a function, which returns True once SIGTERM has arrived.

    The previous handler is restored at the end. Only the main thread of a process can handle signals. In other threads,
    as in Ray's workers, the function always returns False.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return

    def handle(number: int, frame: FrameType | None) -> None:
        requested.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def stop(state: TrainingState) -> NoReturn:
    """Exit with 143, the code that shells report for SIGTERM. The state must already be saved.

    All processes exit together, since a launcher kills the other processes as soon as one has exited.
    """
    this_process().wait_for_everyone()
    if this_process().is_main_process:
        say(f"stopped at step {state.step}; the same command resumes", file=sys.stderr)
    raise SystemExit(128 + signal.SIGTERM)


def _step(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _read_settings(output: Path) -> dict[str, Any]:
    file = output / SETTINGS_FILE
    if not file.is_file():
        hint = "; with `training.decay` trapezoid, a finished training takes more steps" if is_finished(output) else ""
        raise ValueError(f"`output` {output} is there already; delete it or choose another folder{hint}")
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete {output} or choose another folder") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is damaged (no JSON object); delete {output} or choose another folder")
    return settings


def _newest(output: Path, model: nn.Module, optimizer: Optimizer, average: Mapping[str, Tensor]) -> TrainingState:
    files = states(output)
    for file in reversed(files):
        try:
            with safe_open(file, framework="pt") as stored, torch.no_grad():
                return _restored(stored, model, optimizer, average)
        except SafetensorError:
            continue
        except (RuntimeError, KeyError, TypeError, ValueError) as error:  # readable, but another run's state
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{file} holds no state of this training ({reason}); delete the folder to begin again"
            ) from error
    if files:
        raise ValueError(f"none of the states in {output} can be read; delete the folder to begin again")
    return TrainingState()


def _tensors(model: nn.Module, optimizer: Optimizer, average: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield from ((f"model {name}", tensor) for name, tensor in _weights(model))
    yield from ((f"average {name}", tensor) for name, tensor in average.items())
    for name, parameter in model.named_parameters():
        yield from ((f"optimizer {key} {name}", value) for key, value in optimizer.state[parameter].items())


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the tensor of every trained parameter, and of every buffer in the state dict.

    A tied parameter is yielded only once. Frozen parameters are those of the model that the run starts from, and are
    not saved.
    """
    yield from ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in model.state_dict())


def _restored(stored: Any, model: nn.Module, optimizer: Optimizer, average: Mapping[str, Tensor]) -> TrainingState:
    for name, tensor in _weights(model):
        tensor.copy_(_as_placed(tensor, stored.get_tensor(f"model {name}")))
    for name, tensor in average.items():
        tensor.copy_(_as_placed(tensor, stored.get_tensor(f"average {name}")))
    keys = [key.split(" ") for key in stored.keys() if key.startswith("optimizer ")]  # noqa: SIM118 (no dict)
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            part: _optimizer_tensor(parameter, part, stored.get_tensor(f"optimizer {part} {name}"))
            for _, part, owner in keys
            if owner == name
        }
    state = TrainingState(**json.loads(stored.metadata()["place"]))
    numbers = {**asdict(state), **state.batches, "batches": 0}
    if not all(isinstance(number, int | float) for number in numbers.values()):
        raise ValueError("its progress is not numeric")
    return state


def _optimizer_tensor(parameter: Tensor, part: str, value: Tensor) -> Tensor:
    """Return a copy of an optimizer's stored tensor on the parameter's device, or on the CPU for AdamW's step count.

    The copy is needed because tensors within a mapped file may be unaligned, and kernels would then round differently.
    """
    return value.clone() if part == "step" else _as_placed(parameter, value).clone()


def _as_placed(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a stored tensor on the device of `tensor`, sharded like `tensor`."""
    if isinstance(tensor, DTensor):
        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    return value.to(tensor.device)
