"""Processes that train one model: a single one, several with a replica each (DDP) or with a shard each (FSDP2).

`accelerate` starts the group and wraps the model, following the environment set by its launcher, torchrun or Ray.
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
    """Run in a process group that all processes leave together.

    A process that ends first may crash while its connections are torn down; a launcher then kills the others, which
    may still be saving.
    """
    joined_before = torch.distributed.is_initialized()  # by Ray, which leaves the group too
    try:
        yield
        this_process().wait_for_everyone()
    except SystemExit:  # raised by all processes at the same step, unlike other errors
        _leave(joined_before)
        raise
    _leave(joined_before)


def this_process() -> PartialState:
    """Return the state of this process in its group; the first call joins the group."""
    return PartialState(cpu=_on_cpu())


def new_accelerator(config: TrainingConfig, output: Path) -> Accelerator:
    """Return accelerate's handle on devices and processes, with shards if `accelerate launch` asks for them."""
    accelerator = Accelerator(
        mixed_precision=config.precision,
        cpu=_on_cpu(),
        log_with=list(config.trackers) or None,
        project_dir=output,
    )
    sharding = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if sharding and accelerator.distributed_type == DistributedType.MULTI_CPU:  # accelerate shards on GPUs only
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if accelerator.is_fsdp2:
        # Autocast handles precision, as without shards. Gathering in bfloat16 would halve the traffic, but also round
        # gradients and evaluations.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return accelerator


class DistributedModel(Generic[ModelT]):
    """A model and its optimizer on the devices of all processes: replicated (DDP) or sharded (FSDP2).

    Replicas train the model itself. Sharding uses a copy, so that the model itself can still be saved.
    """

    def __init__(self, model: ModelT, new_optimizer: Callable[[ModelT], Optimizer], accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.model = deepcopy(model) if accelerator.is_fsdp2 else model
        self.optimizer = new_optimizer(self.model)
        self.module, self.stepping = accelerator.prepare(FunctionModule(self.model), self.optimizer)

    def evaluate(self, function: Callable[[ModelT], ResultT]) -> ResultT:
        """Apply a function to the model in evaluation mode, without gradients, in the precision of its weights."""

        def in_full_precision(model: ModelT) -> ResultT:
            with torch.autocast(self.accelerator.device.type, enabled=False):
                return function(model)

        self.module.eval()
        with torch.no_grad():
            result: ResultT = self.module(in_full_precision)
        self.module.train()
        if isinstance(self.module, FSDPModule):
            self.module.reshard()  # as a backward pass would have done
        return result

    def round_weights(self, dtype: torch.dtype) -> None:
        """Round weights to the precision of `dtype`; their own dtype stays."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(parameter.to(dtype))

    def copy_to(self, model: ModelT) -> None:
        """Copy weights that were trained in shards to the model; every process must call this."""
        if self.model is not model:
            with torch.no_grad():
                for parameter, trained in zip(model.parameters(), self.model.parameters(), strict=True):
                    parameter.copy_(full_tensor(trained))


class FunctionModule(nn.Module, Generic[ModelT]):
    """Wrapper whose forward pass applies any function to a model.

    DDP averages gradients, and FSDP gathers weights, around the forward pass of the wrapped module. Losses read weights
    directly, not through the model's own forward pass.
    """

    def __init__(self, model: ModelT) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # FSDP's units: the model's blocks

    def forward(self, function: Callable[..., ResultT], *arguments: object) -> ResultT:
        return function(self.model, *arguments)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor gathered from all of its shards; every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(mine: ResultT) -> list[ResultT]:
    """Return the values of all processes, in rank order; every process must call this."""
    this_process()
    values: list[ResultT] = gather_object([mine])
    return values


def _leave(joined_before: bool) -> None:
    if torch.distributed.is_initialized() and not joined_before:
        torch.distributed.destroy_process_group()


def _on_cpu() -> bool:
    """True if a launcher started this process without a GPU, which accelerate does not detect."""
    return "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
