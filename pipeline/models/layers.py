"""A stack of layers divided at one of them, so that an embedding can enter between the two parts.

The layers below give states, and the layers above continue from changed states. This works with any stack of
transformers whose layers pass one tensor of states to the next: while one part runs, each layer of the other part
returns its input unchanged.

B rows, T tokens, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models.causal_lm import last_hidden

PROBE_TOKENS = 8
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-8}  # for half precision, 0.1; relative to the largest state


def layers_of(stack: PreTrainedModel) -> Sequence[nn.Module]:
    """Return the layers of a stack in their order.

    Raises:
        ValueError: if no list of modules in the stack has the number of layers that the configuration declares.
    """
    count = stack.config.get_text_config().num_hidden_layers
    for module in stack.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ValueError(f"{type(stack).__name__} has no list of {count} layers; let the embedding enter at the logits")


class DividedStack:
    """A stack of a language model, divided below the layer with the index `layer`.

    Raises:
        ValueError: if there is no such layer, or the two parts together do not give the states of the whole stack.
    """

    def __init__(self, stack: PreTrainedModel, layer: int) -> None:
        layers = layers_of(stack)
        if not 0 <= layer < len(layers):
            raise ValueError(f"the embedding cannot enter above layer {layer} of {len(layers)}; give a lower one")
        self.stack = stack
        self.lower, self.entry, self.upper = layers[:layer], layers[layer], layers[layer:]
        self.width = 0
        """Width of the states that enter the upper layers."""
        self.kinds: dict[nn.Module, int | None] = {}
        """For each layer, the number of values that it returns; None if it returns only a tensor."""
        self._require_divisible()

    def below(self, input_ids_BT: Tensor) -> Tensor:
        """Return the states [B, T, D] that enter the upper layers."""
        found: list[Tensor] = []
        handle = self.entry.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            with self._passing(self.upper):
                last_hidden(self.stack, input_ids_BT)
        finally:
            handle.remove()
        return found[0]

    def above(self, states_BTD: Tensor) -> Tensor:
        """Return the last hidden states [B, T, D] of the stack, given the states that enter the upper layers."""
        ids_BT = torch.zeros(states_BTD.shape[:2], dtype=torch.long, device=states_BTD.device)
        handle = self.entry.register_forward_pre_hook(lambda _, inputs: (states_BTD, *inputs[1:]))
        try:
            with self._passing(self.lower):
                return last_hidden(self.stack, ids_BT)
        finally:
            handle.remove()

    @contextmanager
    def _passing(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Context manager inside which these layers return their input."""
        replaced = {layer: vars(layer).get("forward") for layer in layers}
        for layer in layers:
            layer.forward = _passes(self.kinds[layer])
        try:
            yield
        finally:
            for layer, forward in replaced.items():
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward

    @torch.no_grad()
    def _require_divisible(self) -> None:
        stack, name = self.stack, type(self.stack).__name__
        vocabulary = stack.config.get_text_config().vocab_size
        ids_1T = torch.arange(PROBE_TOKENS, device=stack.device).unsqueeze(0) % vocabulary
        refused = f"the layers of {name} cannot be divided; let the embedding enter at the logits"

        def note(layer: nn.Module, _: Any, output: Any) -> None:
            self.kinds[layer] = None if isinstance(output, Tensor) else len(output)

        handles = [layer.register_forward_hook(note) for layer in (*self.lower, *self.upper)]
        try:
            expected_1TD = last_hidden(stack, ids_1T)
        finally:
            for handle in handles:
                handle.remove()
        try:
            states_1TD = self.below(ids_1T)
            last_hidden(stack, ids_1T.flip(1))  # overwrites what layers may pass on besides their states
            found_1TD = self.above(states_1TD)
        except Exception as error:  # raised if layers pass on more than one tensor; the kind depends on the family
            raise ValueError(refused) from error
        self.width = states_1TD.shape[-1]
        allowed = TOLERANCES.get(stack.dtype, 0.1) * float(expected_1TD.abs().max())
        if found_1TD.shape != expected_1TD.shape or float((found_1TD - expected_1TD).abs().max()) > allowed:
            raise ValueError(refused)


def _passes(values: int | None) -> Any:
    """Return a forward function that returns its first argument.

    If `values` is given, the result is a tuple of this length, with None after the first argument.
    """

    def forward(states_BTD: Tensor, *_: Any, **__: Any) -> Any:
        return states_BTD if values is None else (states_BTD, *[None] * (values - 1))

    return forward
