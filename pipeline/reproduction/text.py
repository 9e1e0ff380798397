"""The text that figures are made on: documents that are named, or the built-in ones, with a tokenizer of their own."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.corpus import Corpus, held_out_documents, require_tokens
from pipeline.data.documents import Column, iterate_rows
from pipeline.data.files import File
from pipeline.data.sample import sample_documents
from pipeline.data.skipped import LONGEST_DOCUMENT
from pipeline.data.tokenizer import encode, id_count, train_byte_pairs
from schemas.rows import TEXT_COLUMN


@dataclass(frozen=True)
class Text:
    """Documents to train on and, apart from them, to evaluate on. Token 0 stands before a window and is in none."""

    seen: Corpus
    held_out: Corpus
    vocabulary: int


def prepare(
    files: Sequence[File], *, vocabulary: int, documents: int, held_out: int, longest: int = LONGEST_DOCUMENT
) -> Text:
    """The first documents of the files, or of the built-in text where there are none; the last of them are held out.

    Raises:
        ValueError: if that leaves nothing to train or to evaluate on.
    """
    found = _texts(files, documents, longest)
    stop = len(found) - held_out_documents(len(found), min(held_out, max(1, len(found) // 10)))
    tokenizer = train_byte_pairs(found[:stop], vocabulary)
    corpus = Corpus.of(encode(tokenizer, found), text_bytes=[len(text.encode()) for text in found])
    return Text(corpus.documents(0, stop), require_tokens(corpus.documents(stop, len(found))), id_count(tokenizer))


def _texts(files: Sequence[File], documents: int, longest: int) -> list[str]:
    if not files:
        return [str(text) for text in sample_documents().column(TEXT_COLUMN).to_pylist()[:documents]]
    tables = iterate_rows(list(files), Column(TEXT_COLUMN, longest=longest), documents)
    return [text for rows in tables for text in rows.column(TEXT_COLUMN).to_pylist() if text]
