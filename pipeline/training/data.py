"""Training data: tokenized documents from files, and annotated datasets tokenized as the model needs them.

`DocumentSettings` reads files for estimators and autoencoders. `LabelledDocuments` reads annotated datasets for
language models.

Shapes: W windows, T tokens of a window, N tokens.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.checks import require_at_least_one
from pipeline.data.annotated import AnnotatedDataset, Row
from pipeline.data.corpus import (
    MOST_HELD_OUT,
    Corpus,
    DocumentStream,
    ProcessShare,
    held_out_documents,
    read_corpus,
    require_tokens,
)
from pipeline.data.documents import Column
from pipeline.data.files import File, pinned
from pipeline.data.inputs import Inputs, find_documents
from pipeline.data.loader import Position, Reading, labelled_rows
from pipeline.data.packing import Packing
from pipeline.data.tokenizer import (
    TokenSource,
    beginning_token,
    id_count,
    load_tokenizer,
    token_source,
    tokenizer_sha256,
)
from pipeline.labels.retokenize import retokenized
from pipeline.training.held_windows import HeldWindows
from schemas.annotations import ENTROPY, INPUT_IDS
from schemas.rows import TEXT_COLUMN, TOKENS_COLUMN


@dataclass(frozen=True)
class Documents:
    """Documents to train on, and held-out documents to evaluate on."""

    seen: Corpus | DocumentStream
    held_out: Corpus
    source: TokenSource
    decisive: dict[str, Any]
    """Values, by name, that determine the documents and so the trained model: settings, inputs, tokenizer, counts."""

    @property
    def blocks(self) -> Iterable[Corpus]:
        """All documents to train on in one epoch: a list of one corpus, or a stream of several corpora."""
        return [self.seen] if isinstance(self.seen, Corpus) else self.seen

    def leave_one_fold_out(self, folds: int) -> Iterator["Documents"]:
        """Divide `seen` into cross-validation folds, and yield one copy per fold, whose `seen` lacks that fold.

        With only one fold, yield one copy with all documents. The held-out documents are the same in all copies.

        Raises:
            ValueError: if a fold of a corpus has no document. The folds of a stream are not checked.
        """
        for part in self.seen.leave_one_fold_out(folds):
            yield replace(self, seen=part)

    @property
    def facts(self) -> dict[str, object]:
        """Rows of the model card's table that describe the documents: values by row title."""
        held_out = f"{_counted(self.held_out)}, never trained on"
        if isinstance(self.seen, Corpus):
            return {"trained on": _counted(self.seen), "held out": f"the last {held_out}"}
        at_a_time = f"about {self.decisive['stream']:,} tokens at a time"
        return {"trained on": f"{len(self.seen.files):,} files, {at_a_time}", "held out": f"the first {held_out}"}


@dataclass(frozen=True, kw_only=True)
class DocumentSettings(Inputs):
    """Documents to read, and their tokenizer."""

    input: tuple[str, ...]
    """Documents, as in --input of pipeline.annotate: Parquet files, JSON lines or text files. Folders, globs and URLs
    of files work too (hf://datasets/user/name, https://, s3://). With --tokenizer none, the files need a column
    `input_ids` instead of text."""
    tokenizer: str | None = None
    """Tokenizer folder, or `none` for documents that are already tokenized. By default, the tokenizer of the language
    model to start from, if there is one."""
    vocabulary: int | None = None
    """Number of token ids. Required with --tokenizer none, otherwise taken from the tokenizer."""
    text_column: str = TEXT_COLUMN
    """Name of the column that holds the text."""
    limit: int | None = None
    """Read at most this many documents."""
    held_out: int | None = None
    """Hold out this many documents, the last ones, for evaluation only. Default: one in twenty, but at most 500. With
    --stream, the first documents are held out instead, 500 by default, since the last documents are unknown until all
    are read."""
    stream: int | None = None
    """Read and shuffle about this many tokens at a time, to save memory. During training, the processes share the work
    of reading and tokenizing the next documents. By default, all documents are read into memory before training."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "limit", "stream", "longest_document")

    def read(self) -> Documents:
        """Read the documents.

        Without `stream`, this reads all documents. With `stream`, this reads only the held-out documents, and training
        reads the other documents.

        Raises:
            ValueError: if the files, the tokenizer or the documents are invalid.
            OSError: if a disk or a store cannot be reached at the moment.
        """
        if self.tokenizer is None:
            raise ValueError("`tokenizer` is needed to read text; give a tokenizer's folder, or none for token ids")
        inputs, source = pinned(self.input), token_source(self.tokenizer, self.vocabulary)
        documents, sha256 = self.find(inputs), tokenizer_sha256(source.folder) if source.folder else None
        documents.tell()
        decisive = {**asdict(self), "input": inputs, **documents.decisive, "tokenizer_sha256": sha256}
        files = documents.files
        if self.stream is not None:
            stored = {"files": len(files), "stored_bytes": sum(file.size for file in files)}
            return self._streamed(files, source, self.stream, {**decisive, **stored})
        corpus = self._corpus(files, source, self.limit)
        found = {"documents": len(corpus), "tokens": len(corpus.tokens_N)}
        return Documents(*corpus.held_out(self.held_out), source, {**decisive, **found})

    def _streamed(self, files: Sequence[File], source: TokenSource, tokens: int, decisive: dict[str, Any]) -> Documents:
        # imported here because torch takes seconds, and --help does not need it
        from pipeline.training.distributed import gathered, this_process

        wanted = MOST_HELD_OUT if self.held_out is None else self.held_out
        one_more = wanted + 1 if self.limit is None else min(wanted + 1, self.limit)
        first = self._corpus(files, source, one_more)
        held_out = require_tokens(first.documents(0, held_out_documents(len(first), wanted)))
        size = len(held_out.tokens_N) if held_out.total_bytes is None else held_out.total_bytes
        process = this_process()
        stream = DocumentStream(
            files=files,
            column=self._column(source),
            tokenizer=source.tokenizer,
            vocabulary=source.vocabulary,
            block=max(1, round(tokens * size / len(held_out.tokens_N))),
            skip=wanted,
            limit=self.limit,
            sharing=ProcessShare(process.process_index, process.num_processes, gathered),
        )
        return Documents(stream, held_out, source, decisive)

    def _corpus(self, files: Sequence[File], source: TokenSource, limit: int | None) -> Corpus:
        return read_corpus(
            files,
            column=self._column(source),
            tokenizer=source.tokenizer,
            vocabulary=source.vocabulary,
            limit=limit,
        )

    def _column(self, source: TokenSource) -> Column:
        if source.tokenizer is None:
            return Column(TOKENS_COLUMN, tokenized=True, longest=self.longest)
        return Column(self.text_column, longest=self.longest)


def _counted(corpus: Corpus) -> str:
    return f"{len(corpus):,} documents, {len(corpus.tokens_N):,} tokens"


LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelTokens:
    """Tokenizer and vocabulary of a model that is trained on an annotated dataset."""

    folder: Path | None
    """Tokenizer folder; None if the dataset's source was already tokenized."""
    vocabulary: int
    separator: int
    moved: bool
    """True if the model's tokenizer differs from the dataset's. The nats of each of the dataset's tokens are then
    divided among the model's tokens that cover the same bytes."""

    @classmethod
    def of(cls, dataset: AnnotatedDataset, tokenizer: Path | None) -> "ModelTokens":
        """Return the tokenizer and vocabulary of a tokenizer folder, or those of the dataset if `tokenizer` is None.

        Raises:
            ValueError: if a tokenizer is given, but the dataset's source was already tokenized and has no text.
        """
        if tokenizer is not None and dataset.tokenizer is None:
            raise ValueError("`tokenizer` needs labels of text; these documents came as tokens")
        folder, vocabulary = tokenizer or dataset.tokenizer, dataset.vocabulary
        if folder is None:  # without a tokenizer, the separator gets a new id
            return cls(None, vocabulary, vocabulary, moved=False)
        vocabulary = id_count(load_tokenizer(folder))
        return cls(folder, vocabulary, beginning_token(folder), moved=tokenizer is not None)

    def read(self, inputs: Sequence[str]) -> Corpus:
        """Read and tokenize documents without labels. `inputs` are paths, globs or URLs, as for `find_documents`.

        Raises:
            ValueError: if the inputs have no text, or the model has no tokenizer.
        """
        if self.folder is None:
            raise ValueError("`out_of_distribution` needs a tokenizer, but these documents came as tokens")
        found, tokenizer = find_documents(inputs), load_tokenizer(self.folder)
        found.tell()
        return require_tokens(
            read_corpus(found.files, column=Column(), tokenizer=tokenizer, vocabulary=self.vocabulary)
        )


class Block(NamedTuple):
    """Group of consecutive documents of an epoch, packed into windows."""

    windows: HeldWindows
    """Windows [W, T], in the order of the documents."""
    documents: int
    """Number of documents in the block, including documents that are left out of the windows."""
    left_out: int
    """Number of documents left out of the windows, because their labels cannot be transferred to the model's tokens."""


@dataclass
class LabelledDocuments:
    """Documents [start, stop) of an annotated dataset, packed block by block into windows of a model's tokens."""

    dataset: AnnotatedDataset
    tokens: ModelTokens
    packing: Packing
    start: int
    stop: int
    at_a_time: int | None = None
    """Number of tokens in a block. A block ends with the document that reaches this number, or with the last document
    of an epoch. None puts all documents into one block, which stays in memory."""
    shuffled: int | None = None
    """Seed for shuffling the labels within each block; None keeps every label at its token."""
    _warned: bool = field(default=False, init=False)

    def __len__(self) -> int:
        return self.stop - self.start

    def blocks(self, done: int = 0) -> Iterator[Block]:
        """Yield blocks endlessly, epoch after epoch; each epoch begins with a new block.

        The first `done` documents, counted over all epochs, are skipped.

        Raises:
            ValueError, OSError: if the dataset cannot be read.
        """
        if self.at_a_time is None:
            yield from repeat(self.whole)
            return
        rows = labelled_rows(self.dataset, reading=Reading(start=self.start, stop=self.stop))
        rows.seek(Position(done))
        buffer, tokens = list[Row](), 0
        for number, row in enumerate(rows, done + 1):
            buffer.append(row)
            tokens += len(row[INPUT_IDS])
            if tokens >= self.at_a_time or number % len(self) == 0:
                corpus = Corpus.of([row[INPUT_IDS] for row in buffer], [row[ENTROPY] for row in buffer])
                first, buffer, tokens = number - len(buffer), [], 0
                yield self._block(corpus, first % len(self))

    @cached_property
    def whole(self) -> Block:
        """All documents in one block."""
        return self._block(self.dataset.corpus(self.start, self.stop), 0)

    def held_out(self) -> HeldWindows:
        """Return all documents, packed into windows [W, T], for evaluation.

        Raises:
            ValueError: if every document is empty, or left out because its labels cannot be transferred.
        """
        block = self._block(require_tokens(self.dataset.corpus(self.start, self.stop)), 0)
        self._require_windows(block)
        return block.windows

    def labels(self) -> np.ndarray:
        """Return an array of all labels in the first block that has windows, in nats, without missing labels.

        Raises:
            ValueError: if no block has windows.
        """
        done = 0
        for block in self.blocks():
            done += block.documents
            if len(block.windows.input_ids_T) or done >= len(self):
                break
        self._require_windows(block)
        nats = block.windows.entropy_T
        labels: np.ndarray = nats[~np.isnan(nats)]
        return labels

    def _block(self, corpus: Corpus, first: int) -> Block:
        moved = self._in_tokens(corpus)
        if self.shuffled is not None:
            moved = moved.with_shuffled_labels(np.random.default_rng([self.shuffled, first]))
        return Block(in_windows(moved, self.packing), len(corpus), len(corpus) - len(moved))

    def _in_tokens(self, corpus: Corpus) -> Corpus:
        if not self.tokens.moved:
            return corpus
        assert self.dataset.tokenizer is not None and self.tokens.folder is not None
        moved = retokenized(corpus, load_tokenizer(self.dataset.tokenizer), load_tokenizer(self.tokens.folder)).corpus
        left_out = len(corpus) - len(moved)
        if left_out and not self._warned:
            self._warned = True
            LOG.warning(
                "%s of %s documents, and later ones like them, are left out: their tokens do not match their text, so"
                " their labels cannot move; annotate with `tokenizer` %s to keep them",
                f"{left_out:,}",
                f"{len(corpus):,}",
                self.tokens.folder,
            )
        return moved

    def _require_windows(self, block: Block) -> None:
        if not len(block.windows.input_ids_T) and block.left_out:
            raise ValueError(
                f"no label of {self.dataset.source} can move to the tokens of {self.tokens.folder}: its documents'"
                f" tokens do not match their text; annotate with `tokenizer` {self.tokens.folder}"
            )
        if not len(block.windows.input_ids_T):
            raise ValueError(f"there is nothing to train on: every document of {self.dataset.source} is empty")


def in_windows(corpus: Corpus, packing: Packing) -> HeldWindows:
    """Pack a corpus into windows [W, T]. If the corpus has no labels, all labels of the windows are NaN."""
    labels_N = np.full(len(corpus.tokens_N), np.nan, np.float32) if corpus.labels_N is None else corpus.labels_N
    documents = zip(corpus.by_document(corpus.tokens_N), corpus.by_document(labels_N), strict=True)
    return HeldWindows.of(packing.all_windows(documents))
