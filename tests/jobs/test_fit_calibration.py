"""A calibration that is fitted to planted labels, applied by annotation, checked by verification and published."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from pipeline.data.annotated import as_rows, find_annotations
from pipeline.data.ledger import Ledger
from pipeline.data.shards import annotated_rows, write_shard
from pipeline.data.tokenizer import train_byte_pairs
from pipeline.labels.agreement import agreement, paired
from pipeline.labels.calibration import read_calibration
from pipeline.labels.calibration_fit import calibrated_pairs, is_held_out
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from schemas.annotations import ENTROPY, ROUNDING_NATS, annotated_schema
from schemas.layout import Subset, shard_name
from schemas.receipts import total
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.smollm2 import INSTALLED
from tests.tiny_models import tiny_second_order
from tests.verify.datasets import verified

JOB = "jobs.fit_calibration"
LANGUAGES = ["en", "de", None, "fr"] * 6
PLANTED = {"en": (0.5, 1.0), "de": (1.5, -0.5), "fr": (1.0, 0.25), None: (1.0, 0.25)}
"""Slope and bias of the line from a document's labels to the reference's labels, by the document's language."""
TO_LABEL = ("pipeline.annotate", "--workers", 0, "--dtype", "float32", "--rows-per-unit", 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write documents, a checkpoint, and a tokenizer with fewer tokens than that of the checkpoint.

    A document is in one of three languages, or its language is null. Two documents are empty.
    """
    folder = tmp_path_factory.mktemp("calibration")
    texts: list[str | None] = [f"{number} {text}" for number, text in enumerate(sample_texts(12, 150) * 2)]
    texts[5], texts[10] = "", None
    write_documents(folder / "in.parquet", texts, language=pa.array(LANGUAGES))
    tiny_second_order(vocabulary=8192).save_pretrained(folder / "model")
    copy_tokenizer(SHIPPED / "tokenizer", folder / "model")
    (folder / "small").mkdir()
    train_byte_pairs(sample_texts(12), 300).save(str(folder / "small" / "tokenizer.json"))
    return folder


@pytest.fixture
def label(folder: Path, run_command: RunCommand) -> Callable[..., int]:
    def label(output: Path, *arguments: object) -> int:
        named = ("--input", folder / "in.parquet", "--estimator", folder / "model", "--output", output)
        return run_command(*TO_LABEL, *named, *arguments)

    return label


def write_reference(cheap: Path, folder: Path) -> Path:
    """Write a reference: a dataset of the documents of `cheap`, with labels as if a better model had made them.

    The only column of labels is `entropy`. Its labels are those of `cheap`, times the slope and plus the bias that
    PLANTED has for the language of the document.
    """
    dataset = find_annotations(str(cheap))
    provenance = replace(dataset.provenance, model="better", label_columns=(ENTROPY,), method="causal")
    schema = annotated_schema(pa.schema([("language", pa.string())]), provenance)
    tables = []
    for batch in dataset.batches(("input_ids", ENTROPY, "language")):
        rows = as_rows(batch)
        planted = [row[ENTROPY] * slope + bias for row in rows for slope, bias in [PLANTED[row["language"]]]]
        source = pa.record_batch({"language": batch.column("language")})
        tables.append(annotated_rows(source, [row["input_ids"] for row in rows], {ENTROPY: planted}, schema))
    write_shard(Subset("causal", folder).data / shard_name(0, 1), tables, schema)
    return folder


@pytest.fixture
def sets(label: Callable[..., int], tmp_path: Path) -> tuple[object, ...]:
    """Label the documents in `cheap`, write a reference in `better`, and return the flags that name both datasets."""
    assert label(tmp_path / "cheap") == 0
    return ("--labels", tmp_path / "cheap", "--reference", write_reference(tmp_path / "cheap", tmp_path / "better"))


def labels_of(dataset: Path, column: str = ENTROPY) -> list[np.ndarray]:
    found = find_annotations(str(dataset))
    return [row[column] for batch in found.batches((column,)) for row in as_rows(batch)]


def test_calibrated_labels_are_those_of_the_reference_and_pass_verification(
    sets: tuple[object, ...],
    label: Callable[..., int],
    folder: Path,
    tmp_path: Path,
    run_command: RunCommand,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reference, file = tmp_path / "better", tmp_path / "calibration.json"
    capsys.readouterr()
    by_language = ("--by", "language", "--fewest-tokens", 100, "--held-out", 0.3)
    assert run_command(JOB, *sets, *by_language, "--output", file) == 0
    printed = capsys.readouterr().out
    assert "3 with a fit of their own, 1 with the pooled fit" in printed and "entropy, after" in printed
    (column,) = read_calibration(file).columns
    for own in column.domains:
        np.testing.assert_allclose((own.fit.slope, own.fit.bias), PLANTED[own.domain], atol=0.02)
    output, keep = tmp_path / "out", ("--calibration", file)
    assert label(output, *keep) == 0
    printed = capsys.readouterr().out
    assert "6 of a domain without a fit of its own, calibrated by the pooled fit" in printed
    assert "calibration    linear by `language` against better (entropy: slope" in printed
    for found_N, wanted_N, language in zip(labels_of(output), labels_of(reference), LANGUAGES, strict=True):
        if language is not None:
            np.testing.assert_allclose(found_N, wanted_N, atol=3 * ROUNDING_NATS)
    for one_N, other_N in zip(
        *(labels_of(each, "expected_entropy") for each in (output, tmp_path / "cheap")), strict=True
    ):
        np.testing.assert_array_equal(one_N, other_N)
    assert total(Ledger(Subset("second-order", output)).receipts()).counts.rows_without_fit == 6
    code, (sample, _) = verified(output, capsys, sample=24, estimator=(str(folder / "model"),))
    assert code == 0 and "24 documents labelled again" in sample
    loaded = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 24 and loaded[0][ENTROPY] == labels_of(output)[0].tolist()
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "calibrated against better (linear, with a fit for each value of `language`)" in card
    assert "Not calibrated: `expected_entropy`." in card and '"labels"' not in card


def test_a_run_resumes_with_its_calibration_and_refuses_another_or_none(
    sets: tuple[object, ...],
    label: Callable[..., int],
    tmp_path: Path,
    run_command: RunCommand,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, share in {"one": 0.2, "other": 0.5}.items():
        assert run_command(JOB, *sets, "--held-out", share, "--output", tmp_path / f"{name}.json") == 0
    output = tmp_path / "out"
    assert label(output, "--calibration", tmp_path / "one.json") == 0
    subset = Subset("second-order", output)
    sound = {file: file.read_bytes() for file in output.rglob("*.parquet")}
    Ledger(subset).delete(Ledger(subset).receipts()[:2])
    assert len([*output.rglob("*.parquet")]) == len(sound) - 2
    capsys.readouterr()
    of_another: tuple[object, ...] = ("--calibration", tmp_path / "other.json")
    for given in (of_another, ()):
        assert label(output, *given) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "holds another run's dataset (calibration linear against better" in line and len(line) < 1000
    assert label(output, "--calibration", tmp_path / "one.json") == 0
    assert {file: file.read_bytes() for file in output.rglob("*.parquet")} == sound


def test_isotonic_labels_pass_verification_and_the_card_says_where_they_are_constant(
    sets: tuple[object, ...],
    label: Callable[..., int],
    folder: Path,
    tmp_path: Path,
    run_command: RunCommand,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn")
    reference, file = tmp_path / "better", tmp_path / "calibration.json"
    by_language = ("--by", "language", "--fewest-tokens", 100, "--held-out", 0)
    assert run_command(JOB, *sets, *by_language, "--kind", "isotonic", "--output", file) == 0
    assert label(tmp_path / "out", "--calibration", file) == 0
    for found_N, wanted_N, language in zip(labels_of(tmp_path / "out"), labels_of(reference), LANGUAGES, strict=True):
        if language is not None:
            np.testing.assert_allclose(found_N, wanted_N, atol=0.05)
    code, (sample, _) = verified(tmp_path / "out", capsys, sample=24, estimator=(str(folder / "model"),))
    assert code == 0 and "24 documents labelled again" in sample
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "for each value of `language`, constant outside the labels that it was fitted to)." in card


def test_isotonic_fits_without_scikit_learn_are_refused_before_anything_is_read(
    tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.isotonic", None)
    sets = ("--labels", "absent", "--reference", "absent", "--output", tmp_path / "calibration.json")
    assert run_command(JOB, *sets, "--kind", "isotonic") == 1
    needs = "error: isotonic calibration needs scikit-learn: pip install 'token-entropy[calibration]', or choose --kind"
    assert needs in capsys.readouterr().err


def test_an_identity_changes_no_label(label: Callable[..., int], tmp_path: Path, run_command: RunCommand) -> None:
    """The reference is the labelled dataset itself, so the least-squares line is the identity up to rounding."""
    assert label(tmp_path / "cheap", "--keep-text") == 0
    sets = ("--labels", tmp_path / "cheap", "--reference", tmp_path / "cheap", "--output", tmp_path / "same.json")
    assert run_command(JOB, *sets) == 0
    assert read_calibration(tmp_path / "same.json").calibrated == ("entropy", "expected_entropy")
    assert label(tmp_path / "out", "--keep-text", "--calibration", tmp_path / "same.json") == 0
    for column in ("entropy", "expected_entropy"):
        for one_N, other_N in zip(
            labels_of(tmp_path / "out", column), labels_of(tmp_path / "cheap", column), strict=True
        ):
            np.testing.assert_array_equal(one_N, other_N)


def test_a_reference_of_other_tokens_is_moved(
    label: Callable[..., int], folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    """One model labels the documents twice: in the tokens of a smaller tokenizer, and in the model's own tokens.

    The second dataset is the reference, whose labels are transferred to the tokens of the smaller tokenizer.
    """
    assert label(tmp_path / "cheap", "--tokenizer", folder / "small", "--keep-text") == 0
    assert label(tmp_path / "better") == 0
    sets = ("--labels", tmp_path / "cheap", "--reference", tmp_path / "better", "--output", tmp_path / "moved.json")
    capsys.readouterr()
    assert run_command(JOB, *sets) == 0
    assert "cannot move" not in capsys.readouterr().out
    for column in read_calibration(tmp_path / "moved.json").columns:
        assert abs(column.pooled.slope - 1) < 0.01 and abs(column.pooled.bias) < 0.01
    assert (
        label(
            tmp_path / "out", "--tokenizer", folder / "small", "--keep-text", "--calibration", tmp_path / "moved.json"
        )
        == 0
    )
    code, (sample, _) = verified(tmp_path / "out", capsys, sample=9, estimator=(str(folder / "model"),))
    assert code == 0 and "9 documents labelled again" in sample


@pytest.mark.long
@pytest.mark.fineweb
@pytest.mark.pretrained
@pytest.mark.skipif(not INSTALLED, reason="`make pretrained` was not run")
def test_shipped_labels_get_the_scale_of_smollm2(run_command: RunCommand, tmp_path: Path) -> None:
    """The shipped estimator's labels are too high and vary too much. docs/accuracy.md has figures of more documents."""
    texts = pq.read_table(os.environ["FINEWEB"]).column("text").to_pylist()[:40]
    write_documents(tmp_path / "in.parquet", [text[:1000] for text in texts])
    label = ("pipeline.annotate", "--workers", 0, "--input", tmp_path / "in.parquet")
    better = ("--method", "causal", "--estimator", "smollm2", "--tokenizer", SHIPPED / "tokenizer")
    small_one = ("--method", "exact", "--estimator", SHIPPED / "estimator", "--share", 0.3)
    assert run_command(*label, *small_one, "--output", tmp_path / "small") == 0
    assert run_command(*label, *better, "--output", tmp_path / "better") == 0
    sets = ("--labels", tmp_path / "small", "--reference", tmp_path / "better", "--held-out", 0.5)
    assert run_command(JOB, *sets, "--output", tmp_path / "calibration.json") == 0
    small, reference = (find_annotations(str(tmp_path / name)) for name in ("small", "better"))
    pairs = paired(small, reference, None).pairs
    held_out = [pair for pair in pairs if is_held_out(pair, 0.5)]
    before = agreement(held_out, ENTROPY)
    fitted = read_calibration(tmp_path / "calibration.json")
    after = agreement([*calibrated_pairs(held_out, ENTROPY, fitted)], ENTROPY)
    assert before is not None and after is not None
    print(f"before {before}, after {after}")
    assert before.slope < 0.6 and before.mean_difference > 1
    assert abs(after.slope - 1) < 0.15 and abs(after.mean_difference) < 0.3
    assert after.mean_absolute_error < 0.8 * before.mean_absolute_error
