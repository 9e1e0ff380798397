"""Documents for window models: the same batches from memory and from a stream, held-out documents, mistakes."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from pipeline.data.corpus import Corpus, DocumentStream
from pipeline.models.checkpoint import SHIPPED
from pipeline.training.batches import Windowing, endless_batches
from pipeline.training.data import Documents, DocumentSettings
from tests.builders import sample_texts, write_documents

TOKENIZER = str(SHIPPED / "tokenizer")


@pytest.fixture
def texts(tmp_path: Path) -> str:
    return str(write_documents(tmp_path / "texts.parquet", sample_texts(20, 200)))


def lists(*blocks: Corpus) -> list[list[int]]:
    return [ids.tolist() for block in blocks for ids in block.by_document(block.tokens_N)]


def test_a_stream_holds_out_the_first_documents_and_has_the_others_in_blocks(texts: str) -> None:
    whole = DocumentSettings(input=(texts,), tokenizer=TOKENIZER, held_out=3).read()
    stream = DocumentSettings(input=(texts,), tokenizer=TOKENIZER, held_out=3, stream=100, limit=18).read()
    everything, blocks = lists(*whole.blocks, whole.held_out), list(stream.blocks)
    assert lists(stream.held_out) == everything[:3] and lists(*blocks) == everything[3:18]
    assert len(blocks) > 3 and all(50 < len(block.tokens_N) < 300 for block in blocks[:-1])
    assert stream.held_out.total_bytes == sum(len(text.encode()) for text in sample_texts(3, 200))


def test_a_stream_of_one_block_has_the_batches_of_all_documents(texts: str) -> None:
    stream = DocumentSettings(input=(texts,), tokenizer=TOKENIZER, held_out=1, stream=10**9).read()
    whole = DocumentSettings(input=(texts,), tokenizer=TOKENIZER, held_out=1).read()
    assert isinstance(stream.seen, DocumentStream) and isinstance(whole.seen, Corpus)
    later = [*lists(whole.seen), *lists(whole.held_out)][1:]
    (corpus,) = stream.blocks
    assert lists(corpus) == later
    cut = Windowing(16, 64, varied=True)
    pairs = zip(endless_batches(stream.blocks, cut, 5), endless_batches([corpus], cut, 5), strict=True)
    for one, other in islice(pairs, 60):
        assert torch.equal(one.input_ids_BT, other.input_ids_BT) and torch.equal(one.lengths_B, other.lengths_B)


def test_decisive_settings_tell_streams_and_documents_apart(texts: str) -> None:
    settings = {"input": (texts,), "tokenizer": TOKENIZER, "held_out": 2}
    kinds = [DocumentSettings(**settings, **more).read() for more in ({}, {"stream": 50}, {"stream": 60}, {"limit": 9})]  # type: ignore[arg-type]
    decisive = [kind.decisive for kind in kinds]
    assert all(one != other for place, one in enumerate(decisive) for other in decisive[:place])
    assert decisive[0]["documents"] == 20 and decisive[1]["files"] == 1
    write_documents(Path(texts), sample_texts(21, 200))
    assert DocumentSettings(**settings, stream=50).read().decisive != decisive[1]  # type: ignore[arg-type]


def test_a_split_is_read_and_is_decisive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, texts = str(tmp_path / "in"), sample_texts(9, 200)
    write_documents(tmp_path / "in" / "train.parquet", texts[:6])

    def read(split: str | None = None) -> Documents:
        return DocumentSettings(input=(folder,), tokenizer=TOKENIZER, held_out=1, split=split).read()

    alone = read()
    assert capsys.readouterr().err == "" and alone.decisive["choices"] is None
    write_documents(tmp_path / "in" / "test.parquet", texts[6:])
    default, named, every, test = (read(split) for split in (None, "train", "all", "test"))
    assert lists(*default.blocks, default.held_out) == lists(*alone.blocks, alone.held_out)
    assert default.decisive == named.decisive == {**alone.decisive, "choices": ("split train",)}
    assert (every.decisive["documents"], test.decisive["documents"]) == (9, 3)
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize("held_out", [None, 0, -1, 20, 21])
def test_a_stream_must_leave_something_to_train_on(texts: str, held_out: int | None) -> None:
    settings = DocumentSettings(input=(texts,), tokenizer=TOKENIZER, held_out=held_out, stream=50)
    with pytest.raises(ValueError, match="cannot hold out"):
        settings.read()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`stream` must be at least 1, not 0"):
        DocumentSettings(input=(), tokenizer=TOKENIZER, stream=0)
    empty = str(write_documents(tmp_path / "empty.parquet", ["", None, "text"]))
    with pytest.raises(ValueError, match="the 2 documents held out are empty"):
        DocumentSettings(input=(empty,), tokenizer=TOKENIZER, held_out=2, stream=50).read()
