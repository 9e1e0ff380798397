"""Labels made in Python, for texts, batches, tables, `datasets` and Ray Data: bit-identical to those of the command."""

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pipeline
from pipeline import Labeller
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.tiny_models import tiny_language_model

TEXTS = [*sample_texts(3, 900), "", "naïve 中文 🙂\n", "x"]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a causal language model with a context of 64 tokens, so that texts have several windows."""
    folder = tmp_path_factory.mktemp("causal")
    tiny_language_model(vocabulary=8192, context=64).save_pretrained(folder)
    copy_tokenizer(SHIPPED / "second-order", folder)
    return folder


@pytest.fixture(scope="module")
def second_order() -> Labeller:
    return Labeller(batch_invariant=True, dtype="float32")


@pytest.mark.parametrize(
    ("method", "flags", "arguments"),
    [
        ("second-order", [], {}),
        ("causal", ["--top-k", 5, "--sampled-ids", 3], {"top_k": 5, "sampled_ids": 3}),
        ("causal", ["--window", 32, "--overlap", 8], {"window": 32, "overlap": 8}),
        ("causal", ["--tokenizer", "LLAMA"], {"tokenizer": "LLAMA"}),
    ],
)
def test_labels_are_those_of_the_command_to_the_bit(
    run_command: RunCommand, tmp_path: Path, causal: Path, method: Any, flags: list[Any], arguments: dict[str, Any]
) -> None:
    if "tokenizer" in arguments:
        flags, arguments = ["--tokenizer", _other(tmp_path)], {"tokenizer": str(tmp_path / "other")}
    given = write_documents(tmp_path / "texts.parquet", TEXTS)
    estimator = [] if method == "second-order" else ["--estimator", causal]
    command = ["--input", given, "--method", method, *estimator, "--dtype", "float32", *flags]
    assert run_command("pipeline.annotate", *command, "--output", tmp_path / "out", "--workers", 0) == 0
    (shard,) = sorted((tmp_path / "out" / "data").rglob("*.parquet"))
    written = pq.read_table(shard)
    labeller = Labeller(method, *map(str, estimator[1:]), dtype="float32", **arguments)
    table = labeller(pa.table({"text": TEXTS, "id": [*range(len(TEXTS))]}))
    assert table.schema.names == ["text", "id", *written.schema.names] and table["text"].to_pylist() == TEXTS
    assert table.select(written.schema.names).equals(written)
    for row, labelled in zip(written.to_pylist(), labeller(TEXTS), strict=True):
        assert labelled.entropy.tolist() == row["entropy"] and labelled.input_ids.tolist() == row["input_ids"]
        for name in labelled.columns:
            stored = np.array(row[name], np.float32).reshape(labelled[name].shape)
            np.testing.assert_array_equal(labelled[name].astype(np.float32), stored)


def _other(folder: Path) -> Path:
    """Train a tokenizer whose tokens differ from those of the models, and return its folder."""
    from jobs.train_tokenizer import Config, train_tokenizer

    given = write_documents(folder / "more.parquet", sample_texts(3, 900))
    train_tokenizer(Config(input=(str(given),), output=folder / "other", vocabulary=400))
    return folder / "other"


def test_one_text_has_the_same_bits_as_in_a_list(second_order: Labeller) -> None:
    for text, labelled in zip(TEXTS, second_order(TEXTS), strict=True):
        alone = second_order(text)
        assert alone.text == text and len(alone) == len(labelled)
        for name in labelled.columns:
            assert alone[name].tobytes() == labelled[name].tobytes(), name


@settings(deadline=None, max_examples=25)
@example(text=" \x80")
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_tokens_and_offsets_cover_any_text(text: str) -> None:
    labelled = LABELLER(text)
    assert "".join(labelled.tokens) == text
    covered = set[int]()
    for token, (start, stop) in zip(labelled.tokens, labelled.offsets.tolist(), strict=True):
        assert 0 <= start <= stop <= len(text)
        assert token in text[start:stop]  # beside it, a token may begin a character that the next one completes
        covered |= {*range(start, stop)}
    assert covered == {*range(len(text))}
    assert np.isfinite(labelled.entropy).all() and len(labelled.entropy) == len(labelled)


LABELLER = Labeller(dtype="float32")


def test_a_notebook_shows_the_text_in_colour(second_order: Labeller) -> None:
    page = second_order("A <b> tag")._repr_html_()
    assert "&lt;" in page and 'class="t' in page and "nats" in page
    assert second_order("two words").view.expected is not None


def test_batches_of_datasets_become_columns(second_order: Labeller) -> None:
    given = datasets.Dataset.from_dict({"text": TEXTS, "id": [*range(len(TEXTS))]})
    labelled = given.map(second_order, batched=True, batch_size=4)
    assert labelled.features["entropy"].feature.dtype == "float32" and labelled["id"] == [*range(len(TEXTS))]
    for row, expected in zip(labelled, second_order(TEXTS), strict=True):
        np.testing.assert_array_equal(np.array(row["entropy"], np.float32), expected.entropy)
        assert row["num_tokens"] == len(expected)


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_labels_in_actors(second_order: Labeller) -> None:
    given = ray.data.from_arrow(pa.table({"text": TEXTS}))
    labelled = given.map_batches(
        Labeller, fn_constructor_kwargs={"batch_invariant": True, "dtype": "float32"}, batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1), batch_size=4,
    )  # fmt: skip
    rows = sorted(labelled.take_all(), key=lambda row: [*row["input_ids"]])
    expected = sorted(second_order(TEXTS), key=lambda each: each.input_ids.tolist())
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(row["entropy"], np.float32), other.entropy)


def test_an_unpickled_labeller_labels_alike_and_threads_stay_as_they_were(second_order: Labeller) -> None:
    torch.set_num_threads(2)
    try:
        copy = pickle.loads(pickle.dumps(second_order))  # noqa: S301 - made in this line
        assert copy("the same text").entropy.tobytes() == second_order("the same text").entropy.tobytes()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_numpy_and_missing_documents_are_read(second_order: Labeller) -> None:
    found = second_order({"text": np.array(["one text", None, ""], dtype=object), "other": [1, 2, 3]})
    assert [len(each) for each in found["entropy"]] == [2, 0, 0] and found["num_tokens"].tolist() == [2, 0, 0]
    assert second_order([]) == [] and second_order({"text": []})["entropy"] == []
    assert found["other"] == [1, 2, 3]
    assert second_order(pa.table({"text": pa.array([], pa.string())})).num_rows == 0


def test_token_ids_are_labelled_as_they_are(causal: Path) -> None:
    labeller = Labeller("causal", str(causal), tokenizer="none", dtype="float32")
    read = Labeller("causal", str(causal), dtype="float32")("some text")
    (entropy,) = labeller({"input_ids": [read.input_ids]})["entropy"]
    assert entropy.tobytes() == read.entropy.tobytes()
    with pytest.raises(ValueError, match="reads token ids, not text; give a batch"):
        labeller("some text")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"words": ["a"]}, "no column `text`; it has words; name one with `text_column`"),
        ({"text": [1, 2]}, "column `text` holds int64, not text; name another with `text_column`"),
        ({"text": ["a"], "entropy": [1.0]}, "columns that labels are written to: entropy; rename them"),
        ({"text": ["a", "\ud800"]}, "column `text` cannot be read"),
        ([1], "text 0 is of the type int; give texts, or a batch of columns"),
        ("a \ud800 b", "text 0 is not valid Unicode"),
        ("x" * 101, "1 documents have more than 100 bytes; cut them, or raise `longest_document`"),
    ],
)
def test_what_cannot_be_labelled_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Labeller(longest_document=100)(given)


def test_settings_are_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="causal needs a causal language model"):
        Labeller("causal")
    with pytest.raises(TypeError, match="Labeller has no setting output; it has tokenizer, text_column"):
        Labeller(output="somewhere")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="nowhere"):
        Labeller("causal", str(tmp_path / "nowhere"))
    with pytest.raises(AttributeError, match="no attribute 'Labeler'"):
        pipeline.Labeler  # noqa: B018
