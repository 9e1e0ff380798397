"""Files that are read besides documents: ledgers, labelled shards, cards, checkpoints, tokenizers and settings.

For each kind of file, the bytes of a sound file or a value of its JSON are changed. The file is then used as a command
would use it.
"""

import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import safetensors.numpy
import yaml
from hypothesis import strategies as st

from pipeline.annotate.config import Config
from pipeline.cli import run
from pipeline.data.annotated import find_annotations
from pipeline.data.ledger import Ledger
from pipeline.data.loader import Reading, labelled_rows
from pipeline.data.tokenizer import encode, load_tokenizer, train_byte_pairs
from pipeline.engine.output import existing_plan, open_run
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.checkpoint_files import INDEX_FILE
from pipeline.models.loading import load_causal
from pipeline.publish.card import dataset_card
from schemas.layout import Subset
from schemas.receipts import PLAN_FILE, QUARANTINE, RECEIPTS, Plan, Quarantined
from tests.builders import sample_texts
from tests.engine.fakes import planned_run
from tests.fuzz.formats import VALUES, damaged
from tests.fuzz.kind import Kind
from tests.hostile.checkpoints import sound
from tests.labelled import write_labelled
from tests.publish.datasets import annotated
from tests.publish.test_card import subset_info

PLAN = f"_ledger/exact/{PLAN_FILE}"
RECEIPT = f"_ledger/exact/{RECEIPTS}/00000002.json"
SETTINGS = {"input": ["a.parquet"], "limit": 3, "method": "exact", "columns": ["id"], "share": 0.5, "workers": 0}
DEFAULTS = Config()
NOTE = Quarantined(unit=2, shard="train-00002-of-00006.parquet", file="in.parquet", start=4, stop=6, reason="wrong")


@st.composite
def edits(draw: st.DrawFn, value: Any) -> Any:
    """Draw a copy of the JSON in which one value, at any depth, is changed, removed or added."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    key = draw(st.sampled_from(list(copy) if isinstance(copy, dict) else range(len(copy))))
    if draw(st.booleans()):
        copy[key] = draw(edits(copy[key]))
    elif draw(st.booleans()):
        del copy[key]
    elif isinstance(copy, list):
        copy.append(copy[key])
    else:
        copy[draw(st.text(max_size=8))] = copy[key]
    return copy


@st.composite
def changed(draw: st.DrawFn, content: Callable[[], bytes]) -> bytes:
    """Draw a JSON file: sound, with one edited value, or with damaged bytes."""
    sound_bytes = content()
    return draw(
        damaged(st.just(sound_bytes)) | edits(json.loads(sound_bytes)).map(lambda made: json.dumps(made).encode())
    )


@cache
def base(kind: str) -> Path:
    """Return the sound folder of this kind, which is made at the first call."""
    folder = Path(mkdtemp(prefix="fuzz-"))
    made: dict[str, Callable[[], object]] = {
        "dataset": lambda: annotated(folder),
        "labelled": lambda: write_labelled(folder / "out"),
        "checkpoint": lambda: sound(folder / "out", "causal"),
        "index": lambda: indexed(folder / "out"),
        "tokenizer": lambda: train_byte_pairs(sample_texts(8, 400), 300).save(str(folder / "tokenizer.json")),
    }
    made[kind]()
    return folder if kind in ("dataset", "tokenizer") else folder / "out"


def indexed(folder: Path) -> None:
    """Write a checkpoint whose weights are listed in an index."""
    sound(folder, "causal")
    part = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / part)
    index = {
        "metadata": {"total_size": 1},
        "weight_map": dict.fromkeys(safetensors.numpy.load_file(folder / part), part),
    }
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")


def put(folder: Path, kind: str, file: str, content: bytes) -> Path:
    """Copy the valid folder of this kind, replace `file` in the copy by `content`, and return the copy."""
    copy = Path(shutil.copytree(base(kind), folder / "copy"))
    (copy / file).parent.mkdir(parents=True, exist_ok=True)
    (copy / file).write_bytes(content)
    return copy


def use_ledger(file: str) -> Callable[[Path, bytes], str]:
    """Return a function that reads a ledger in which `file` is replaced, and resumes its run."""

    def use(folder: Path, content: bytes) -> str:
        copy = put(folder, "dataset", f"out/{file}", content)
        subset = Subset("exact", copy / "out")
        existing_plan(subset)
        job, units = planned_run(copy / "out", [copy / "in.parquet"])
        open_run(subset, Plan(job.provenance, (), schema=job.schema), units)
        return f"{len(Ledger(subset).finished())} units done"

    return use


def use_note(folder: Path, content: bytes) -> str:
    """Read a note on a quarantined unit whose file has the bytes `content`."""
    file = Subset("exact", folder).ledger / QUARANTINE / "00000002.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return f"{len(Ledger(Subset('exact', folder)).quarantined())} notes"


def use_receipt(folder: Path, content: bytes) -> str:
    """Replace the file of one receipt by `content`, and read all receipts as publishing does."""
    subset = Subset("exact", put(folder, "dataset", f"out/{RECEIPT}", content) / "out")
    return f"{len(Ledger(subset).receipts())} receipts"


def use_labels(folder: Path, content: bytes) -> str:
    """Read a dataset in which `content` replaces a shard. Reading must fail or return the labels that were written."""
    copy = put(folder, "labelled", "data/exact/train-00001-of-00003.parquet", content)
    assert rows_of(copy) == rows_of(base("labelled")), "other labels"
    return "read"


def rows_of(dataset: Path) -> list[bytes]:
    rows = labelled_rows(find_annotations(str(dataset)), reading=Reading(epochs=1))
    return [array.tobytes() for row in rows for array in row.values()]


def use_card(folder: Path, text: str) -> str:
    """Add a dataset's card to a README.md twice. The second time must change nothing."""
    once = dataset_card(subset_info(), text)
    assert dataset_card(subset_info(), once) == once, "another card the second time"
    return "card"


def use_checkpoint(folder: Path, content: bytes) -> str:
    """Load a causal language model whose `config.json` has the bytes `content`."""
    load_causal(put(folder, "checkpoint", "config.json", content))
    return "loaded"


def use_index(folder: Path, content: bytes) -> str:
    """Compute the digest of a checkpoint whose index of weights has the bytes `content`."""
    return f"{len(Checkpoint(put(folder, 'index', INDEX_FILE, content)).sha256)} digits"


def use_tokenizer(folder: Path, content: bytes) -> str:
    """Load a tokenizer whose `tokenizer.json` has the bytes `content`, and encode two texts with it."""
    encode(load_tokenizer(put(folder, "tokenizer", "tokenizer.json", content)), ["some text é", ""])
    return "encoded"


def use_settings(folder: Path, content: bytes) -> str:
    """Read a command's settings from a YAML file with the bytes `content`."""

    def accept(config: Config = DEFAULTS) -> None:
        assert isinstance(config, Config)

    (folder / "run.yaml").write_bytes(content)
    before, sys.argv = sys.argv, ["pipeline.annotate", "--config", str(folder / "run.yaml")]
    try:
        run(accept, "pipeline.annotate")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            assert "\n" not in ended.code
            raise ValueError(ended.code) from None
    finally:
        sys.argv = before
    return "read"


def content_of(kind: str, file: str) -> Callable[[], bytes]:
    return lambda: (base(kind) / file).read_bytes()


@st.composite
def shards(draw: st.DrawFn) -> bytes:
    whole = content_of("labelled", "data/exact/train-00001-of-00003.parquet")()
    return draw(damaged(st.just(whole)))


def readmes() -> st.SearchStrategy[str]:
    """Return a strategy of README.md files, with any front matter, marks of sections, and text that people write."""
    marks = st.sampled_from(["<!-- begin exact -->", "<!-- end exact -->", "---\n", "\n# Mine\n", "a: &a [*a]\n"])
    front = st.dictionaries(st.sampled_from(["configs", "dataset_info", "license", "x"]), VALUES, max_size=3)
    block = front.map(lambda values: f"---\n{yaml.safe_dump(json.loads(json.dumps(values)))}---\n")
    return st.lists(block | marks | st.text(max_size=20), max_size=5).map("".join)


RECORDS: tuple[Kind, ...] = (
    Kind("plan", changed(content_of("dataset", f"out/{PLAN}")), use_ledger(PLAN)),
    Kind("receipt", changed(content_of("dataset", f"out/{RECEIPT}")), use_receipt),
    Kind("resumed receipt", changed(content_of("dataset", f"out/{RECEIPT}")), use_ledger(RECEIPT)),
    Kind("note", changed(lambda: NOTE.to_json().encode()), use_note),
    Kind("labelled shard", shards(), use_labels),
    Kind("card", readmes(), use_card),
    Kind("checkpoint", changed(content_of("checkpoint", "config.json")), use_checkpoint),
    Kind("weights' index", changed(content_of("index", INDEX_FILE)), use_index),
    Kind("tokenizer", changed(content_of("tokenizer", "tokenizer.json")), use_tokenizer),
    Kind("settings", changed(lambda: json.dumps(SETTINGS).encode()), use_settings),
)
