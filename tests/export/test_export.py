"""Exports: every token and label pair comes back through the readers of the trainers, in the dataset's order."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from datatrove.utils.dataset import DatatroveFolderDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.annotated import find_annotations
from pipeline.data.label_units import MOST_UNITS, NO_LABEL, short_units
from pipeline.export.token_batches import TrainedRange, quantile
from pipeline.export.token_files import megatron_index
from tests.annotated import write_annotated
from tests.conftest import RunCommand
from tests.export.conftest import EXPORT, SEPARATOR, Documents, exported, whole_windows

FORMATS = ("datatrove", "olmo-core", "megatron")


def joined(folder: Path, pattern: str, kind: str) -> np.ndarray:
    return np.concatenate([np.fromfile(file, kind) for file in sorted(folder.glob(pattern))])


@pytest.mark.parametrize(("kind", "pattern"), [("datatrove", "*.ds"), ("olmo-core", "*.npy"), ("megatron", "*.bin")])
def test_files_hold_every_token_and_label_in_order(
    run_command: RunCommand,
    dataset: Path,
    expected: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    kind: str,
    pattern: str,
) -> None:
    output = exported(run_command, dataset, tmp_path / "out", kind)
    assert len([*(output / "tokens").glob(pattern)]) == 3
    np.testing.assert_array_equal(joined(output / "tokens", pattern, "<u2"), expected[0])
    np.testing.assert_array_equal(joined(output / "entropy", pattern, "<i2"), expected[1])
    assert not (output / "mask").exists() and not [*output.rglob("*.loss")] and not [*output.rglob(".*")]


def test_datatrove_reads_the_same_windows_of_tokens_labels_and_document_positions(
    run_command: RunCommand, dataset: Path, expected: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    output = exported(run_command, dataset, tmp_path / "out", "datatrove")
    tokens, labels = (
        DatatroveFolderDataset(str(output / part), seq_len=1023, filename_pattern="*.ds", return_positions=True)
        for part in ("tokens", "entropy")
    )
    windows = whole_windows(output / "tokens", "*.ds", 1024)
    assert len(tokens) == len(labels) == len(windows) > 900
    for number, window in enumerate(windows):
        item, read = tokens[number], labels[number]["input_ids"].numpy()
        np.testing.assert_array_equal(item["input_ids"], expected[0][window])
        np.testing.assert_array_equal(read.astype(np.uint16).view(np.int16), expected[1][window])
        starts = np.flatnonzero(expected[0][window][:-1] == SEPARATOR) + 1
        assert not item["positions"][starts].any()


def test_megatron_reads_every_document_with_its_labels(
    run_command: RunCommand, dataset: Path, documents: Documents, tmp_path: Path
) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="Megatron-core is not installed")
    output = exported(run_command, dataset, tmp_path / "out", "megatron", "--train-to", 4.0)
    names = sorted(file.with_suffix("") for file in (output / "tokens").glob("*.bin"))
    read = [indexed.IndexedDataset(str(name)) for name in names]
    labels = [indexed.IndexedDataset(str(output / "entropy" / name.name)) for name in names]
    masks = [indexed.IndexedDataset(str(output / "mask" / name.name)) for name in names]
    every = zip(*map(chain.from_iterable, (read, labels, masks)), documents.separated, strict=True)
    for ids, units_T, mask, (wanted, wanted_units) in every:
        assert units_T.dtype == np.int16
        np.testing.assert_array_equal(ids, wanted)
        np.testing.assert_array_equal(units_T, wanted_units)
        np.testing.assert_array_equal(mask, (wanted_units == NO_LABEL) | (wanted_units <= 512))
    assert read[0].document_indices.tolist() == [*range(len(read[0]) + 1)]


def test_the_index_of_megatron_has_its_layout() -> None:
    """The expected bytes are written by hand, from the layout of an index.

    An index begins with a header, the version (1), the code of the type (8 for uint16), the number of sequences (2) and
    the number of document borders (3). Three arrays follow: the lengths of the sequences, the byte offsets of the
    sequences, and the document borders.
    """
    content = megatron_index(np.array([3, 2]), np.dtype("<u2"))
    assert content[:9] == b"MMIDIDX\x00\x00" and content[9:18] == b"\x01" + bytes(7) + b"\x08"
    assert np.frombuffer(content, "<u8", 2, 18).tolist() == [2, 3]
    assert np.frombuffer(content, "<i4", 2, 34).tolist() == [3, 2]
    assert np.frombuffer(content, "<i8", 5, 42).tolist() == [0, 6, 0, 1, 2] and len(content) == 42 + 5 * 8


@pytest.mark.parametrize("kind", FORMATS)
def test_masks_are_exactly_where_the_label_says(
    run_command: RunCommand, dataset: Path, expected: tuple[np.ndarray, np.ndarray], tmp_path: Path, kind: str
) -> None:
    pattern = {"datatrove": "tokens/*.loss", "olmo-core": "mask/*.npy", "megatron": "mask/*.bin"}[kind]
    output = exported(run_command, dataset, tmp_path / "out", kind, "--train-from", 0.496, "--train-to-quantile", 0.8)
    units_N = expected[1].astype(int)
    highest = int(np.quantile(units_N[units_N != NO_LABEL], 0.8, method="inverted_cdf"))
    wanted = (units_N == NO_LABEL) | ((units_N >= 64) & (units_N <= highest))
    np.testing.assert_array_equal(joined(output, pattern, "u1").astype(bool), wanted)
    described = json.loads((output / "export.json").read_text(encoding="utf-8"))
    assert described["trained_on"] == [64, highest] and described["types"]["mask"] == "uint8"


def test_ids_above_16_bits_take_32(run_command: RunCommand, tmp_path: Path) -> None:
    large = write_annotated(tmp_path / "large", [[70_000, 5]], [[1.0, 2.0]], tokenizer_sha256=None)
    for kind, pattern, wanted in (
        ("datatrove", "*.ds", "<u4"),
        ("olmo-core", "*.npy", "<u4"),
        ("megatron", "*.bin", "<i4"),
    ):
        output = exported(run_command, large, tmp_path / kind, kind, "--separator", 70_001)
        assert joined(output / "tokens", pattern, wanted).tolist() == [70_000, 5, 70_001]


def test_documents_may_end_without_a_separator(run_command: RunCommand, tmp_path: Path) -> None:
    small = write_annotated(tmp_path / "small", [[1, 2], [], [3]], [[1.0, 2.0], [], [3.0]], tokenizer_sha256=None)
    output = exported(run_command, small, tmp_path / "out", "datatrove", "--separator", "none")
    assert joined(output / "tokens", "*.ds", "<u2").tolist() == [1, 2, 3]
    assert joined(output / "tokens", "*.index", "<u8").tolist() == [2, 3]


@pytest.mark.parametrize("kind", ["megatron", "mds"])
def test_an_interrupted_export_writes_only_what_is_missing(
    run_command: RunCommand, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    output = exported(run_command, dataset, tmp_path / "out", kind)
    printed = capsys.readouterr().out
    lost = sorted((output / "done").glob("*.json"))[1]
    lost.unlink()
    again = (lost.stem, "index.json")
    kept = {
        file: file.stat().st_mtime_ns
        for file in output.rglob("*")
        if file.is_file() and not any(part in file.name for part in again)
    }
    content = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    (output / "done" / ".left.unfinished").touch()
    exported(run_command, dataset, output, kind)
    assert capsys.readouterr().out == printed and "documents without tokens" in printed
    assert not [*output.rglob(".*")]
    assert kept.items() <= {file: file.stat().st_mtime_ns for file in output.rglob("*") if file.is_file()}.items()
    assert content.items() <= {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}.items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--separator", -1), "--separator must be 0 or more, or none, not -1"),
        (("--train-to-quantile", 1.5), "--train-to-quantile must be from 0 to 1, not 1.5"),
        (("--train-to", 2, "--train-to-quantile", 0.5), "--train-to and --train-to-quantile set the same limit"),
        (("--train-from", "nan"), "--train-from must be a number of nats, not nan"),
        (("--train-from", 1.001, "--train-to", 1.002), "no label can be at least 1.00781 and at most 1 nats"),
        (("--train-from", 5, "--train-to", 2), "no label can be at least 5 and at most 2 nats"),
        (("--to", "tfrecord"), 'Invalid value "tfrecord" for --to'),
        (("--block", 9), "--block is for mds and litdata; the reader of megatron cuts tokens itself, so leave it out"),
        (("--to", "mds", "--block", 0), "--block must be from 1 to 16,777,216, not 0"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    run_command: RunCommand,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    kind = () if "--to" in arguments else ("--to", "megatron")
    assert run_command(EXPORT, dataset, *kind, "--output", tmp_path / "out", *arguments) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_files_and_other_exports_are_kept(
    run_command: RunCommand, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = exported(run_command, dataset, tmp_path / "out", "megatron")
    assert run_command(EXPORT, dataset, "--to", "olmo-core", "--output", output) == 1
    assert "holds another export, with another format" in capsys.readouterr().err
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    assert run_command(EXPORT, dataset, "--to", "megatron", "--output", tmp_path / "notes") == 1
    assert "holds other files; choose another folder" in capsys.readouterr().err
    bare = write_annotated(tmp_path / "bare", [[1]], [[1.0]], tokenizer_sha256=None)
    assert run_command(EXPORT, bare, "--to", "megatron", "--output", tmp_path / "no") == 1
    assert "has no tokenizer to declare a --separator; give its id, or none" in capsys.readouterr().err


@settings(max_examples=60)
@given(st.lists(st.one_of(st.just(np.nan), st.floats(-200, 200, width=32)), max_size=20))
def test_all_labels_and_missing_ones_are_in_the_widest_range(nats: list[float]) -> None:
    assert TrainedRange(NO_LABEL, MOST_UNITS).mask(short_units(np.array(nats, np.float32))).all()


def test_a_quantile_is_the_label_at_the_rank_of_its_share(tmp_path: Path) -> None:
    """Of 100 labels from 1 to 100 units, the share 0.07 has rank 7, although 0.07 * 100 is above 7 as a float."""
    nats = [[unit / 128 for unit in range(1, 101)], []]
    dataset = find_annotations(str(write_annotated(tmp_path, [[5] * 100, []], nats)))
    found = [quantile(dataset, share) for share in (0, 1e-9, 0.01, 0.07, 0.071, 0.29, 0.57, 1)]
    assert found == [1, 1, 1, 7, 8, 29, 57, 100]
