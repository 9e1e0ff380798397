"""Training data: documents in files, tokenized, and documents of annotated datasets in a model's tokens.

`DocumentSettings` reads the first for estimators and autoencoders, `LabelledDocuments` the second for language models.

W windows, T tokens of a window, N tokens.
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
from pipeline.data.packing import PackedWindow, Packing
from pipeline.data.tokenizer import (
    TokenSource,
    beginning_token,
    id_count,
    load_tokenizer,
    token_source,
    tokenizer_sha256,
)
from pipeline.labels.retokenize import retokenized
from schemas.annotations import ENTROPY, INPUT_IDS
from schemas.rows import TEXT_COLUMN, TOKENS_COLUMN


@dataclass(frozen=True)
class Documents:
    """Documents to train on and, apart from them, to evaluate on."""

    seen: Corpus | DocumentStream
    held_out: Corpus
    source: TokenSource
    decisive: dict[str, Any]
    """Everything here that a model depends on: the settings, and what they led to."""

    @property
    def blocks(self) -> Iterable[Corpus]:
        """The corpora of an epoch, one after the other."""
        return [self.seen] if isinstance(self.seen, Corpus) else self.seen

    def leave_one_fold_out(self, folds: int) -> Iterator["Documents"]:
        """Without each fold of `seen` in turn; all of it where there is one fold.

        Raises:
            ValueError: as Corpus.leave_one_fold_out does; a stream's folds are not checked.
        """
        for part in self.seen.leave_one_fold_out(folds):
            yield replace(self, seen=part)

    @property
    def facts(self) -> dict[str, object]:
        """Rows of a model card."""
        held_out = f"{_counted(self.held_out)}, never trained on"
        if isinstance(self.seen, Corpus):
            return {"trained on": _counted(self.seen), "held out": f"the last {held_out}"}
        at_a_time = f"about {self.decisive['stream']:,} tokens at a time"
        return {"trained on": f"{len(self.seen.files):,} files, {at_a_time}", "held out": f"the first {held_out}"}


@dataclass(frozen=True, kw_only=True)
class DocumentSettings(Inputs):
    """Which documents, and how they become tokens."""

    input: tuple[str, ...]
    """Documents, as --input of pipeline.annotate takes them: Parquet, JSON lines or text files, folders, globs or URLs
    of these (hf://datasets/user/name, https://, s3://); with --tokenizer none, of a column `input_ids`."""
    tokenizer: str
    """Folder of the tokenizer, or `none` for documents tokenized already."""
    vocabulary: int | None = None
    """Number of token ids, with --tokenizer none."""
    text_column: str = TEXT_COLUMN
    """Name of the column that holds the text."""
    limit: int | None = None
    """Read at most this many documents."""
    held_out: int | None = None
    """Last documents to evaluate on and never train on; one in twenty, 500 at the most, by default. With --stream the
    first ones, 500 by default, since the last are not known before all are read."""
    stream: int | None = None
    """Tokens to hold in memory, and to shuffle, at a time, about so many; all of them by default. The next ones are
    read and tokenized meanwhile, by all processes together."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "limit", "stream", "longest_document")

    def read(self) -> Documents:
        """The documents: all of them, or those that are held out and a stream of the others.

        Raises:
            ValueError: if the files, the tokenizer or the documents are not as they must be.
            OSError: if a disk or a store cannot be reached now.
        """
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
        # torch takes seconds, which --help does not need
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
    """The tokens of a model that is trained on a dataset."""

    folder: Path | None
    """The tokenizer's; None where the dataset's source came tokenized."""
    vocabulary: int
    separator: int
    moved: bool
    """True if the dataset has other tokens, from which labels move to these through the bytes that both cover."""

    @classmethod
    def of(cls, dataset: AnnotatedDataset, tokenizer: Path | None) -> "ModelTokens":
        """The tokens of the tokenizer in that folder, or the dataset's own where it is None.

        Raises:
            ValueError: if the dataset's source came tokenized, so that it has no text to tokenize anew.
        """
        if tokenizer is not None and dataset.tokenizer is None:
            raise ValueError("`tokenizer` needs labels of text; these documents came as tokens")
        folder, vocabulary = tokenizer or dataset.tokenizer, dataset.vocabulary
        if folder is None:  # the separator is one id more
            return cls(None, vocabulary, vocabulary, moved=False)
        vocabulary = id_count(load_tokenizer(folder))
        return cls(folder, vocabulary, beginning_token(folder), moved=tokenizer is not None)

    def read(self, inputs: Sequence[str]) -> Corpus:
        """Other text in these tokens, without labels, from files as `find_documents` takes them.

        Raises:
            ValueError: if there is none, or no tokenizer to read it with.
        """
        if self.folder is None:
            raise ValueError("`out_of_distribution` needs a tokenizer, and these documents came as tokens")
        found, tokenizer = find_documents(inputs), load_tokenizer(self.folder)
        found.tell()
        return require_tokens(
            read_corpus(found.files, column=Column(), tokenizer=tokenizer, vocabulary=self.vocabulary)
        )


class Block(NamedTuple):
    """Neighbouring documents of an epoch."""

    windows: PackedWindow
    """[W, T], in the documents' order."""
    documents: int
    """Number of documents, those that are left out among them."""
    left_out: int
    """Documents whose labels cannot move to the model's tokens."""


@dataclass
class LabelledDocuments:
    """Documents `start` to `stop` of an annotated dataset as windows of a model's tokens, block by block."""

    dataset: AnnotatedDataset
    tokens: ModelTokens
    packing: Packing
    start: int
    stop: int
    at_a_time: int | None = None
    """Tokens in a block, or up to a document more; all of them where None, and then they stay in memory."""
    shuffled: int | None = None
    """Seed with which the labels of a block change places at random; None leaves them where they are."""
    _warned: bool = field(default=False, init=False)

    def __len__(self) -> int:
        return self.stop - self.start

    def blocks(self, done: int = 0) -> Iterator[Block]:
        """Epoch after epoch, without end, after so many documents of all epochs; an epoch begins with a block."""
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

    def held_out(self) -> PackedWindow:
        """All documents, to evaluate on.

        Raises:
            ValueError: if they are empty, or all left out.
        """
        block = self._block(require_tokens(self.dataset.corpus(self.start, self.stop)), 0)
        self._require_windows(block)
        return block.windows

    def labels(self) -> np.ndarray:
        """The labels there are in the first block with windows, in nats.

        Raises:
            ValueError: if no block has windows.
        """
        done = 0
        for block in self.blocks():
            done += block.documents
            if len(block.windows.input_ids_T) or done >= len(self):
                break
        self._require_windows(block)
        labels: np.ndarray = block.windows.entropy_T[~np.isnan(block.windows.entropy_T)]
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
        moved = retokenized(corpus, load_tokenizer(self.dataset.tokenizer), load_tokenizer(self.tokens.folder))
        left_out = len(corpus) - len(moved)
        if left_out and not self._warned:
            self._warned = True
            LOG.warning(
                "%s of %s documents, and later ones like them, are left out: their tokens are not those of their text,"
                " so that labels cannot move; annotate with `tokenizer` %s to have them",
                f"{left_out:,}",
                f"{len(corpus):,}",
                self.tokens.folder,
            )
        return moved

    def _require_windows(self, block: Block) -> None:
        if not len(block.windows.input_ids_T) and block.left_out:
            raise ValueError(
                f"no label of {self.dataset.source} moves to the tokens of {self.tokens.folder}: its documents' tokens"
                f" are not those of their text; annotate with `tokenizer` {self.tokens.folder}"
            )
        if not len(block.windows.input_ids_T):
            raise ValueError(f"there is nothing to train on: every document of {self.dataset.source} is empty")


def in_windows(corpus: Corpus, packing: Packing) -> PackedWindow:
    """The documents as windows [W, T], without labels where the corpus has none."""
    labels_N = np.full(len(corpus.tokens_N), np.nan, np.float32) if corpus.labels_N is None else corpus.labels_N
    return packing.all_windows(zip(corpus.by_document(corpus.tokens_N), corpus.by_document(labels_N), strict=True))
