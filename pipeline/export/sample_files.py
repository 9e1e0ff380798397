"""Files in two formats, MosaicML Streaming and LitData, whose loaders shuffle and stream samples.

A sample is a document or a block of tokens. Its arrays have the same length: `input_ids` (uint16, or int32 above 65,536
ids), `entropy` (int16, in units of 1/128 nat) and, if only some tokens are trained on, `loss_mask` (uint8).

In both formats, a file begins with the number of samples and the borders of the samples. The borders are the byte
offset of each sample and the offset of the file's end. The samples come last. In MosaicML Streaming, a header stands
between the borders and the samples.

- MosaicML Streaming: MDS files, version 2, without compression. The header describes the columns. An array begins with
  its shape.
- LitData: chunks for `PyTreeLoader`, without compression.

`index.json` lists the files of all shards. It is written last, so an unfinished export cannot be read.
"""

import json
import struct
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import count, pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.atomic import write_text
from pipeline.export.shard_files import ShardFiles
from pipeline.export.token_batches import TokenBatch
from schemas.annotations import ENTROPY, INPUT_IDS

LOSS_MASK = "loss_mask"
INDEX_FILE = "index.json"
FILE_BYTES = 2**26
"""Maximum size of a file in bytes. Only a file with a single sample may be larger. The writers of MosaicML Streaming
and LitData use this size, too."""

MDS_VERSION = 2
MDS_LENGTHS = (("<BB", 2**8), ("<BH", 2**16), ("<BI", 2**32))
"""Formats of `struct` for the shape of an array, each with the smallest length that is too large for the format."""
LITDATA_CODES = {"int16": 1, "int32": 2, "uint8": 4, "uint16": 5}


class SampleFiles(ShardFiles):
    """Files of the samples of one shard in one format."""

    header = b""
    """Bytes that follow the list of the samples' borders and precede the samples."""

    def __init__(self, output: Path, name: str, vocabulary: int, *, masked: bool) -> None:
        super().__init__(output, name)
        self.kinds = {ENTROPY: np.dtype("<i2"), INPUT_IDS: np.dtype("<u2" if vocabulary <= 2**16 else "<i4")}
        if masked:
            self.kinds[LOSS_MASK] = np.dtype("u1")
        self._samples: list[bytes] = []
        self._bytes = self._written = 0

    @abstractmethod
    def path(self, name: str, number: int) -> Path:
        """Return the path of a file in the output folder, given the name of its shard and its number in the shard."""

    @abstractmethod
    def array(self, values: bytes, length: int) -> bytes:
        """Return an array as it is stored in a sample, given the bytes and the number of its values."""

    @abstractmethod
    def index(self, files: Sequence[tuple[str, int, int]]) -> dict[str, Any]:
        """Return the content of the index. A file is given as its name, its size in bytes and its number of samples."""

    def write(self, batch: TokenBatch) -> None:
        """Write each document or block of a batch as a sample."""
        for sample in self._encoded(batch):
            if self._samples and self._size(len(self._samples) + 1, self._bytes + len(sample)) > FILE_BYTES:
                self._write_file()
            self._samples.append(sample)
            self._bytes += len(sample)

    def finish(self) -> None:
        """Write the last file."""
        if self._samples:
            self._write_file()

    def write_index(self, names: Sequence[str]) -> None:
        """Write the index of the files of all shards, in the order of the shards."""
        files = [file for name in names for file in self._files_of(name)]
        write_text(self.output / INDEX_FILE, json.dumps(self.index(files)))

    def _encoded(self, batch: TokenBatch) -> Iterator[bytes]:
        """Yield the content of each sample: the sizes of its arrays in bytes, then the arrays."""
        values = {INPUT_IDS: batch.ids_N, ENTROPY: batch.labels_N, LOSS_MASK: batch.trained_N}
        columns = [(kind.itemsize, values[name].astype(kind).tobytes()) for name, kind in self.kinds.items()]
        sizes = struct.Struct(f"<{len(columns)}I")
        for start, stop in pairwise([0, *np.cumsum(batch.lengths_D).tolist()]):
            arrays = [self.array(column[start * size : stop * size], stop - start) for size, column in columns]
            yield b"".join([sizes.pack(*map(len, arrays)), *arrays])

    def _size(self, samples: int, size: int) -> int:
        """Return the size of a file in bytes, given the number of its samples and their total size in bytes."""
        return 4 * (samples + 2) + len(self.header) + size

    def _write_file(self) -> None:
        first = self._size(len(self._samples), 0)
        borders = np.cumsum([first, *map(len, self._samples)]).tolist()
        frame = struct.pack(f"<{len(borders) + 1}I", len(self._samples), *borders)
        self._append(self.path(self.name, self._written), b"".join([frame, self.header, *self._samples]))
        super().finish()
        self._samples, self._bytes, self._written = [], 0, self._written + 1

    def _files_of(self, name: str) -> Iterator[tuple[str, int, int]]:
        """Yield the name, the size in bytes and the number of samples of each file of a shard."""
        for file in takewhile(Path.is_file, (self.output / self.path(name, number) for number in count())):
            with file.open("rb") as stream:
                (samples,) = struct.unpack("<I", stream.read(4))
            yield file.name, file.stat().st_size, samples


class MdsFiles(SampleFiles):
    """Files that the `StreamingDataset` of MosaicML Streaming reads."""

    def __init__(self, output: Path, name: str, vocabulary: int, *, masked: bool) -> None:
        super().__init__(output, name, vocabulary, masked=masked)
        self._columns = {
            "column_encodings": [f"ndarray:{kind.name}" for kind in self.kinds.values()],
            "column_names": [*self.kinds],
            "column_sizes": [None] * len(self.kinds),
            "compression": None,
            "format": "mds",
            "hashes": [],
            "size_limit": FILE_BYTES,
            "version": MDS_VERSION,
        }
        self.header = json.dumps(self._columns, sort_keys=True).encode()

    def path(self, name: str, number: int) -> Path:
        return Path(f"shard.{name}.{number:05d}.mds")

    def array(self, values: bytes, length: int) -> bytes:
        code, packing = next((code, one) for code, (one, above) in enumerate(MDS_LENGTHS) if length < above)
        return struct.pack(packing, 1 << 2 | code, length) + values  # one dimension, and the type of its length

    def index(self, files: Sequence[tuple[str, int, int]]) -> dict[str, Any]:
        shards = [
            {
                **self._columns,
                "raw_data": {"basename": name, "bytes": size, "hashes": {}},
                "samples": samples,
                "zip_data": None,
            }
            for name, size, samples in files
        ]
        return {"shards": shards, "version": MDS_VERSION}


class LitdataFiles(SampleFiles):
    """Files that the `StreamingDataset` of LitData reads."""

    def path(self, name: str, number: int) -> Path:
        return Path(f"chunk-{name}-{number}.bin")

    def array(self, values: bytes, length: int) -> bytes:
        return values

    def index(self, files: Sequence[tuple[str, int, int]]) -> dict[str, Any]:
        leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
        fields = {"type": "builtins.dict", "context": json.dumps([*self.kinds])}
        config = {
            "chunk_bytes": FILE_BYTES,
            "chunk_size": None,
            "compression": None,
            "data_format": [f"no_header_numpy:{LITDATA_CODES[kind.name]}" for kind in self.kinds.values()],
            "data_spec": json.dumps([1, {**fields, "children_spec": [leaf] * len(self.kinds)}]),
            "encryption": None,
            "item_loader": "PyTreeLoader",
        }
        chunks = [
            {"chunk_bytes": size, "chunk_size": samples, "dim": None, "filename": name} for name, size, samples in files
        ]
        return {"chunks": chunks, "config": config}
