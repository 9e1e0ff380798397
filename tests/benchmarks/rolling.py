"""Speed of SmolLM2's surprisals of whole documents: this project against lm-eval's `loglikelihood_rolling`.

This project is timed from text to labels. Both programs use one thread, the same precision and the same documents, none
of them longer than a window. lm-eval's softmax is set to float32, because lm-eval's totals are wrong by 0.6% if the
softmax is in bfloat16.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.data.sample import sample_documents
from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.data.windows import gather, window_batches
from pipeline.engine.plan import fast_dtype
from pipeline.labels.torch_labeller import load_labeller
from schemas.annotations import ENTROPY, Dtype
from tests.benchmarks.figure import Figure, median_seconds
from tests.smollm2 import INSTALLED, SEPARATOR, smollm2_folder

MISSING = None if INSTALLED and find_spec("lm_eval") else "`make pretrained peers` was not run"
CONTEXT = 2048
AUTO = "the precision that auto takes"

Totals = Callable[[], Sequence[float]]
"""Function that returns the total nats of each document."""


@dataclass(frozen=True)
class Size:
    documents: int = 6
    repeats: int = 3


QUICK = Size(documents=1, repeats=1)


def figures(size: Size) -> Iterator[Figure]:
    threads, auto = torch.get_num_threads(), fast_dtype("cpu")
    torch.set_num_threads(1)
    folder = smollm2_folder()
    texts, tokens, source = _documents(folder, size.documents)
    ways = {
        "ours": _ours(folder, texts, auto),
        "theirs": _theirs(folder, texts, auto),
        "wide": _ours(folder, texts, "float32"),
    }
    totals = {name: np.array(way()) for name, way in ways.items()}
    turns = [median_seconds(ways, 1) for _ in range(size.repeats)]
    torch.set_num_threads(threads)
    speeds = {name: tokens / median(turn[name] for turn in turns) for name in ways}
    shown = (
        f"{speeds['ours']:,.0f} against {speeds['theirs']:,.0f} tokens/s, {len(texts)} documents of {source}, {auto}"
    )
    what = "rolling: SmolLM2's surprisals, times the speed of lm-eval"
    yield Figure(f"{what} ({shown})", median(turn["theirs"] / turn["ours"] for turn in turns), at_least=1.2)
    apart = np.abs(totals["ours"] / totals["theirs"] - 1).max()
    whole = abs(totals["ours"].sum() / totals["theirs"].sum() - 1)
    yield Figure(f"rolling: relative difference of all totals (of one at most {apart:.1e})", whole, at_most=1e-3)
    yield Figure(
        f"rolling: {auto}, {AUTO}, times the speed of float32 ({speeds['wide']:,.0f} tokens/s)",
        median(turn["wide"] / turn["ours"] for turn in turns),
        at_least=2 if auto == "bfloat16" else None,
    )


def _documents(folder: Path, count: int) -> tuple[list[str], int, str]:
    """Return texts that fit a window, the number of their tokens, and the name of their source."""
    if "FINEWEB" in os.environ:
        texts, source = pq.read_table(os.environ["FINEWEB"], columns=["text"]).column(0).to_pylist(), "FineWeb"
    else:
        texts, source = sample_documents().column("text").to_pylist(), "the help topics"
    lengths = [len(ids) for ids in encode(load_tokenizer(folder), texts)]
    fitting = [(text, length) for text, length in zip(texts, lengths, strict=True) if 0 < length < CONTEXT][:count]
    return [text for text, _ in fitting], sum(length for _, length in fitting), source


def _ours(folder: Path, texts: Sequence[str], dtype: Dtype) -> Totals:
    tokenizer = load_tokenizer(folder)
    start = tokenizer.get_vocab()[SEPARATOR]
    labeller = load_labeller("causal", folder, "cpu", dtype, start)

    def totals() -> Sequence[float]:
        documents = encode(tokenizer, texts)
        everywhere = [np.ones(len(ids), dtype=bool) for ids in documents]
        batches = window_batches(documents, everywhere, window=CONTEXT - 1, overlap=0, budget=labeller.batch_tokens)
        labels = gather(documents, zip(batches, labeller.label(batches)[0], strict=True), {ENTROPY: ()})[ENTROPY]
        return [float(nats.sum(dtype=np.float64)) for nats in labels]

    return totals


def _theirs(folder: Path, texts: Sequence[str], dtype: Dtype) -> Totals:
    """Return a function that computes the total nats of each document with lm-eval.

    lm-eval computes one document at a time, which is its default. On a CPU, this is faster than padded batches.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model: Any = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        max_length=CONTEXT,
        prefix_token_id=load_tokenizer(folder).get_vocab()[SEPARATOR],
        softmax_dtype="float32",
    )
    requests = [Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(texts)]
    return lambda: [-total for total in model.loglikelihood_rolling(requests, disable_tqdm=True)]
