"""Source documents of a sidecar, combined with the sidecar's labels. A sidecar has labels without their documents.

The documents are read from the files that were labelled. These files may be in another folder, but each document must
be in the same file and row as when it was labelled. If documents have been moved to other files or rows,
`pipeline.join` combines them with their labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from pipeline.data.documents import Column, document_tokens, inspect_file, read_rows, unified
from pipeline.data.files import File, pinned
from pipeline.data.inputs import find_documents
from pipeline.data.shards import token_lists
from pipeline.data.sidecar_keys import digests
from pipeline.data.tokenizer import load_tokenizer
from schemas.annotations import INPUT_IDS, Provenance, annotated_schema
from schemas.sidecars import DIGEST, SOURCE_FILE, SOURCE_ROW

JOIN = "join the labels to the documents with pipeline.join"


@dataclass(frozen=True)
class SourceDocuments:
    """Files of documents, with everything that is needed to read and to tokenize the documents."""

    files: tuple[File, ...]
    schema: pa.Schema
    """Columns of all files."""
    column: Column
    tokenizer: Tokenizer | None
    """Tokenizer of the labels, or None if the documents are token ids."""
    vocabulary: int

    @classmethod
    def find(cls, named: str, provenance: Provenance, tokenizer: Path | None) -> "SourceDocuments":
        """Find the documents that a path, glob, folder or URL names.

        Raises:
            ValueError: if there are no documents, or the sidecar has no tokenizer for their text.
            ValueError, OSError: as find_documents, inspect_file and unified do.
        """
        if provenance.tokenizer_sha256 is not None and tokenizer is None:
            raise ValueError("the sidecar lacks the tokenizer of its labels; annotate its documents again")
        files = find_documents(pinned([named])).files
        column = column_of(provenance)
        infos = [inspect_file(file, column) for file in files]
        return cls(
            tuple(files),
            unified(infos, files, column),
            column,
            None if provenance.tokenizer_sha256 is None or tokenizer is None else load_tokenizer(tokenizer),
            provenance.vocabulary,
        )

    def annotated_schema(self, provenance: Provenance) -> pa.Schema:
        """Return the columns of the documents, their token ids and their labels.

        Raises:
            ValueError: if a column of the documents has the name of a column of labels.
        """
        return annotated_schema(self.schema, replace(provenance, sidecar=False, keep_text=True, columns=None))

    def with_labels(self, labels: pa.Table, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a sidecar with the columns of `schema`.

        The columns are read from the documents or taken from `labels`, the rows of the sidecar.

        Raises:
            ValueError: if a document is not the one that was labelled, or its file is not found.
            ValueError, OSError: as read_rows does.
        """
        read = pa.schema([field for field in self.schema if field.name in {self.column.name, *schema.names}])
        for part in _consecutive(labels):
            file, start = self.file(part.column(SOURCE_FILE)[0].as_py()), part.column(SOURCE_ROW)[0].as_py()
            done = 0
            for rows in read_rows(file, start, start + len(part), read, self.column):
                own = part.slice(done, len(rows))
                _require_labelled(own, digests(rows.column(self.column.name)), file)
                yield self._batch(rows, own, schema)
                done += len(rows)
            if done < len(part):
                raise ValueError(f"{file.url} ends before row {start + done}, which was labelled; {JOIN}")

    def file(self, labelled: str) -> File:
        """Return the file of documents that was labelled under the path `labelled`.

        The folders above the files may have changed. A file is therefore found if its path ends with `labelled`, or if
        `labelled` ends with the path of the file.

        Raises:
            ValueError: if no file is found, or more than one.
        """
        found = [file for file in self.files if _ends_in(file.path, labelled) or _ends_in(labelled, file.path)]
        if len(found) != 1:
            raise ValueError(f"{len(found) or 'none'} of the documents' files is the labelled {labelled}; {JOIN}")
        return found[0]

    def _batch(self, rows: pa.RecordBatch, labels: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
        columns = {name: rows.column(name) for name in rows.schema.names}
        columns |= {name: labels.column(name).combine_chunks() for name in labels.column_names}
        if INPUT_IDS in schema.names:
            columns[INPUT_IDS] = token_lists(document_tokens(rows, self.column, self.tokenizer, self.vocabulary))
        kept = [columns[name].cast(schema.field(name).type) for name in schema.names]
        return pa.RecordBatch.from_arrays(kept, schema=schema)


def column_of(provenance: Provenance) -> Column:
    """Return the column of the source that holds the labelled documents."""
    tokenized = provenance.tokenizer_sha256 is None
    return Column(provenance.text_column, tokenized=tokenized, longest=provenance.longest_document)


def _consecutive(labels: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows of a sidecar in parts. The documents of a part are consecutive rows of one file."""
    if not len(labels):
        return
    files = labels.column(SOURCE_FILE).combine_chunks().dictionary_encode().indices.to_numpy()
    rows = labels.column(SOURCE_ROW).to_numpy()
    breaks = np.flatnonzero((np.diff(files) != 0) | (np.diff(rows) != 1)) + 1
    for start, stop in zip([0, *breaks], [*breaks, len(labels)], strict=True):
        yield labels.slice(start, stop - start)


def _require_labelled(labels: pa.Table, found: pa.Array, file: File) -> None:
    for row, (labelled, digest) in enumerate(zip(labels.column(DIGEST).to_pylist(), found.to_pylist(), strict=True)):
        if labelled != digest:
            number = labels.column(SOURCE_ROW)[row].as_py()
            raise ValueError(f"row {number} of {file.url} is not the document that was labelled; {JOIN}")


def _ends_in(path: str, end: str) -> bool:
    return path == end or path.endswith(f"/{end}")
