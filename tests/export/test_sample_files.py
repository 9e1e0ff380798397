"""Exports to MDS and LitData: every token is found with its label, by each library's reader and by a slow reader."""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.label_units import NO_LABEL
from pipeline.export import sample_files
from pipeline.export.sample_files import FILE_BYTES, LitdataFiles, MdsFiles, SampleFiles
from pipeline.export.token_batches import TokenBatch, in_blocks
from tests.annotated import write_annotated
from tests.conftest import RunCommand
from tests.export.conftest import Documents, exported

Sample = dict[str, np.ndarray]
KINDS: dict[str, type[SampleFiles]] = {"mds": MdsFiles, "litdata": LitdataFiles}
FIELDS = {"entropy": "<i2", "input_ids": "<u2", "loss_mask": "u1"}


def mosaic_streaming() -> Any:
    """Import MosaicML Streaming without torchvision, which it needs only for datasets of images."""
    sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))
    return pytest.importorskip("streaming", reason="MosaicML Streaming is not installed")


def litdata() -> Any:
    return pytest.importorskip("litdata", reason="LitData is not installed")


def read_by_mosaic_streaming(folder: Path) -> list[Sample]:
    return [*mosaic_streaming().StreamingDataset(local=str(folder), shuffle=False, batch_size=1)]


def read_by_litdata(folder: Path) -> list[Sample]:
    return [*litdata().StreamingDataset(str(folder), shuffle=False)]


def read_slowly(folder: Path) -> list[Sample]:
    """Return the samples of an MDS or LitData export. The slow parser uses neither the MDS nor the LitData library."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    mds = "shards" in index
    if mds:
        files = [shard["raw_data"]["basename"] for shard in index["shards"]]
        fields = index["shards"][0]["column_names"]
    else:
        files = [chunk["filename"] for chunk in index["chunks"]]
        fields = json.loads(json.loads(index["config"]["data_spec"])[1]["context"])
    samples = []
    for name in files:
        content = (folder / name).read_bytes()
        (count,) = struct.unpack_from("<I", content)
        borders = struct.unpack_from(f"<{count + 1}I", content, 4)
        assert borders[-1] == len(content)
        samples += [_sample(content[borders[k] : borders[k + 1]], fields, mds) for k in range(count)]
    return samples


def _sample(content: bytes, fields: list[str], mds: bool) -> Sample:
    at, sample = 4 * len(fields), {}
    for name, size in zip(fields, struct.unpack_from(f"<{len(fields)}I", content), strict=True):
        shape = 1 + (1 << (content[at] & 3)) if mds else 0
        sample[name] = np.frombuffer(content[at + shape : at + size], FIELDS[name])
        at += size
    assert at == len(content)
    return sample


READERS: dict[str, list[Callable[[Path], list[Sample]]]] = {
    "mds": [read_slowly, read_by_mosaic_streaming],
    "litdata": [read_slowly, read_by_litdata],
}
BY_ALL = pytest.mark.parametrize(
    ("kind", "read"), [(kind, read) for kind, readers in READERS.items() for read in readers]
)


@BY_ALL
def test_a_sample_is_a_document_with_its_labels_and_mask(
    run_command: RunCommand,
    dataset: Path,
    documents: Documents,
    tmp_path: Path,
    kind: str,
    read: Callable[[Path], list[Sample]],
) -> None:
    output = exported(run_command, dataset, tmp_path / "out", kind, "--train-to", 4.0)
    samples = read(output)
    for sample, (ids, units) in zip(samples, documents.separated, strict=True):
        assert {name: array.dtype.str for name, array in sample.items()} == {**FIELDS, "loss_mask": "|u1"}
        np.testing.assert_array_equal(sample["input_ids"], ids)
        np.testing.assert_array_equal(sample["entropy"], units)
        np.testing.assert_array_equal(sample["loss_mask"], (units == NO_LABEL) | (units <= 512))
    assert len([*output.glob("*.mds"), *output.glob("*.bin")]) == 3 and not [*output.rglob(".*")]


@BY_ALL
def test_a_sample_is_a_block_of_tokens(
    run_command: RunCommand,
    dataset: Path,
    documents: Documents,
    tmp_path: Path,
    kind: str,
    read: Callable[[Path], list[Sample]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = exported(run_command, dataset, tmp_path / "out", kind, "--block", 1024)
    samples = read(output)
    wanted, left = [], 0
    per_shard = -(-len(documents.ids) // 3)
    for first in range(0, len(documents.ids), per_shard):
        shard = Documents(documents.ids[first : first + per_shard], documents.units[first : first + per_shard])
        ids, units = (np.concatenate(rows) for rows in zip(*shard.separated, strict=True))
        wanted += [(ids[at : at + 1024], units[at : at + 1024]) for at in range(0, len(ids) - 1023, 1024)]
        left += len(ids) % 1024
    assert f"left out       {left:,} tokens at the ends of shards" in capsys.readouterr().out and left > 0
    for sample, (ids, units) in zip(samples, wanted, strict=True):
        assert [*sample] == ["entropy", "input_ids"]
        np.testing.assert_array_equal(sample["input_ids"], ids)
        np.testing.assert_array_equal(sample["entropy"], units)


def batch_of(lengths: list[int]) -> TokenBatch:
    """Return documents of these lengths. Ids are 0, 1, ...; labels are 0, -1, ...; every third token is trained on."""
    numbers_N = np.arange(sum(lengths))
    return TokenBatch(numbers_N, -numbers_N.astype(np.int16), numbers_N % 3 == 0, np.array(lengths), len(lengths))


def written(folder: Path, kind: str, lengths: list[int]) -> Path:
    with KINDS[kind](folder, "a", 65_536, masked=True) as files:
        files.write(batch_of(lengths))
        files.finish()
        files.write_index(["a"])
    return folder


def write_by_mosaic_streaming(samples: list[Sample], folder: Path) -> None:
    columns = {name: f"ndarray:{np.dtype(kind).name}" for name, kind in FIELDS.items()}
    with mosaic_streaming().MDSWriter(columns=columns, out=str(folder), size_limit=FILE_BYTES) as writer:
        for sample in samples:
            writer.write(sample)


def write_by_litdata(samples: list[Sample], folder: Path) -> None:
    litdata()
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=FILE_BYTES)
    for number, sample in enumerate(samples):
        writer.add_item(number, sample)
    writer.done()
    writer.merge(1)


@pytest.mark.parametrize(("kind", "write"), [("mds", write_by_mosaic_streaming), ("litdata", write_by_litdata)])
def test_the_writer_of_the_library_writes_the_same_bytes(
    kind: str, write: Callable[[list[Sample], Path], None], tmp_path: Path
) -> None:
    ours, theirs = written(tmp_path / "ours", kind, [3, 300, 70_000]), tmp_path / "theirs"
    write(read_slowly(ours), theirs)
    (file,), (other,) = ([*folder.glob("*.mds"), *folder.glob("*.bin")] for folder in (ours, theirs))
    assert file.read_bytes() == other.read_bytes()
    index, expected = ((folder / "index.json").read_text(encoding="utf-8") for folder in (ours, theirs))
    assert _within(json.loads(index), json.loads(expected.replace(other.name, file.name)))


def _within(part: Any, whole: Any) -> bool:
    """Return whether the JSON value `whole` has everything that `part` has."""
    if isinstance(part, dict):
        return all(name in whole and _within(value, whole[name]) for name, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(_within, part, whole))
    return bool(part == whole)


def test_mds_has_its_layout(tmp_path: Path) -> None:
    """An MDS file equals bytes that this test builds by hand from the format's layout.

    A file has the number of samples, the offset of each sample and of the file's end, a header, and the samples. A
    sample has the size of each array in bytes, and then the arrays. An array begins with a byte that stands for one
    dimension (4) and for a length of one byte (0). The length and the values follow.
    """
    (file,) = written(tmp_path, "mds", [2, 1]).glob("*.mds")
    content = file.read_bytes()
    first, second, end = struct.unpack_from("<3I", content, 4)
    assert content[:4] == b"\2\0\0\0" and end == len(content)
    assert json.loads(content[16:first])["column_encodings"] == ["ndarray:int16", "ndarray:uint16", "ndarray:uint8"]
    assert content[first:second] == (b"\6\0\0\0\6\0\0\0\4\0\0\0" + b"\4\2\0\0\xff\xff" + b"\4\2\0\0\1\0" + b"\4\2\1\0")
    assert content[second:] == b"\4\0\0\0\4\0\0\0\3\0\0\0" + b"\4\1\xfe\xff" + b"\4\1\2\0" + b"\4\1\0"


def test_litdata_has_its_layout(tmp_path: Path) -> None:
    """A LitData file equals bytes that this test builds by hand from the format's layout.

    A file has the number of samples, the offset of each sample and of the file's end, and the samples. A sample has the
    size of each array in bytes, and then the values of all arrays.
    """
    (file,) = written(tmp_path, "litdata", [2, 1]).glob("*.bin")
    assert file.read_bytes() == (
        struct.pack("<4I", 2, 16, 38, 55)
        + (b"\4\0\0\0\4\0\0\0\2\0\0\0" + b"\0\0\xff\xff" + b"\0\0\1\0" + b"\1\0")
        + (b"\2\0\0\0\2\0\0\0\1\0\0\0" + b"\xfe\xff" + b"\2\0" + b"\0")
    )


@BY_ALL
def test_a_shard_has_several_files_if_one_would_be_too_large(
    kind: str, read: Callable[[Path], list[Sample]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_files, "FILE_BYTES", 2000)
    lengths = [100, 100, 900, 5, 300, 1, 1]
    samples = read(written(tmp_path, kind, lengths))
    assert np.concatenate([sample["input_ids"] for sample in samples]).tolist() == [*range(sum(lengths))]
    assert [len(sample["entropy"]) for sample in samples] == lengths
    sizes = [file.stat().st_size for file in (*tmp_path.glob("*.mds"), *tmp_path.glob("*.bin"))]
    assert len(sizes) >= 3 and sorted(sizes)[-2] <= 2000 < max(sizes)


def test_ids_above_16_bits_take_32(run_command: RunCommand, tmp_path: Path) -> None:
    large = write_annotated(tmp_path / "large", [[70_000, 5]], [[1.0, 2.0]], tokenizer_sha256=None)
    for kind, encoding in (("mds", "ndarray:int32"), ("litdata", "no_header_numpy:2")):
        output = exported(run_command, large, tmp_path / kind, kind, "--separator", 70_001)
        assert encoding in (output / "index.json").read_text(encoding="utf-8")
        (file,) = [*output.glob("*.mds"), *output.glob("*.bin")]
        assert file.read_bytes().endswith(np.array([70_000, 5, 70_001], "<i4").tobytes())


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(1, 30), max_size=5), max_size=5), st.integers(1, 40))
def test_blocks_are_the_joined_tokens_cut_into_pieces(batches: list[list[int]], block: int) -> None:
    given_batches = [batch_of(lengths) for lengths in batches]
    cut = [*in_blocks(iter(given_batches), block)]
    total = sum(map(sum, batches))
    for field in ("ids_N", "labels_N", "trained_N"):
        whole = np.concatenate([np.empty(0), *(getattr(batch, field) for batch in given_batches)])
        pieces = np.concatenate([getattr(batch, field) for batch in cut])
        np.testing.assert_array_equal(pieces, whole[: total // block * block])
    lengths = np.concatenate([batch.lengths_D for batch in cut])
    assert (lengths == block).all() and len(lengths) == total // block
    assert sum(batch.unfilled for batch in cut) == total % block
    assert sum(batch.documents for batch in cut) == sum(map(len, batches))
