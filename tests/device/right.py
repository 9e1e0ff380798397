"""Section `right` of the measurements: whether labels on the device are right.

It measures how far bfloat16 changes labels, how many labels are bit-identical in two runs, and whether labels stay
right if the device has too little memory. It also times the transfer of tokens to the device and of labels back.

The shipped checkpoints label the built-in documents. A language model with random weights labels random tokens.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from pipeline.data.sample import sample_documents
from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.labels.torch_labeller import DeviceError, TorchLabeller, causal_labeller, load_labeller
from pipeline.models.checkpoint import SHIPPED
from pipeline.models.stacks import input_embeddings
from schemas.annotations import ENTROPY, Device, Dtype, Method
from tests.device.log import Figures, Log
from tests.device.sizes import Sizes, batches, documents, in_precision, language_model
from tests.engine.fakes import label_documents

METHODS: tuple[tuple[Method, str], ...] = (("second-order", "second-order"), ("exact", "estimator"))
WINDOW = 256
LARGEST_LOGITS = 4.0  # standard deviation of a random model's logits, about that of a trained one

Load = Callable[[Dtype], TorchLabeller]


def section(log: Log, sizes: Sizes, device: Device) -> None:
    texts = sample_documents().column("text").to_pylist()[: max(4, sizes.documents // 8)]
    read = encode(load_tokenizer(SHIPPED / "tokenizer"), texts)
    loads: dict[str, tuple[Load, Sequence[np.ndarray], int]] = {
        method: (partial(_shipped, method, folder, device), read, WINDOW) for method, folder in METHODS
    }
    shape = sizes.models[0]
    some = documents(sizes, shape.vocabulary)[: max(4, sizes.documents // 32)]
    loads[f"causal, {shape.name}"] = (partial(_causal, sizes, device), some, sizes.context)
    for name, (load, chosen, window) in loads.items():
        log.measure("right", f"{name}: bfloat16 against float32", partial(_difference, load, chosen, window))
        log.measure("right", f"{name}: the same bits", partial(_same_bits, load, chosen, window))
    log.measure("right", "transfers of a chunk of documents", partial(_transfers, sizes, device))
    if device == "cpu":
        log.skip("right", "out of memory", "a CPU's memory is not one to fill")
    else:
        log.measure("right", "out of memory", partial(_out_of_memory, sizes, device))


def _shipped(method: Method, folder: str, device: Device, dtype: Dtype) -> TorchLabeller:
    return load_labeller(method, SHIPPED / folder, device, dtype)


def _causal(sizes: Sizes, device: Device, dtype: Dtype) -> TorchLabeller:
    model = language_model(sizes.models[0], sizes.context, device, torch.float32)
    input_embeddings(model).weight.data.mul_(LARGEST_LOGITS / sizes.models[0].width ** 0.5 / 0.02)
    return causal_labeller(in_precision(model, device, getattr(torch, dtype)), 0, device)


def _difference(load: Load, chosen: Sequence[np.ndarray], window: int) -> Figures:
    exactly, roughly = (
        np.concatenate(label_documents(chosen, load(dtype), window=window, overlap=window // 2)[ENTROPY])
        for dtype in ("float32", "bfloat16")
    )
    moved = np.abs(exactly - roughly)
    return {
        "tokens": len(moved),
        "mean": float(moved.mean()),
        "99.9%": float(np.quantile(moved, 0.999)),
        "max": float(moved.max()),
        "of the mean label": float(abs(exactly.mean(dtype=float) - roughly.mean(dtype=float))),
    }


def _same_bits(load: Load, chosen: Sequence[np.ndarray], window: int) -> Figures:
    """Compare three pairs of runs. For each pair, return the share of labels that are bit-identical in its two runs.

    - `twice`: both runs label the same batches.
    - `batch-invariant`: both runs label one window at a time, in opposite orders of the documents.
    - `batched and alone`: one run labels batches, and the other run labels one window at a time.
    """
    labeller = load("bfloat16")
    label = partial(label_documents, labeller=labeller, window=window, overlap=window // 2)
    once, again = (np.concatenate(label(chosen)[ENTROPY]) for _ in range(2))
    forwards = label(chosen, budget=1)[ENTROPY]
    backwards = label(chosen[::-1], budget=1)[ENTROPY][::-1]
    return {
        "twice": float((once == again).mean()),
        "batch-invariant": float((np.concatenate(forwards) == np.concatenate(backwards)).mean()),
        "batched and alone": float((once == np.concatenate(forwards)).mean()),
    }


def _transfers(sizes: Sizes, device: Device) -> Figures:
    """Return the time to send a worker's windows to the device and to fetch their labels.

    The labels are copies of the token ids, so the time includes no computation of a model.
    """
    labeller = TorchLabeller({ENTROPY: ()}, lambda ids, *_: {ENTROPY: ids.float()}, device, 2**15, 2**15)
    sent = batches(documents(sizes, 256), sizes.context, 2**15)
    seconds = []
    for _ in range(sizes.repeats):
        started = time.perf_counter()
        values, _ = labeller.label(sent)
        seconds.append(time.perf_counter() - started)
        if not all(np.array_equal(value[ENTROPY], batch.ids_BT) for value, batch in zip(values, sent, strict=True)):
            raise ValueError("what came back is not what was sent")
    tokens = sum(int(batch.lengths_B.sum()) for batch in sent)
    return {"ms": 1e3 * min(seconds), "tokens/s": tokens / min(seconds)}


def _out_of_memory(sizes: Sizes, device: Device) -> Figures:
    """Label while a large tensor takes almost all memory, and again after the memory was freed.

    The first labels are made with all memory free. For them and for each smaller amount of free memory, return the
    number of batches that were labelled in parts. For each smaller amount, also return the largest difference from the
    first labels, in nats. If labelling fails with an amount, return the error instead of its figures. The last figure
    says whether labels made after the memory was freed are bit-identical to the first labels.
    """
    labeller = _causal(sizes, device, "bfloat16")
    sent = batches(documents(sizes, 256)[:32], sizes.context, labeller.batch_tokens)
    whole, none = labeller.label(sent)
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    figures: Figures = {"parts, all memory free": none}
    for left in (2**31, 2**29, 2**27):
        taken = torch.empty(max(0, free - left), dtype=torch.uint8, device=device)
        name = f"{left // 2**20} MiB free"
        try:
            labels, parts = labeller.label(sent)
            moved = max(float(np.abs(a[ENTROPY] - b[ENTROPY]).max()) for a, b in zip(whole, labels, strict=True))
            figures |= {f"parts, {name}": parts, f"moved, {name}": moved}
        except DeviceError as error:
            figures[name] = str(error)
        del taken
        torch.cuda.empty_cache()
    again = labeller.label(sent)[0]
    equal = all(np.array_equal(a[ENTROPY], b[ENTROPY]) for a, b in zip(whole, again, strict=True))
    return {**figures, "the same bits afterwards": str(equal)}
