"""The processes that train together: one; several with the same model each (DDP); several with a part of it (FSDP2)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from pipeline.training.config import TrainingConfig

ModelT = TypeVar("ModelT", bound=nn.Module)
ResultT = TypeVar("ResultT")


class FunctionModule(nn.Module, Generic[ModelT]):
    """A model whose forward pass applies any function to it.

    DDP averages gradients, and FSDP gathers weights, around the forward pass of what they wrap; losses read weights
    directly, not through the model's own forward pass.
    """

    def __init__(self, model: ModelT) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # FSDP's units: the model's blocks

    def forward(self, function: Callable[..., ResultT], *arguments: object) -> ResultT:
        return function(self.model, *arguments)


@contextmanager
def process_group() -> Iterator[None]:
    """The work of processes that end together, when all are done.

    One that ends first may crash as its connections are torn down, and a launcher then kills those that still save.
    """
    joined_before = torch.distributed.is_initialized()  # by Ray, which leaves it too
    try:
        yield
        this_process().wait_for_everyone()
    except SystemExit:  # agreed upon, unlike other errors
        _leave(joined_before)
        raise
    _leave(joined_before)


def this_process() -> PartialState:
    """This process's place among those that train together; the first call joins them."""
    return PartialState(cpu=_on_processors())


def new_accelerator(config: TrainingConfig, output: Path) -> Accelerator:
    """What places a training on the devices of the processes, and shards it where `accelerate launch` was told to."""
    accelerator = Accelerator(
        mixed_precision=config.precision,
        cpu=_on_processors(),
        log_with=list(config.trackers) or None,
        project_dir=output,
    )
    sharding = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if sharding and accelerator.distributed_type == DistributedType.MULTI_CPU:  # accelerate has this for GPUs alone
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if accelerator.is_fsdp2:
        # Autocast serves, as without shards. Gathering in bfloat16 would be half the traffic, but gradients and what
        # is evaluated would be of it too.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return accelerator


def trained_copy(model: ModelT, accelerator: Accelerator) -> ModelT:
    """The model itself; where weights are sharded a copy, so that the model stays one that can be saved."""
    return deepcopy(model) if accelerator.is_fsdp2 else model


def take_weights(model: nn.Module, trained: nn.Module) -> None:
    """Gives the model the weights of its sharded copy, whole."""
    if trained is not model:
        with torch.no_grad():
            for mine, other in zip(model.parameters(), trained.parameters(), strict=True):
                mine.copy_(full_tensor(other))


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor with all of its shards: every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(mine: ResultT) -> list[ResultT]:
    """What each process has, in their order, through memory alone: every process must ask."""
    if not torch.distributed.is_initialized():
        return [mine]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    return found


def apply(module: FunctionModule[ModelT], function: Callable[[ModelT], ResultT], device: torch.device) -> ResultT:
    """A function of the model in evaluation mode, without gradients, in the precision of its weights."""

    def plainly(model: Any) -> ResultT:
        with torch.autocast(device.type, enabled=False):
            return function(model)

    module.eval()
    with torch.no_grad():
        result: ResultT = module(plainly)
    module.train()
    if isinstance(module, FSDPModule):
        module.reshard()  # a backward pass would have done it
    return result


def _leave(joined_before: bool) -> None:
    if torch.distributed.is_initialized() and not joined_before:
        torch.distributed.destroy_process_group()


def _on_processors() -> bool:
    """Whether processes that were started together have no GPU; accelerate has to be told."""
    return "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
