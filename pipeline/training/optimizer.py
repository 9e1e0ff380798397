"""Optimizers of training: AdamW for all weights, or Muon for the matrices of a model's layers and AdamW for the rest.

Muon (Jordan, kellerjordan.github.io/posts/muon) replaces the gradient of a matrix by the nearest orthogonal matrix. The
implementation is torch's. Steps are scaled to the root mean square of AdamW's steps (arXiv 2502.16982, section 2.2), so
that one learning rate serves both. Muon keeps one number per weight, and AdamW keeps two.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from pipeline.training.config import TrainingConfig

FLOAT32 = 4  # bytes
BETAS = (0.9, 0.95)


def new_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """Return the optimizer that the settings name, with weight decay for matrices only."""
    of_layers = layer_matrices(model) if config.optimizer == "muon" else []
    apart = {id(parameter) for parameter in of_layers}
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in apart]
    matrices = [parameter for parameter in rest if parameter.ndim >= 2]
    vectors = [parameter for parameter in rest if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = AdamW(groups, lr=config.learning_rate, betas=BETAS)
    if not of_layers:
        return adamw
    decay = config.weight_decay
    muon = Muon(of_layers, lr=config.learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return JoinedOptimizer(muon, adamw)


def layer_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained matrices of the model's layers, without embeddings and output projections.

    Layers are the modules in an `nn.ModuleList`, as in all models of transformers.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = {id(parameter) for stack in stacks for parameter in stack.parameters()}
    inside -= {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [each for each in model.parameters() if each.ndim == 2 and each.requires_grad and id(each) in inside]


class JoinedOptimizer(Optimizer):
    """Two optimizers of different parameters (the parts), joined into one optimizer.

    The parameter groups and states of the joined optimizer are the same objects as those of the parts. If accelerate or
    `resume` replaces parameters or states in the joined optimizer, the parts therefore use the new ones.
    """

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__([{"params": group["params"]} for part in parts for group in part.param_groups], {})
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Perform one step of each part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load states that `state_dict` returned."""
        super().load_state_dict(state_dict)
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of the optimizer's states in float32, which are allocated in the first step."""

    def numbers(group: dict[str, Any]) -> int:
        weights: list[Tensor] = group["params"]
        return (2 if "betas" in group else 1) * sum(weight.numel() for weight in weights)

    return FLOAT32 * sum(map(numbers, optimizer.param_groups))
