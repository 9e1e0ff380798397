"""Stream of documents, which are read in blocks.

Each document is in exactly one block, which depends only on the sizes of the documents before it. The next block is
prepared ahead. Several processes may share the work on each block.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.data.corpus import Corpus, DocumentStream, ProcessShare, numbered, read_corpus
from pipeline.data.documents import Column
from pipeline.data.files import find_files
from tests.builders import write_documents

TOKENS = Column("input_ids", tokenized=True)


class Encoding(NamedTuple):
    ids: list[int]


@dataclass
class Bytes:
    """A tokenizer whose ids are the bytes of a text, and which counts the texts.

    If a text has a colon, the tokenizer waits until a test opens `gate`.
    """

    model: None = None
    seen: int = 0
    waiting: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def encode_batch_fast(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoding]:
        assert not add_special_tokens
        if any(":" in text for text in texts):
            self.waiting.set()
            assert self.gate.wait(10)
        self.seen += len(texts)
        return [Encoding(list(text.encode())) for text in texts]


def written(folder: Path, documents: Sequence[Sequence[int]], per_file: int = 7) -> DocumentStream:
    for number, start in enumerate(range(0, len(documents), per_file)):
        ids = pa.array(documents[start : start + per_file], pa.list_(pa.int32()))
        pq.write_table(pa.table({"input_ids": ids}), folder / f"{number}.parquet")
    return DocumentStream(files=find_files([str(folder)]), column=TOKENS, tokenizer=None, vocabulary=1000, block=40)


def of_texts(file: Path, texts: Sequence[str | None], block: int) -> tuple[DocumentStream, Bytes]:
    tokenizer, files = Bytes(), find_files([str(write_documents(file, texts))])
    source = cast(Tokenizer, tokenizer)
    return DocumentStream(files=files, column=Column(), tokenizer=source, vocabulary=256, block=block), tokenizer


def lists(corpus: Corpus) -> list[list[int]]:
    return [ids.tolist() for ids in corpus.by_document(corpus.tokens_N)]


@pytest.fixture
def documents() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(1000, size=random.integers(0, 30)).tolist() for _ in range(40)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=4), st.integers(1, 20))
def test_the_block_of_a_row_depends_on_the_size_of_the_rows_before(batches: list[list[int]], block: int) -> None:
    rows = [pa.record_batch({"ids": pa.array([[place] * size for place, size in enumerate(b)])}) for b in batches if b]
    found = [(number, ids) for number, part in numbered(rows, block) for ids in part.column(0).to_pylist()]
    before, expected = 0, []
    for sizes in batches:
        for place, size in enumerate(sizes):
            expected.append((before // block, [place] * size))
            before += size
    assert found == expected


def test_blocks_are_the_whole_corpus_in_every_iteration(tmp_path: Path, documents: list[list[int]]) -> None:
    stream = written(tmp_path, documents)
    whole = read_corpus(stream.files, column=TOKENS, tokenizer=None, vocabulary=1000)
    assert lists(whole) == documents
    for _ in range(2):
        blocks = list(stream)
        assert [ids for block in blocks for ids in lists(block)] == documents
        assert len(blocks) > 5 and all(len(block.tokens_N) < 40 + 30 for block in blocks)
    for skip, limit in ((0, 9), (9, 20), (39, None), (40, None)):
        part = [ids for block in replace(stream, skip=skip, limit=limit) for ids in lists(block)]
        assert part == documents[skip:limit]


def test_a_fold_is_left_out_as_from_a_corpus(tmp_path: Path, documents: list[list[int]]) -> None:
    stream = written(tmp_path, documents)
    whole = read_corpus(stream.files, column=TOKENS, tokenizer=None, vocabulary=1000)
    for folds in (1, 3):
        for part, expected in zip(stream.leave_one_fold_out(folds), whole.leave_one_fold_out(folds), strict=True):
            assert [ids for block in part for ids in lists(block)] == lists(expected)


@pytest.mark.parametrize("processes", [2, 3, 50])
def test_processes_that_share_the_work_get_the_blocks_of_a_single_one(
    tmp_path: Path, documents: list[list[int]], processes: int
) -> None:
    stream, barrier = written(tmp_path, documents), threading.Barrier(processes, timeout=20)
    brought: list[list[Corpus]] = [[] for _ in range(processes)]

    def read(process: int) -> list[list[list[int]]]:
        def exchange(mine: Corpus) -> Sequence[Corpus]:
            brought[process].append(mine)
            barrier.wait()
            place = len(brought[process]) - 1
            return [shares[place] for shares in brought]

        return [lists(block) for block in replace(stream, sharing=ProcessShare(process, processes, exchange))]

    expected = [lists(block) for block in stream]
    with ThreadPoolExecutor(processes) as pool:
        assert list(pool.map(read, range(processes))) == [expected] * processes
    counts = [sum(map(len, shares)) for shares in brought]
    assert sum(counts) == len(documents)
    if processes < 5:
        assert max(counts) - min(counts) <= len(expected)  # a block's documents are dealt out evenly


def test_only_the_next_block_is_prepared_ahead(tmp_path: Path) -> None:
    stream, tokenizer = of_texts(tmp_path / "a.parquet", ["aaaa", "bb:b", "cccc", None, "dddd"], block=4)
    blocks = iter(stream)
    assert lists(next(blocks)) == [list(b"aaaa")]
    assert tokenizer.waiting.wait(5) and tokenizer.seen == 1
    tokenizer.gate.set()
    assert lists(next(blocks)) == [list(b"bb:b")]
    assert [lists(block) for block in blocks] == [[list(b"cccc")], [[], list(b"dddd")]]


def test_closing_abandons_the_block_in_progress(tmp_path: Path) -> None:
    texts = ["f" * 20_000, ":", *["x"] * 12_000]  # the second block has several batches of rows
    stream, tokenizer = of_texts(tmp_path / "a.parquet", texts, block=20_000)
    threads, blocks = threading.active_count(), iter(stream)
    assert len(next(blocks).tokens_N) == 20_000
    assert tokenizer.waiting.wait(5)
    threading.Timer(0.1, tokenizer.gate.set).start()
    blocks.close()  # type: ignore[attr-defined]
    assert tokenizer.seen < 9_000 and threading.active_count() <= threads + 1  # the timer


def test_an_error_is_raised_when_its_block_is_requested(tmp_path: Path) -> None:
    stream = written(tmp_path, [[1] * 40, [2] * 40, [3, 1000], [4] * 40])
    blocks, found = iter(stream), []
    with pytest.raises(ValueError, match="do not fit a vocabulary of 1000"):
        for block in blocks:
            found += lists(block)
    assert found == [[1] * 40, [2] * 40]
