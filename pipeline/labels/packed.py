"""An annotated dataset as a language model reads it: in the model's tokens, packed, all at once or piece by piece.

Before each document stands a separator, which has no label; a token's label stays at its token.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.data.annotated import AnnotatedDataset
from pipeline.data.corpus import Corpus, read_corpus, require_tokens
from pipeline.data.documents import Column
from pipeline.data.inputs import find_documents
from pipeline.data.tokenizer import beginning_token, id_count, load_tokenizer
from pipeline.labels.retokenize import retokenized

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelTokens:
    """The tokens of a model that is trained on a dataset."""

    folder: Path | None
    """The tokenizer's; None where the dataset's source came tokenized."""
    vocabulary: int
    separator: int
    moved: bool
    """Whether the dataset's tokens are others, so that labels move to these through the bytes that both cover."""

    @classmethod
    def of(cls, dataset: AnnotatedDataset, tokenizer: Path | None) -> "ModelTokens":
        """The tokenizer's in that folder, or the dataset's own where none is named.

        Raises:
            ValueError: if the dataset's source came tokenized, so that it has no text to tokenize anew.
        """
        if tokenizer is not None and dataset.tokenizer is None:
            raise ValueError("--tokenizer needs labels of text; these documents came as tokens")
        folder, vocabulary = tokenizer or dataset.tokenizer, dataset.vocabulary
        if folder is None:  # the separator is one id more
            return cls(None, vocabulary, vocabulary, moved=False)
        vocabulary = id_count(load_tokenizer(folder))
        return cls(folder, vocabulary, beginning_token(folder), moved=tokenizer is not None)

    def read(self, inputs: Sequence[str]) -> Corpus:
        """Other text, in files as `find_documents` takes them, in these tokens and without labels.

        Raises:
            ValueError: if there is none, or no tokenizer to read it with.
        """
        if self.folder is None:
            raise ValueError("--out-of-distribution needs a tokenizer, and these documents came as tokens")
        found, tokenizer = find_documents(inputs), load_tokenizer(self.folder)
        found.tell()
        return require_tokens(
            read_corpus(found.files, column=Column(), tokenizer=tokenizer, vocabulary=self.vocabulary)
        )


@dataclass(frozen=True)
class PackedDocuments:
    """Documents `start` to `stop` as packed corpora, again each time that they are iterated over.

    Those whose labels cannot move to other tokens are left out and counted, and said once.
    """

    dataset: AnnotatedDataset
    tokens: ModelTokens
    start: int
    stop: int
    at_a_time: int | None = None
    """Tokens in a corpus; all of them where None, and then they stay in memory."""
    shuffled: int | None = None
    """Seed with which each label goes to a token of chance; None leaves them where they are."""
    kept: list[Corpus] = field(default_factory=list)
    left_out_of: dict[int, int] = field(default_factory=dict)
    """Documents left out of each piece that was read."""

    @property
    def left_out(self) -> int:
        """Documents that were left out so far, each counted once."""
        return sum(self.left_out_of.values())

    def __iter__(self) -> Iterator[Corpus]:
        if self.kept:
            yield from self.kept
            return
        for place, piece in enumerate(self.dataset.pieces(self.start, self.stop, self.at_a_time or sys.maxsize)):
            moved = self._in_tokens(piece, place)
            if not len(moved):
                continue
            corpus = moved.packed(self.tokens.separator)
            if self.shuffled is not None:
                corpus = corpus.with_shuffled_labels(np.random.default_rng([self.shuffled, place]))
            if self.at_a_time is None:
                self.kept.append(corpus)
            yield corpus

    def whole(self) -> Corpus:
        """All in one.

        Raises:
            ValueError: if they are empty, or all left out.
        """
        piece = require_tokens(self.dataset.corpus(self.start, self.stop))
        return self.require_some(self._in_tokens(piece, 0)).packed(self.tokens.separator)

    def first(self) -> Corpus:
        """The first of the corpora.

        Raises:
            ValueError: if every document is left out.
        """
        return self.require_some(next(iter(self), None))

    def require_some(self, corpus: Corpus | None) -> Corpus:
        """The corpus, which must have documents.

        Raises:
            ValueError: if it has none.
        """
        if not corpus:
            raise ValueError(
                f"no label of {self.dataset.source} moves to the tokens of {self.tokens.folder}: its documents' tokens"
                f" are not those of their text; annotate with --tokenizer {self.tokens.folder}"
            )
        return corpus

    def _in_tokens(self, corpus: Corpus, place: int) -> Corpus:
        if not self.tokens.moved:
            return corpus
        assert self.dataset.tokenizer is not None and self.tokens.folder is not None
        moved = retokenized(corpus, load_tokenizer(self.dataset.tokenizer), load_tokenizer(self.tokens.folder))
        said, self.left_out_of[place] = self.left_out > 0, len(corpus) - len(moved)
        if self.left_out and not said:
            LOG.warning(
                "%s of %s documents, and later ones like them, are left out: their tokens are not those of their text,"
                " so that labels cannot move; annotate with --tokenizer %s to have them",
                f"{self.left_out:,}",
                f"{len(corpus):,}",
                self.tokens.folder,
            )
        return moved
