"""Token files of other trainers, written batch by batch.

Ids are in the folder `tokens`. Labels are in the folder `entropy` in the same format, so that a trainer's own reader
gives both in the same windows. If only some tokens are trained on, masks are in `mask`.

- datatrove (nanotron): `.ds` with ids as uint16, or as uint32 if there are more than 65,536 ids; `.ds.index` with the
  end of each document as uint64. Masks are `.ds.loss` files next to the ids, one byte per token.
- OLMo-core: `.npy` files without a header, with ids as uint16 or uint32, and masks as bool for `label_mask_paths`.
- Megatron (indexed dataset, version 1): `.bin` with ids as uint16 if there are fewer than 65,500, otherwise as int32;
  `.idx` with a header and three arrays: each document's number of tokens, its offset in bytes in the `.bin`, and the
  indices of the documents. Masks are uint8.

Labels are int16, in units of 1/128 nat. Formats without signed numbers hold the same 16 bits.
"""

import struct
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.export.shard_files import ShardFiles
from pipeline.export.token_batches import TokenBatch

TOKENS, ENTROPY, MASK = "tokens", "entropy", "mask"
MEGATRON_HEADER, MEGATRON_VERSION = b"MMIDIDX\x00\x00", 1
MEGATRON_CODES = {"uint8": 1, "int16": 3, "int32": 4, "uint16": 8}
MEGATRON_16_BITS = 65_500


class TokenFiles(ShardFiles):
    """Files of the tokens, labels and masks of one shard in one format."""

    def __init__(self, output: Path, name: str, vocabulary: int, *, masked: bool) -> None:
        super().__init__(output, name)
        self.kinds = {TOKENS: self.id_type(vocabulary), ENTROPY: np.dtype("<i2")}
        if masked:
            self.kinds[MASK] = np.dtype("u1")
        self._lengths: list[np.ndarray] = []

    @staticmethod
    def id_type(vocabulary: int) -> np.dtype[Any]:
        """Return the type of token ids: 16 bits if all ids fit, otherwise 32 bits."""
        return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")

    @abstractmethod
    def path(self, part: str) -> Path:
        """Return the path of the file of a part (tokens, entropy or mask), relative to the output folder."""

    @abstractmethod
    def indexes(self, lengths_D: np.ndarray) -> Iterator[tuple[Path, bytes]]:
        """Yield the path and the content of each index file, given the lengths of all documents of the shard."""

    def write(self, batch: TokenBatch) -> None:
        """Write a batch of documents."""
        values = {TOKENS: batch.ids_N, ENTROPY: batch.labels_N, MASK: batch.trained_N}
        for part, kind in self.kinds.items():
            self._append(self.path(part), values[part].astype(kind).tobytes())
        self._lengths.append(batch.lengths_D)

    def finish(self) -> None:
        """Write the indexes, and give all files their final names."""
        for part in self.kinds:
            self._append(self.path(part), b"")  # a shard without documents has empty files
        for path, content in self.indexes(np.concatenate([np.empty(0, np.int64), *self._lengths])):
            self._append(path, content)
        super().finish()


class DatatroveFiles(TokenFiles):
    """Files that datatrove's `DatatroveFolderDataset` and nanotron read."""

    def path(self, part: str) -> Path:
        return Path(TOKENS, f"{self.name}.ds.loss") if part == MASK else Path(part, f"{self.name}.ds")

    def indexes(self, lengths_D: np.ndarray) -> Iterator[tuple[Path, bytes]]:
        for part in (TOKENS, ENTROPY):
            yield Path(f"{self.path(part)}.index"), np.cumsum(lengths_D).astype("<u8").tobytes()


class OlmoFiles(TokenFiles):
    """Files that OLMo-core's `NumpyFSLDataset` and related datasets read."""

    def path(self, part: str) -> Path:
        return Path(part, f"{self.name}.npy")

    def indexes(self, lengths_D: np.ndarray) -> Iterator[tuple[Path, bytes]]:
        yield from ()


class MegatronFiles(TokenFiles):
    """Files that Megatron's `IndexedDataset` reads."""

    @staticmethod
    def id_type(vocabulary: int) -> np.dtype[Any]:
        """Return the type of token ids that Megatron would choose."""
        return np.dtype("<u2" if vocabulary < MEGATRON_16_BITS else "<i4")

    def path(self, part: str) -> Path:
        return Path(part, f"{self.name}.bin")

    def indexes(self, lengths_D: np.ndarray) -> Iterator[tuple[Path, bytes]]:
        for part, kind in self.kinds.items():
            yield self.path(part).with_suffix(".idx"), megatron_index(lengths_D, kind)


def megatron_index(lengths_D: np.ndarray, kind: np.dtype[Any]) -> bytes:
    """Return the content of an `.idx` file, with one sequence per document."""
    first_D = np.cumsum(lengths_D) - lengths_D
    header = MEGATRON_HEADER + struct.pack("<QB", MEGATRON_VERSION, MEGATRON_CODES[kind.name])
    sizes = struct.pack("<QQ", len(lengths_D), len(lengths_D) + 1)
    arrays = (lengths_D.astype("<i4"), (first_D * kind.itemsize).astype("<i8"), np.arange(len(lengths_D) + 1))
    return header + sizes + b"".join(values.tobytes() for values in arrays)
