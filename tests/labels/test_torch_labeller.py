"""Labels of batches on a device: every method compared with its label function, every dtype, and limited memory."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pipeline.data.windows import window_batches
from pipeline.engine.annotator import load_annotator
from pipeline.labels import exact, second_order
from pipeline.labels.ensemble import Ensemble
from pipeline.labels.torch_labeller import (
    DeviceError,
    TorchLabeller,
    _sent,
    forward_tokens,
    load_ensemble,
    load_labeller,
    mean_labeller,
)
from pipeline.models.second_order import Entropies, SecondOrderModel
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, Dtype, Method
from tests.builders import write_documents
from tests.engine.fakes import label_documents, planned_run, token_rows
from tests.models.architectures import VOCABULARY, tiny_causal
from tests.tiny_models import random_tokens, tiny_estimator, tiny_language_model, tiny_second_order

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
METHODS: tuple[Method, ...] = ("exact", "second-order", "causal")


def random_documents(*lengths: int) -> list[np.ndarray]:
    return [random_tokens(1, length, seed=length)[0].numpy().astype(np.int32) for length in lengths]


def test_short_documents_have_the_labels_of_the_bare_method(tmp_path: Path) -> None:
    tiny_second_order().save_pretrained(tmp_path)
    documents = random_documents(7, 0, 32, 1)
    labels = label_documents(documents, load_labeller("second-order", tmp_path, "cpu"), window=32, overlap=16)
    for place, ids in enumerate(documents):
        bare = second_order.token_entropies(tiny_second_order(), torch.from_numpy(ids[None]).long())
        np.testing.assert_allclose(labels[ENTROPY][place], bare.entropy_BT[0], atol=1e-5)
        np.testing.assert_allclose(labels[EXPECTED_ENTROPY][place], bare.expected_entropy_BT[0], atol=1e-5)


TWO_SETS: dict[str, dict[str, Any]] = {
    "phi3": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4},
    "phimoe": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [8.0] * 4,
        "short_mscale": 1.0,
        "long_mscale": 1.4,
    },
}


@pytest.mark.parametrize("method", ["causal", "second-order"])
@pytest.mark.parametrize("family", TWO_SETS)
def test_windows_with_different_rotary_frequencies_share_no_batch(tmp_path: Path, family: str, method: Method) -> None:
    rope = {**TWO_SETS[family], "rope_theta": 10000.0, "original_max_position_embeddings": 24}
    there: dict[str, Any] = {"original_max_position_embeddings": 24} if family == "phi3" else {}
    model = tiny_causal(family, rope_parameters=rope, **there)
    (model if method == "causal" else SecondOrderModel.from_language_model(model)).save_pretrained(tmp_path)
    labeller = load_labeller(method, tmp_path, "cpu")
    documents = [ids % VOCABULARY for ids in random_documents(40, 23, 24, 7, 25, 60)]
    together = label_documents(documents, labeller, window=60, overlap=30)[ENTROPY]
    for ids, labels in zip(documents, together, strict=True):
        alone = label_documents([ids], labeller, window=60, overlap=30)[ENTROPY][0]
        np.testing.assert_allclose(labels, alone, atol=1e-4)
    mixed = label_documents(documents, replace(labeller, border=None), window=60, overlap=30)[ENTROPY]
    assert max(abs(one - other).max() for one, other in zip(together, mixed, strict=True)) > 0.1


@pytest.mark.parametrize(("window", "overlap"), [(16, 8), (16, 0), (16, 15), (10, 3)])
def test_long_documents_are_labelled_where_each_token_has_most_context(
    tmp_path: Path, window: int, overlap: int
) -> None:
    tiny_estimator().save_pretrained(tmp_path)
    documents = random_documents(50)
    labels = label_documents(documents, load_labeller("exact", tmp_path, "cpu"), window=window, overlap=overlap)
    expected = np.full(50, np.nan)
    for start in range(0, 50, window - overlap):
        ids_BT = torch.from_numpy(documents[0][start : start + window][None]).long()
        values = exact.token_entropies(tiny_estimator(), ids_BT)[0].numpy()
        part = expected[start : start + window]
        part[:] = np.where(np.isnan(part), values, part)  # the first window that holds a token gives its label
    np.testing.assert_allclose(labels[ENTROPY][0], expected, atol=1e-4)


def test_only_wanted_tokens_are_labelled_and_with_the_same_values(tmp_path: Path) -> None:
    tiny_estimator().save_pretrained(tmp_path)
    labeller, documents = load_labeller("exact", tmp_path, "cpu"), random_documents(40, 25)
    wanted = [np.random.default_rng(len(ids)).random(len(ids)) < 0.3 for ids in documents]
    every = label_documents(documents, labeller, window=16, overlap=8)[ENTROPY]
    some = label_documents(documents, labeller, window=16, overlap=8, wanted=wanted)[ENTROPY]
    for chosen, all_labels, labels in zip(wanted, every, some, strict=True):
        assert np.array_equal(np.isnan(labels), ~chosen)
        np.testing.assert_allclose(labels[chosen], all_labels[chosen], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_batch_invariant_labels_do_not_depend_on_other_documents(tmp_path: Path, method: Method) -> None:
    checkpoint(method).save_pretrained(tmp_path)
    labeller, documents = load_labeller(method, tmp_path, "cpu"), random_documents(40, 3, 25, 60, 1)

    def labels(chosen: list[np.ndarray]) -> list[np.ndarray]:
        return label_documents(chosen, labeller, window=32, overlap=16, budget=1)[ENTROPY]

    together = labels(documents)
    for place, ids in enumerate(documents):
        assert np.array_equal(labels([ids])[0], together[place])
    for one, other in zip(together, reversed(labels(documents[::-1])), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_moves_labels_by_a_bounded_amount(tmp_path: Path, method: Method) -> None:
    """The bounds are higher than the measured changes. The models' weights have ten times the usual scale.

    Bfloat16 changed exact, second-order and causal labels by 0.06, 0.02 and 0.01 nats on average. The largest changes
    were 0.40, 0.08 and 0.07 nats.
    """
    checkpoint(method).save_pretrained(tmp_path)
    documents = random_documents(40, 25)
    exactly, roughly = (
        label_documents(documents, load_labeller(method, tmp_path, "cpu", dtype), window=32, overlap=16)[ENTROPY]
        for dtype in DTYPES
    )
    difference = np.abs(np.concatenate(exactly) - np.concatenate(roughly))
    assert 1e-4 < difference.mean() < 0.1 and difference.max() < 0.5


def checkpoint(method: Method) -> PreTrainedModel:
    models: dict[Method, Callable[[], PreTrainedModel]] = {
        "exact": tiny_estimator,
        "second-order": tiny_second_order,
        "causal": tiny_language_model,
    }
    return models[method]()


@pytest.mark.long
def test_a_document_of_half_a_million_tokens_is_labelled_to_its_end(tmp_path: Path) -> None:
    tiny_second_order(context=256).save_pretrained(tmp_path)
    (ids,) = random_documents(500_000)
    labeller = load_labeller("second-order", tmp_path, "cpu")
    (labels,) = label_documents([ids], labeller, window=256, overlap=128)[ENTROPY]
    last = second_order.token_entropies(
        tiny_second_order(context=256), torch.from_numpy(ids[499_968 - 128 :][None]).long()
    )
    assert len(labels) == 500_000 and np.isfinite(labels).all()
    np.testing.assert_allclose(labels[-32:], last.entropy_BT[0, -32:], atol=1e-4)


class LimitedDevice:
    """A label method on a device with too little memory.

    The device has memory for batches of at most `tokens` tokens. With `once`, the device runs out of memory at the
    first attempt to label a batch, but not at the second.
    """

    def __init__(self, labeller: TorchLabeller, *, tokens: int | None = None, once: bool = False) -> None:
        self.labeller, self.tokens, self.once, self.calls = labeller, tokens, once, 0

    def __call__(self, *batch: Any) -> Mapping[str, torch.Tensor]:
        self.calls += 1
        if (self.once and self.calls % 2) or (self.tokens and batch[-1] > self.tokens):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.labeller.of_windows(*batch)


@pytest.mark.parametrize("method", METHODS)
def test_a_retry_after_running_out_of_memory_gives_the_same_bits(tmp_path: Path, method: Method) -> None:
    checkpoint(method).save_pretrained(tmp_path)
    labeller, documents = load_labeller(method, tmp_path, "cpu"), random_documents(40, 3, 25)
    device = LimitedDevice(labeller, once=True)
    undisturbed = label_documents(documents, labeller, window=32, overlap=16)
    disturbed = label_documents(documents, replace(labeller, of_windows=device), window=32, overlap=16)
    assert device.calls == 2
    for name, arrays in undisturbed.items():
        for one, other in zip(arrays, disturbed[name], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_that_does_not_fit_is_labelled_in_parts(tmp_path: Path, method: Method) -> None:
    checkpoint(method).save_pretrained(tmp_path)
    labeller, documents = load_labeller(method, tmp_path, "cpu"), random_documents(40, 30, 25)
    whole = label_documents(documents, labeller, window=32, overlap=16)
    small = replace(labeller, of_windows=LimitedDevice(labeller, tokens=70))
    for name, arrays in label_documents(documents, small, window=32, overlap=16).items():
        for one, other in zip(arrays, whole[name], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    batches = window_batches(
        documents, [np.ones(len(ids), bool) for ids in documents], window=32, overlap=16, budget=labeller.batch_tokens
    )
    assert small.label(batches)[1] == len(batches) and labeller.label(batches)[1] == 0


def test_parts_keep_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_second_order().save_pretrained(tmp_path)
    labeller, shapes = load_labeller("second-order", tmp_path, "cpu"), list[int]()
    forward = second_order.token_entropies

    def counted(model: SecondOrderModel, input_ids_BT: torch.Tensor) -> Entropies:
        shapes.append(input_ids_BT.numel())
        return forward(model, input_ids_BT)

    monkeypatch.setattr(second_order, "token_entropies", counted)
    label_documents(random_documents(30, 30, 30), replace(labeller, budget=70), window=32, overlap=16)
    assert shapes == [60, 30]


def test_batches_arrive_unchanged() -> None:
    shapes = [(3, 7), (1, 1), (2, 5)]
    arrays = [np.random.default_rng(0).integers(100, size=shape) for shape in shapes]
    for kind in (np.int64, np.bool_):
        given = [array.astype(kind) for array in arrays]
        for one, other in zip(given, _sent(given, "cpu"), strict=True):
            np.testing.assert_array_equal(one, other.numpy())
    assert _sent([], "cpu") == []


@pytest.mark.parametrize(
    ("parameters", "tokens"), [(4e6, 2**17), (135e6, 2**15), (360e6, 2**14), (1.7e9, 2**14), (70e9, 2**14)]
)
def test_a_gpu_gets_enough_work_in_a_forward(parameters: float, tokens: int) -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(int(parameters), 1, bias=False)
    assert forward_tokens(model, "cuda") == tokens
    assert forward_tokens(model, "cpu") == 2048


def test_a_window_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tiny_second_order().save_pretrained(tmp_path)
    labeller = load_labeller("second-order", tmp_path, "cpu")
    none = replace(labeller, of_windows=LimitedDevice(labeller, tokens=20))
    with pytest.raises(DeviceError, match="a window of 25 tokens does not fit into the memory of cpu"):
        label_documents(random_documents(25), none, window=32, overlap=16)


def test_checkpoints_that_do_not_fit_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = (tmp_path / "one", tmp_path / "two")
    for folder in folders:
        tiny_language_model().save_pretrained(folder)
    loaded = list[Path]()

    def load(folder: Path, *_: object) -> PreTrainedModel:
        if loaded:
            raise torch.OutOfMemoryError
        loaded.append(folder)
        return tiny_language_model()

    monkeypatch.setattr("pipeline.labels.torch_labeller.load_causal", load)
    with pytest.raises(ValueError, match=f"{folders[1]}, checkpoint 2 of 2, does not fit into the memory of cpu"):
        load_ensemble("causal", Ensemble(folders, (5, 5)), "cpu", "float32", {"entropy": ()})


def test_an_ensemble_has_one_border_between_short_and_long_windows(tmp_path: Path) -> None:
    tiny_second_order().save_pretrained(tmp_path)
    labeller = load_labeller("second-order", tmp_path, "cpu")

    def border(*borders: int | None) -> int | None:
        return mean_labeller([replace(labeller, border=each) for each in borders], {"entropy": ()}).border

    assert (border(None, None), border(None, 20), border(20, 20)) == (None, 20, 20)
    with pytest.raises(ValueError, match="beyond 9 and 20 tokens"):
        border(20, None, 9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_not_replaced_by_the_cpu(tmp_path: Path) -> None:
    tiny_estimator().save_pretrained(tmp_path / "model")
    file = write_documents(tmp_path / "in.parquet", ["text"], input_ids=token_rows(1))
    run, _ = planned_run(tmp_path / "out", [file])
    run = replace(run, checkpoints=(tmp_path / "model",))
    assert load_annotator(run, "cpu").labellers
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda|nvidia"):
        load_annotator(run, "cuda")
