"""Random single-byte changes in a dataset: pipeline.verify finds each that matters, and no reader is misled."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.annotate.__main__ import annotate
from pipeline.annotate.config import Config
from pipeline.data.annotated import find_annotations
from pipeline.data.loader import Reading, labelled_rows
from pipeline.data.tokenizer import train_byte_pairs
from pipeline.models.checkpoint import copy_tokenizer
from pipeline.verify.content import COMPARED
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, INPUT_IDS
from schemas.receipts import Plan, Receipt
from tests.builders import sample_texts, write_documents
from tests.tiny_models import tiny_second_order
from tests.verify.datasets import verified

SEED = 0


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotate twelve documents into four shards. The tokenizer is small, so that most bytes belong to labels."""
    folder = tmp_path_factory.mktemp("bytes")
    texts = sample_texts(12, 200)
    write_documents(folder / "in.parquet", texts)
    tiny_second_order(vocabulary=300).save_pretrained(folder / "model")
    (folder / "tokens").mkdir()
    train_byte_pairs(texts, 300).save(str(folder / "tokens" / "tokenizer.json"))
    (folder / "tokens" / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>"}', encoding="utf-8")
    copy_tokenizer(folder / "tokens", folder / "model")
    settings: dict[str, Any] = {"workers": 0, "rows_per_unit": 3, "dtype": "float32"}
    settings |= {"input": (str(folder / "in.parquet"),), "output": str(folder / "out")}
    assert annotate(Config(estimator=(str(folder / "model"),), **settings)) == 0
    return folder / "out"


def values(dataset: Path) -> object:
    """Return everything that a reader sees."""
    found = find_annotations(str(dataset))
    rows = list(labelled_rows(found, (INPUT_IDS, ENTROPY, EXPECTED_ENTROPY), Reading(epochs=1)))
    corpus = found.corpus()
    assert corpus.labels_N is not None
    arrays = [(name, array.tobytes()) for row in rows for name, array in row.items()]
    return found.provenance, arrays, corpus.tokens_N.tobytes(), corpus.labels_N.tobytes(), corpus.offsets.tobytes()


def matters(file: Path, before: bytes) -> bool:
    """Return whether a change of the file, whose content was `before`, must be found.

    A change need not be found if it affects only prose, the formatting of JSON, or a count that cannot be computed from
    a shard.
    """
    if file.suffix == ".md" or file.name in ("report.json", "lock"):
        return False
    if "receipts" in file.parts or file.name == "plan.json":
        try:
            return _said(file.name, before) != _said(file.name, file.read_bytes())
        except (ValueError, KeyError, TypeError, OSError):
            return True
    return True


def _said(name: str, content: bytes) -> object:
    text = content.decode()
    if name == "plan.json":
        return Plan.from_json(text).provenance
    receipt = Receipt.from_json(text)
    counted = [getattr(receipt.counts, name) for name in COMPARED]
    return receipt.unit, receipt.shard, receipt.sha256, receipt.size, counted


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_changed_byte_is_found_by_verify_and_misleads_no_reader(
    count: int, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = shutil.copytree(sound, tmp_path / "out")
    expected, random_byte = values(dataset), random.Random(SEED)
    files = sorted(file for file in dataset.rglob("*") if file.is_file() and file.stat().st_size)
    told = unnoticed = 0
    for number in range(count):
        file = random_byte.choice([each for each in files if (each.suffix == ".parquet") == bool(number % 2)])
        before = file.read_bytes()
        at = random_byte.randrange(len(before))
        changed = (before[at] + random_byte.randrange(1, 256)) % 256
        file.write_bytes(before[:at] + bytes([changed]) + before[at + 1 :])
        where = f"byte {at} of {file.relative_to(dataset)} is {changed}, not {before[at]}"
        code, lines = verified(dataset, capsys)
        assert code == 1 or not matters(file, before), where
        assert (len(lines) == 1) == (code == 0), where
        told += code
        try:
            assert values(dataset) == expected, where
            unnoticed += 1
        except (ValueError, OSError) as error:
            assert "\n" not in str(error), where
        file.write_bytes(before)
    assert verified(dataset, capsys)[0] == 0
    assert told > count / 2 and 0 < unnoticed < count
