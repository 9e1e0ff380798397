"""Sections `fast` and `launches`: speed of labels, chunks of the head, exact labels, and the cost of launches.

Speeds are in tokens per second and as a share of the device's matrix rate.

B windows, T tokens, D width, V vocabulary, N tokens of all windows.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaForCausalLM

from pipeline.data.windows import WindowBatch
from pipeline.labels import exact
from pipeline.labels.torch_labeller import TorchLabeller, causal_labeller, second_order_labeller
from pipeline.models import cross_entropy
from pipeline.models.causal_lm import next_token_hidden
from pipeline.models.cross_entropy import token_cross_entropy
from schemas.annotations import Device
from tests.device.log import Figures, Log
from tests.device.sizes import Shape, Sizes, batches, documents, estimator, language_model, second_order_model
from tests.published import published_entropies

HALF = torch.bfloat16
COMPILE_SECONDS = 60.0
Way = Callable[[LlamaForCausalLM, Tensor], Callable[[], object]]
VARIANTS: dict[str, dict[str, Any]] = {
    "as a token": {},
    "beside every token": {"introduction": "embedding"},
    "added": {"introduction": "projection"},
}


def section(log: Log, sizes: Sizes, device: Device) -> None:
    """Measure section `fast`. A measurement has at most 500,000 tokens, as many as a worker labels at a time."""
    product = log.measure("fast", "matrix rate", partial(_matrix_rate, sizes, device))
    rate = float(product.get("FLOP/s", float("nan")))
    for shape in sizes.models:
        for method in ("causal", "second-order"):
            log.measure("fast", f"{method}, {shape.name}", partial(_labels, method, shape, sizes, device, rate))
    log.measure("fast", "tokens of a forward", partial(_budgets, sizes, device))
    for vocabulary in sizes.vocabularies:
        log.measure(
            "fast", f"logits of a chunk, vocabulary {vocabulary:,}", partial(_chunks, sizes, vocabulary, device)
        )
    for name, variant in _variants(sizes).items():
        log.measure("fast", f"exact, the embedding {name}", partial(_exact, sizes, device, variant))
    log.measure("fast", "kernels of a forward", partial(_kernels, sizes, device))


def launches(log: Log, sizes: Sizes, device: Device) -> None:
    """Measure section `launches`: the cost of launching kernels from the host, in forward passes of one shape.

    This section is the last, because a failed capture of a CUDA graph may harm later measurements.
    """
    model, ids_BT = language_model(sizes.models[0], sizes.context, device, HALF), _window(sizes, device)
    ways = {"eager": _eager, "CUDA graph": _graph, "compiled": _compiled}
    for name, way in ways.items():
        if name == "CUDA graph" and device == "cpu":
            log.skip("launches", name, "a CPU has none")
        elif name == "compiled" and device == "cpu":
            log.skip("launches", name, "a CPU wants minutes to compile")
        else:
            needs = COMPILE_SECONDS if name == "compiled" else 0.0
            log.measure("launches", name, partial(_launched, way, model, ids_BT, sizes, device), needs=needs)


def best_seconds(function: Callable[[], object], device: Device, repeats: int) -> float:
    """Return the seconds of the fastest of `repeats` calls, after one call that is not counted.

    A call ends when the device has done its work.
    """
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        started = time.perf_counter()
        function()
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _wait(device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _matrix_rate(sizes: Sizes, device: Device) -> Figures:
    square = torch.randn(sizes.matrix, sizes.matrix, device=device, dtype=HALF)
    return {"FLOP/s": 2 * sizes.matrix**3 / best_seconds(lambda: square @ square, device, 4 * sizes.repeats)}


def _labeller(method: str, shape: Shape, sizes: Sizes, device: Device) -> tuple[TorchLabeller, nn.Module]:
    if method == "causal":
        model = language_model(shape, sizes.context, device, HALF)
        return causal_labeller(model, 0, device), model
    regressor = second_order_model(shape, sizes.context, device, HALF)
    return second_order_labeller(regressor, device), regressor


def _labels(method: str, shape: Shape, sizes: Sizes, device: Device, rate: float) -> Figures:
    labeller, model = _labeller(method, shape, sizes, device)
    read = documents(sizes, shape.vocabulary)
    sent = batches(read, sizes.context, labeller.batch_tokens)
    seconds = best_seconds(lambda: labeller.label(sent), device, 2)
    tokens, filled = (sum(int(count) for count in counts) for counts in _counts(sent))
    return {
        "tokens/s": tokens / seconds,
        "documents' tokens/s": sum(map(len, read)) / seconds,
        "share of the matrix rate": _work(model, shape, sent) / seconds / rate,
        "tokens of a forward": labeller.budget,
        "fill": tokens / filled,
    }


def _counts(sent: Sequence[WindowBatch]) -> tuple[list[int], list[int]]:
    return [int(batch.lengths_B.sum()) for batch in sent], [batch.ids_BT.size for batch in sent]


def _work(model: nn.Module, shape: Shape, sent: Sequence[WindowBatch]) -> float:
    """Return the FLOP of the linear layers, the head and causal attention over real tokens, without padding."""
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    if not any(isinstance(module, nn.Linear) and len(module.weight) == shape.vocabulary for module in model.modules()):
        weights += shape.vocabulary * shape.width  # a head that is the embeddings
    lengths = [float(length) for batch in sent for length in batch.lengths_B]
    return sum(2 * length * (weights + shape.layers * length * shape.width) for length in lengths)


def _budgets(sizes: Sizes, device: Device) -> Figures:
    """Return the smallest model's tokens per second, by the number of tokens in a forward pass."""
    labeller, _ = _labeller("causal", sizes.models[0], sizes, device)
    read = documents(sizes, sizes.models[0].vocabulary)
    speeds: Figures = {}
    for budget in sizes.budgets:
        sent = batches(read, sizes.context, budget)
        sized = replace(labeller, budget=budget, batch_tokens=budget)
        tokens = sum(_counts(sent)[0])
        speeds[f"{budget:,}"] = tokens / best_seconds(partial(sized.label, sent), device, 1)
    return speeds


def _chunks(sizes: Sizes, vocabulary: int, device: Device) -> Figures:
    """Return the milliseconds that the output head takes in a forward pass, by the number of logits in a chunk.

    The head has the width of the smallest model.
    """
    tokens, width = sizes.budgets[-2], sizes.models[0].width
    torch.manual_seed(0)
    hidden_ND = torch.randn(tokens, width, device=device, dtype=HALF)
    head_VD = torch.randn(vocabulary, width, device=device, dtype=HALF) * width**-0.5
    target_N = torch.randint(vocabulary, (tokens,), device=device)
    name = "CPU_CHUNK_LOGITS" if device == "cpu" else "CHUNK_LOGITS"
    before, found = getattr(cross_entropy, name), Figures()
    try:
        for chunk in sizes.chunks:
            setattr(cross_entropy, name, chunk)
            with torch.no_grad():
                head = partial(token_cross_entropy, hidden_ND, head_VD, target_N)
                found[f"{chunk:,}"] = 1e3 * best_seconds(head, device, 2)
    finally:
        setattr(cross_entropy, name, before)
    return found


def _variants(sizes: Sizes) -> dict[str, dict[str, Any]]:
    half, top = sizes.layers // 2, sizes.layers
    late = {"introduction": "projection", "introduced_above": half}
    added = {"introduction": "projection", "introduced_above": top}
    return {**VARIANTS, f"added above layer {half}": late, "added to the logits": added}


def _exact(sizes: Sizes, device: Device, variant: dict[str, Any]) -> Figures:
    """Return the tokens per second with which this project computes the exact labels of whole windows.

    For the default variant, also return the ratios of this speed to two speeds of the paper's procedure: labelling one
    position at a time, and labelling several positions at a time. The procedure takes two passes per position. It is
    timed at a few positions only.
    """
    model = estimator(sizes, device, HALF, **variant)
    torch.manual_seed(0)
    shape = (sizes.exact_windows, sizes.estimator_context)
    ids_BT = torch.randint(sizes.estimator_vocabulary, shape, device=device)
    ours = best_seconds(lambda: exact.token_entropies(model, ids_BT), device, 2) / sizes.exact_windows
    found: Figures = {"tokens/s": sizes.estimator_context / ours}
    if not variant:
        count = sizes.published_positions
        positions = range(0, sizes.estimator_context, sizes.estimator_context // count)
        alone = best_seconds(lambda: published_entropies(model, ids_BT[0], positions, batch=1), device, 1)
        batched = best_seconds(lambda: published_entropies(model, ids_BT[0], positions, batch=count), device, 1)
        whole = sizes.estimator_context / count
        found |= {"times the published": whole * alone / ours, f"times it, {count} at a time": whole * batched / ours}
    return found


def _window(sizes: Sizes, device: Device) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(sizes.models[0].vocabulary, (sizes.peer_rows, sizes.context), device=device)


@torch.no_grad()
def _kernels(sizes: Sizes, device: Device) -> Figures:
    """Return the shares of a forward pass's time for the five longest kernels and the longest attention kernel."""
    model, ids_BT = language_model(sizes.models[0], sizes.context, device, HALF), _window(sizes, device)
    next_token_hidden(model, ids_BT)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]) as profiled:
        next_token_hidden(model, ids_BT)
        _wait(device)
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: getattr(event, key), reverse=True)
    total = sum(getattr(event, key) for event in events)
    attention = [event for event in events if any(word in event.key.lower() for word in ("flash", "fmha", "attention"))]
    shown = [*dict.fromkeys((*events[:5], *attention[:1]))]
    return {event.key[:80]: f"{getattr(event, key) / total:.1%}" for event in shown}


@torch.no_grad()
def _launched(way: Way, model: LlamaForCausalLM, ids_BT: Tensor, sizes: Sizes, device: Device) -> Figures:
    return {"tokens/s": ids_BT.numel() / best_seconds(way(model, ids_BT), device, sizes.repeats)}


def _eager(model: LlamaForCausalLM, ids_BT: Tensor) -> Callable[[], object]:
    return lambda: next_token_hidden(model, ids_BT)


def _graph(model: LlamaForCausalLM, ids_BT: Tensor) -> Callable[[], object]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        next_token_hidden(model, ids_BT)
    return graph.replay


def _compiled(model: LlamaForCausalLM, ids_BT: Tensor) -> Callable[[], object]:
    base = torch.compile(model.base_model)
    return lambda: base(input_ids=ids_BT, use_cache=False).last_hidden_state
