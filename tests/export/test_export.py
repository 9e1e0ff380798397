"""Exports: every token and label pair comes back through the readers of the trainers, in the dataset's order."""

import json
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.utils.dataset import DatatroveFolderDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.export.token_batches import MOST_UNITS, NO_LABEL, TrainedRange, units
from pipeline.export.token_files import megatron_index
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from tests.annotated import write_annotated
from tests.conftest import RunCommand

EXPORT = "pipeline.export"
SEPARATOR = 0
FORMATS = ("datatrove", "olmo-core", "megatron")


@pytest.fixture(scope="module")
def documents() -> tuple[list[list[int]], list[list[float]]]:
    """About 100,000 tokens; some documents are empty, and some tokens have no label."""
    random = np.random.default_rng(0)
    sizes = random.integers(0, 400, size=500) * (random.random(500) > 0.1)
    tokens = [random.integers(1, 8192, size=size).tolist() for size in sizes]
    nats = [np.where(random.random(size) < 0.05, np.nan, random.gamma(1, 2.5, size)) for size in sizes]
    return tokens, [np.round(row * 128).tolist() for row in nats]


@pytest.fixture(scope="module")
def dataset(documents: tuple[list[list[int]], list[list[float]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokens, labels = documents
    nats = [[unit / 128 for unit in row] for row in labels]
    folder = write_annotated(tmp_path_factory.mktemp("export") / "set", tokens, nats, shards=3, vocabulary=8192)
    copy_tokenizer(SHIPPED / "tokenizer", folder / "tokenizer" / "exact")
    return folder


@pytest.fixture(scope="module")
def expected(documents: tuple[list[list[int]], list[list[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """All ids and labels, joined, with separators."""
    tokens, labels = documents
    ids_N = np.array([*chain.from_iterable([*row, SEPARATOR] for row in tokens if row)])
    units_N = np.array([*chain.from_iterable([*row, np.nan] for row in labels if row)])
    return ids_N, np.where(np.isnan(units_N), NO_LABEL, units_N).astype(np.int16)


def exported(run_command: RunCommand, dataset: Path, output: Path, kind: str, *more: object) -> Path:
    assert run_command(EXPORT, dataset, "--to", kind, "--output", output, *more) == 0
    return output


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
        DatatroveFolderDataset(str(output / part), seq_len=127, filename_pattern="*.ds", return_positions=True)
        for part in ("tokens", "entropy")
    )
    assert len(tokens) == len(labels) > 500
    at = 0
    for file, following in pairwise([0, *np.cumsum([_tokens_in(output, shard) for shard in range(3)])]):
        for _ in range((following - file) // 128):
            window = slice(file + at, file + at + 128)
            item = tokens[_number(file, at, output)]
            np.testing.assert_array_equal(item["input_ids"], expected[0][window])
            read = labels[_number(file, at, output)]["input_ids"].numpy().astype(np.uint16).view(np.int16)
            np.testing.assert_array_equal(read, expected[1][window])
            ends = np.flatnonzero(expected[0][window] == SEPARATOR)
            assert all(item["positions"][end + 1] == 0 for end in ends if end + 1 < 128)
            at += 128
        at = 0


def _tokens_in(output: Path, shard: int) -> int:
    return sorted((output / "tokens").glob("*.ds"))[shard].stat().st_size // 2


def _number(first: int, at: int, output: Path) -> int:
    """Return the number of a window, counting the whole windows of the files before it."""
    before = 0
    for shard in range(3):
        tokens = _tokens_in(output, shard)
        if first == 0:
            break
        first -= tokens
        before += tokens // 128
    return before + at // 128


def test_olmo_core_reads_tokens_labels_and_masks(
    run_command: RunCommand, dataset: Path, expected: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    data = pytest.importorskip("olmo_core.data", reason="OLMo-core is not installed")
    output = exported(run_command, dataset, tmp_path / "out", "olmo-core", "--train-to", 4.0)
    masks = sorted((output / "mask").glob("*.npy"))
    for part, values in (("tokens", expected[0]), ("entropy", expected[1].view(np.uint16))):
        settings: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 0, "vocab_size": 8192, "dtype": np.uint16}
        files = sorted((output / part).glob("*.npy"))
        read = data.NumpyFSLDataset(*files, sequence_length=64, label_mask_paths=masks, **settings)
        read.prepare()
        sizes = [file.stat().st_size // 2 for file in files]
        starts = np.cumsum([0, *sizes])
        at = [start + 64 * k for start, size in zip(starts, sizes, strict=False) for k in range(size // 64)]
        assert len(read) == len(at)
        for number, start in enumerate(at):
            window = slice(start, start + 64)
            np.testing.assert_array_equal(read[number]["input_ids"].numpy(), values[window])
            wanted = (expected[1][window] == NO_LABEL) | (expected[1][window] <= 4 * 128)
            np.testing.assert_array_equal(read[number]["label_mask"].numpy(), wanted)


def test_megatron_reads_every_document_with_its_labels(
    run_command: RunCommand, dataset: Path, documents: tuple[list[list[int]], list[list[float]]], tmp_path: Path
) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="Megatron-core is not installed")
    output = exported(run_command, dataset, tmp_path / "out", "megatron", "--train-to", 4.0)
    kept = [(row, nats) for row, nats in zip(*documents, strict=True) if row]
    names = sorted(file.with_suffix("") for file in (output / "tokens").glob("*.bin"))
    read = [indexed.IndexedDataset(str(name)) for name in names]
    labels = [indexed.IndexedDataset(str(output / "entropy" / name.name)) for name in names]
    masks = [indexed.IndexedDataset(str(output / "mask" / name.name)) for name in names]
    assert sum(map(len, read)) == len(kept)
    every = zip(chain.from_iterable(read), chain.from_iterable(labels), chain.from_iterable(masks), kept, strict=True)
    for ids, units_T, mask, (row, nats) in every:
        assert ids.tolist() == [*row, SEPARATOR] and units_T.dtype == np.int16
        assert units_T.tolist() == [NO_LABEL if np.isnan(unit) else unit for unit in (*nats, np.nan)]
        assert mask.tolist() == [unit == NO_LABEL or unit <= 512 for unit in units_T.tolist()]
    assert read[0].document_indices.tolist() == [*range(len(read[0]) + 1)]


def test_the_index_of_megatron_has_its_layout() -> None:
    """By hand: header, version 1, code of uint16, 2 sequences, 3 borders, lengths, first bytes, borders."""
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


def test_an_interrupted_export_writes_only_what_is_missing(
    run_command: RunCommand, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = exported(run_command, dataset, tmp_path / "out", "megatron")
    printed = capsys.readouterr().out
    lost = sorted((output / "done").glob("*.json"))[1]
    lost.unlink()
    kept = {
        file: file.stat().st_mtime_ns for file in output.rglob("*") if lost.stem not in file.name and file.is_file()
    }
    content = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    (output / "tokens" / ".left.unfinished").touch()
    exported(run_command, dataset, output, "megatron")
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
def test_labels_become_the_nearest_unit_and_missing_ones_are_told_apart(nats: list[float]) -> None:
    nats_N = np.array(nats, np.float32)
    labels_N = units(nats_N)
    missing_N = np.isnan(nats_N)
    assert (labels_N[missing_N] == NO_LABEL).all() and (labels_N[~missing_N] > NO_LABEL).all()
    assert (np.abs(labels_N[~missing_N] / 128 - nats_N[~missing_N]) <= 1 / 256).all()
    everything = TrainedRange(NO_LABEL, MOST_UNITS)
    assert everything.mask(labels_N).all()


def test_a_label_beyond_16_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="a label of 300 nats does not fit into 16 bits"):
        units(np.array([1.0, 300.0], np.float32))
