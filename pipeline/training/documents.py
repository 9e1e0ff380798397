"""What a model of windows learns from: documents in files, tokenized, some of them held out."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.data.corpus import Corpus, read_corpus
from pipeline.data.documents import Column
from pipeline.data.locations import find_files, pinned
from pipeline.data.tokenizer import TokenSource, token_source, tokenizer_sha256
from schemas.documents import TEXT_COLUMN, TOKENS_COLUMN


@dataclass(frozen=True)
class Documents:
    """Documents to train on and, apart from them, to evaluate on."""

    seen: Corpus
    held_out: Corpus
    source: TokenSource
    decisive: dict[str, Any]
    """All that a model depends on here: what was asked for and what was found."""

    def each_without_a_fold(self, folds: int) -> Iterator["Documents"]:
        """The same with each fold in turn left out of `seen`; all of it where there is one fold.

        Raises:
            ValueError: as Corpus.each_without_a_fold does.
        """
        for part in self.seen.each_without_a_fold(folds):
            yield replace(self, seen=part)

    @property
    def facts(self) -> dict[str, object]:
        """Rows of a model card."""
        return {
            "trained on": _counted(self.seen),
            "held out": f"the last {_counted(self.held_out)}, never trained on",
        }


@dataclass(frozen=True, kw_only=True)
class DocumentSettings:
    """Which documents, and how they become tokens."""

    input: tuple[str, ...]
    """Parquet or JSON lines files, folders, globs or URLs of these (hf://datasets/user/name, https://, s3://); with
    --tokenizer none, of a column `input_ids`."""
    tokenizer: str
    """Folder of the tokenizer, or `none` for documents tokenized already."""
    vocabulary: int | None = None
    """Number of token ids, with --tokenizer none."""
    text_column: str = TEXT_COLUMN
    """Name of the column that holds the text."""
    limit: int | None = None
    """Documents to read at the most."""
    held_out: int | None = None
    """Last documents to evaluate on and never train on; one in twenty, 500 at the most, by default."""

    def read(self) -> Documents:
        """The documents.

        Raises:
            ValueError: if the files, the tokenizer or the documents are not as they must be.
            OSError: if a disk or a store cannot be reached now.
        """
        inputs, source = pinned(self.input), token_source(self.tokenizer, self.vocabulary)
        column = Column(self.text_column) if source.tokenizer else Column(TOKENS_COLUMN, tokenized=True)
        corpus = read_corpus(
            find_files(inputs),
            column=column,
            tokenizer=source.tokenizer,
            vocabulary=source.vocabulary,
            limit=self.limit,
        )
        seen, held_out = corpus.held_out(self.held_out)
        sha256 = tokenizer_sha256(source.folder) if source.folder else None
        found = {"documents": len(corpus), "tokens": len(corpus.tokens_N), "tokenizer_sha256": sha256}
        return Documents(seen, held_out, source, {**asdict(self), "input": inputs, **found})


def _counted(corpus: Corpus) -> str:
    return f"{len(corpus):,} documents, {len(corpus.tokens_N):,} tokens"
