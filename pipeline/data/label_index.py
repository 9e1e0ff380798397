"""Index of a sidecar: the row of each document's labels, found by the document's id and digest, in any order.

The index needs 40 bytes of memory per labelled document, or 32 bytes if ids are not used. Labels are read by row group,
and the row groups that were used last stay in memory, up to a limit.

Shapes: M rows of the sidecar, B documents to look up.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.annotated import AnnotatedDataset
from pipeline.data.loader import RowRange, row_groups
from schemas.rows import ID_COLUMN
from schemas.sidecars import DIGEST, DIGEST_BYTES, STORED_IN_SIDECARS, has_id

UNKNOWN, CHANGED = -1, -2
"""Results of a search that finds no row. UNKNOWN: the document was not labelled. CHANGED: another text was labelled
under the document's id."""
NO_DIGEST = bytes(DIGEST_BYTES)
NO_KEYS = np.empty(0, np.uint64)


@dataclass(frozen=True)
class LabelIndex:
    """Rows of a sidecar, sorted by the keys of their documents."""

    has_ids: bool
    """True if documents are found by id and digest; False if they are found by digest alone."""
    keys_M: np.ndarray
    """Keys in increasing order, uint64."""
    rows_M: np.ndarray
    """Row of each key, int64. Rows with the same key are in increasing order."""
    digests_M2: np.ndarray
    """Digest of each row of the sidecar, as two uint64."""
    ids_M: np.ndarray
    """Hashes of all ids, sorted, uint64; empty if `has_ids` is False."""

    @classmethod
    def of(cls, sidecar: AnnotatedDataset, source: pa.Schema) -> "LabelIndex":
        """Read the keys of a sidecar. Ids are used if both the sidecar and the source have them.

        Raises:
            ValueError, OSError: as `AnnotatedDataset.batches` does.
        """
        has_ids = ID_COLUMN in sidecar.schema.names and has_id(source)
        names = (DIGEST, *((ID_COLUMN,) if has_ids else ()))
        digests, keys, ids = [NO_KEYS.reshape(0, 2)], [NO_KEYS], [NO_KEYS]
        for batch in sidecar.batches(names):
            digests_B2 = _numbers(batch.column(DIGEST))
            of_ids = _id_hashes(batch.column(ID_COLUMN)) if has_ids else None
            digests.append(digests_B2)
            keys.append(_keys(digests_B2, of_ids))
            ids += [] if of_ids is None else [of_ids]
        keys_M = np.concatenate(keys)
        rows_M = np.argsort(keys_M, kind="stable")
        return cls(has_ids, keys_M[rows_M], rows_M, np.concatenate(digests), np.unique(np.concatenate(ids)))

    def rows(self, digests: pa.Array, ids: pa.Array | None) -> np.ndarray:
        """Return the sidecar's row for each document, or UNKNOWN or CHANGED, int64 [B].

        `digests` are the documents' digests, as `sidecar_keys.digests` computes them. `ids` are the documents' ids, and
        are ignored if `has_ids` is False.
        """
        digests_B2 = _numbers(digests)
        of_ids = _id_hashes(ids) if self.has_ids and ids is not None else None
        wanted_B = _keys(digests_B2, of_ids)
        at_B = np.searchsorted(self.keys_M, wanted_B)
        found_B = np.full(len(wanted_B), UNKNOWN)
        open_B = np.ones(len(wanted_B), dtype=bool)
        while open_B.any():  # twice, unless different documents have the same key
            open_B[open_B] = at_B[open_B] < len(self.keys_M)
            open_B[open_B] = self.keys_M[at_B[open_B]] == wanted_B[open_B]
            rows = self.rows_M[at_B[open_B]]
            same = (self.digests_M2[rows] == digests_B2[open_B]).all(axis=1)
            found_B[np.flatnonzero(open_B)[same]] = rows[same]
            open_B[open_B] = ~same
            at_B += 1
        if of_ids is not None:
            found_B[(found_B == UNKNOWN) & np.isin(of_ids, self.ids_M)] = CHANGED
        return found_B


@dataclass
class StoredLabels:
    """Labels of a sidecar, which are looked up by row.

    The row groups that were used last stay in memory, up to `memory` bytes.
    """

    sidecar: AnnotatedDataset
    memory: int
    reads: int = field(default=0, init=False)
    """Number of row groups that were read."""
    _held: OrderedDict[int, pa.Table] = field(default_factory=OrderedDict, init=False)

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema([each for each in self.sidecar.schema if each.name in STORED_IN_SIDECARS])

    @cached_property
    def groups(self) -> tuple[RowRange, ...]:
        return tuple(row_groups([info.groups for info in self.sidecar.infos]))

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of each row group, counted over all shards, followed by the total number of rows."""
        return np.append(0, np.cumsum([*map(len, self.groups)]))

    def take(self, rows_B: np.ndarray) -> pa.Table:
        """Return the labels of the sidecar's rows `rows_B`, in the order of `rows_B`. A negative row gets nulls.

        Raises:
            ValueError, OSError: as `AnnotatedDataset.read` does.
        """
        group_B = np.searchsorted(self.starts, rows_B, side="right") - 1
        order_B = np.argsort(group_B, kind="stable")
        parts = [self.schema.empty_table()]
        for group in np.unique(group_B):
            wanted = rows_B[order_B][group_B[order_B] == group]
            if group < 0:
                parts.append(pa.table([pa.nulls(len(wanted), each.type) for each in self.schema], schema=self.schema))
            else:
                parts.append(self._group(int(group)).take(pa.array(wanted - self.starts[group])))
        inverse = np.empty_like(order_B)
        inverse[order_B] = np.arange(len(order_B))
        taken = pa.concat_tables(parts)
        return taken if np.array_equal(order_B, inverse) else taken.take(pa.array(inverse))

    def _group(self, group: int) -> pa.Table:
        if group not in self._held:
            rows = self.groups[group]
            batches = self.sidecar.read(self.sidecar.shards[rows.shard], rows.start, rows.stop, self.schema)
            table = pa.Table.from_batches(batches, self.schema).combine_chunks()
            self.reads += 1
            while self._held and sum(each.nbytes for each in self._held.values()) + table.nbytes > self.memory:
                self._held.popitem(last=False)
            self._held[group] = table
        self._held.move_to_end(group)
        return self._held[group]


def _numbers(digests: pa.Array) -> np.ndarray:
    """Return each digest as two numbers, uint64 [B, 2]. A null becomes two zeros."""
    filled = pc.fill_null(digests, pa.scalar(NO_DIGEST, digests.type)).to_pylist()
    return np.frombuffer(b"".join(filled), "<u8").reshape(-1, 2)


def _id_hashes(ids: pa.Array) -> np.ndarray:
    """Return the first 8 bytes of the SHA-256 of each id as text, uint64 [B]. A null counts as an empty text."""
    texts = pc.fill_null(pc.cast(ids, pa.string()), "").to_pylist()
    return np.frombuffer(b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts), "<u8")


def _keys(digests_B2: np.ndarray, of_ids_B: np.ndarray | None) -> np.ndarray:
    """Return a key for each document, uint64 [B], made from its digest and, if `of_ids_B` is given, its id's hash."""
    keys_B: np.ndarray = digests_B2[:, 0] if of_ids_B is None else digests_B2[:, 0] ^ of_ids_B
    return keys_B
