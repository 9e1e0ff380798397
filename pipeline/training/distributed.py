"""Processes that train one model: one process, several with a replica each (DDP), or several with a shard each (FSDP2).

`accelerate` joins the process group and wraps the model. It reads the environment variables set by the launcher, which
is `accelerate launch`, torchrun or Ray.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Generic, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from pipeline.training.config import TrainingConfig

ModelT = TypeVar("ModelT", bound=nn.Module)
ResultT = TypeVar("ResultT")


@contextmanager
def process_group() -> Iterator[None]:
    """Context manager for a process group that all processes leave together.

    If one process left early, it could crash while closing its connections to the others. The launcher would then kill
    the other processes, which may still be saving.
    """
    joined_before = torch.distributed.is_initialized()  # Ray joins the group itself, and also leaves it
    try:
        yield
        this_process().wait_for_everyone()
    except SystemExit:  # raised by all processes at the same step, unlike other errors
        _leave(joined_before)
        raise
    _leave(joined_before)


def this_process() -> PartialState:
    """Return this process's rank, device and number of processes, as accelerate's `PartialState`.

    The first call joins the process group.
    """
    return PartialState(cpu=_on_cpu())


def new_accelerator(config: TrainingConfig, output: Path | None) -> Accelerator:
    """Return a new `Accelerator`, the object of accelerate that handles devices and processes.

    If `output` is given, the accelerator also handles trackers. It shards models (FSDP2) if the settings of `accelerate
    launch` request sharding, and otherwise replicates them.
    """
    accelerator = Accelerator(
        mixed_precision=config.precision,
        cpu=_on_cpu(),
        log_with=list(config.trackers) or None if output else None,
        project_dir=output,
    )
    sharding = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if sharding and accelerator.distributed_type == DistributedType.MULTI_CPU:  # accelerate shards on GPUs only
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if accelerator.is_fsdp2:
        # Autocast handles precision, with and without shards. Gathering in bfloat16 would halve the traffic, but also
        # round gradients and evaluations.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return accelerator


class DistributedModel(Generic[ModelT]):
    """A model and its optimizer on the devices of all processes: replicated (DDP) or sharded (FSDP2).

    With replicas, the given model itself is trained. With shards, a copy is trained, so that the given model can still
    be saved.
    """

    def __init__(self, model: ModelT, new_optimizer: Callable[[ModelT], Optimizer], accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.model = deepcopy(model) if accelerator.is_fsdp2 else model
        self.optimizer = new_optimizer(self.model)
        self.module, self.stepping = accelerator.prepare(FunctionModule(self.model), self.optimizer)
        self.module.train()  # a model from a checkpoint would have no dropout until its first evaluation

    def evaluate(self, function: Callable[[ModelT], ResultT]) -> ResultT:
        """Apply a function to the model and return the result.

        The model is in evaluation mode, without gradients, and computes in the precision of its weights.
        """

        def in_full_precision(model: ModelT) -> ResultT:
            with torch.autocast(self.accelerator.device.type, enabled=False):
                return function(model)

        self.module.eval()
        with torch.no_grad():
            result: ResultT = self.module(in_full_precision)
        self.module.train()
        if isinstance(self.module, FSDPModule):
            self.module.reshard()  # after training, the backward pass does this
        return result

    def round_weights(self, dtype: torch.dtype) -> None:
        """Round the trained weights to values that `dtype` can represent, but keep the dtype of their tensors."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(parameter.to(dtype))

    def copy_to(self, model: ModelT) -> None:
        """Copy the trained weights to `model`, unless `model` itself was trained. Every process must call this."""
        if self.model is not model:
            with torch.no_grad():
                for parameter, trained in zip(model.parameters(), self.model.parameters(), strict=True):
                    parameter.copy_(full_tensor(trained))


class FunctionModule(nn.Module, Generic[ModelT]):
    """Wrapper of a model whose forward pass applies a given function to the model.

    DDP averages gradients, and FSDP gathers weights, only around the forward pass of the module that they wrap. A loss
    function reads some weights directly, outside the forward pass of the model. It must therefore run inside the
    forward pass of this wrapper.
    """

    def __init__(self, model: ModelT) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # FSDP's units: the model's blocks

    def forward(self, function: Callable[..., ResultT], *arguments: object) -> ResultT:
        return function(self.model, *arguments)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the complete tensor, gathered from all processes if it is sharded. Every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(mine: ResultT) -> list[ResultT]:
    """Return the values that all processes pass as `mine`, in rank order. Every process must call this."""
    this_process()
    values: list[ResultT] = gather_object([mine])
    return values


def _leave(joined_before: bool) -> None:
    if torch.distributed.is_initialized() and not joined_before:
        torch.distributed.destroy_process_group()


def _on_cpu() -> bool:
    """True if a launcher started this process on a machine without a GPU; accelerate does not detect this case."""
    return "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
