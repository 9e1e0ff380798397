"""An attacker's checkpoint is quickly refused in one line, or loads with its hostile part ignored."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.annotate.config import Config
from pipeline.annotate.prepare import prepare
from pipeline.cli import INCOMPLETE
from pipeline.data.files import find_files
from pipeline.data.ledger import Ledger
from pipeline.data.tokenizer import tokenizer_sha256
from pipeline.engine.annotator import load_annotator
from pipeline.engine.plan import inspect
from pipeline.models.checkpoint import KIND_OF_METHOD, SHIPPED, Checkpoint, CheckpointKind
from pipeline.models.loading import load_causal
from schemas.layout import Subset
from tests.annotated import write_annotated
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.hostile.checkpoints import ALL, CANARY, CODES, INDEX, OUTSIDE, WEIGHTS, Hostile, edit, index, sound
from tests.hub import Hub

METHODS = {kind: method for method, kind in KIND_OF_METHOD.items()}
KEPT_OUT: set[str] = set()
"""Folders whose files must not be opened while a hostile checkpoint is loaded."""


def _told(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook that fails when a file of KEPT_OUT is opened. Python cannot remove an audit hook again."""
    if KEPT_OUT and event == "open" and isinstance(arguments[0], str):
        opened = str(Path(arguments[0]).resolve())
        if any(opened.startswith(folder) for folder in KEPT_OUT):
            raise AssertionError(f"{opened} was opened")


sys.addaudithook(_told)


@contextmanager
def kept_out(folder: Path) -> Iterator[None]:
    KEPT_OUT.add(str(folder.resolve()))
    try:
        yield
    finally:
        KEPT_OUT.clear()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    sound(folder / OUTSIDE, "second-order")
    write_documents(folder / "documents.parquet", sample_texts(2, 100))
    return folder


def opened(checkpoint: Path, kind: CheckpointKind, documents: Path) -> None:
    """Do everything that pipeline.annotate does with a checkpoint before the first document."""
    config = Config(
        input=(str(documents),),
        output=str(documents.parent / "out"),
        estimator=(str(checkpoint),),
        method=METHODS[kind],
    )
    run, _ = prepare(config, inspect(find_files(config.input), config.column), config.input)
    load_annotator(run, "cpu")


@pytest.mark.parametrize("hostile", ALL, ids=lambda each: each.name)
def test_a_hostile_checkpoint_is_refused_in_one_line_or_does_no_harm(
    hostile: Hostile, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # the answer if a library asks whether to run code
    made = hostile.make(place)
    with kept_out(place / OUTSIDE):
        if hostile.says is None:
            opened(made, hostile.kind, place / "documents.parquet")
        else:
            with pytest.raises((ValueError, OSError)) as raised:
                opened(made, hostile.kind, place / "documents.parquet")
            assert re.search(hostile.says, str(raised.value)) and "\n" not in str(raised.value)
            assert made.name in str(raised.value)
    assert not (place / CANARY).exists()
    assert not (place / "out").exists()


@pytest.mark.parametrize("hostile", CODES, ids=lambda each: each.name)
def test_no_code_and_no_pickle_is_fetched_from_a_repository(
    hostile: Hostile, hub: Hub, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    made = hostile.make(tmp_path)
    files = {str(file.relative_to(made)): file.read_bytes() for file in made.rglob("*") if file.is_file()}
    hub.add("user/hostile", {**files, "a.bin": b"a", "b.pt": b"b", "c.pkl": b"c", "d.py": b"d"}, kind="models")
    try:
        opened(Path("user/hostile"), hostile.kind, place / "documents.parquet")
    except ValueError as error:
        assert hostile.says is not None and re.search(hostile.says, str(error))
    else:
        assert hostile.says is None
    fetched = {Path(request.path).suffix for request in hub.requests if "/resolve/" in request.path}
    assert {".json", ".safetensors"} >= fetched >= {".json"}
    assert all("evil" not in request.path for request in hub.requests)
    assert not (tmp_path / CANARY).exists()


@pytest.fixture(scope="module")
def labels(place: Path) -> Path:
    """Write a dataset whose labels every sound checkpoint here can learn."""
    digest = tokenizer_sha256(SHIPPED / "tokenizer")
    tokens = [[token % 8000 + 1 for token in range(start, start + 20)] for start in range(24)]
    nats = [[float(token % 7) for token in document] for document in tokens]
    settings: dict[str, Any] = {"vocabulary": 8192, "tokenizer_sha256": digest, "window": 8, "overlap": 4}
    return write_annotated(place / "labels", tokens, nats, **settings)


STARTS = [each for each in ALL if each.kind != "second-order" and each.says is not None]


@pytest.mark.long
@pytest.mark.parametrize("hostile", STARTS, ids=lambda each: each.name)
def test_a_training_that_starts_from_a_hostile_checkpoint_ends_in_one_line(
    hostile: Hostile,
    place: Path,
    labels: Path,
    tmp_path: Path,
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / OUTSIDE).symlink_to(place / OUTSIDE)
    made = hostile.make(tmp_path)
    capsys.readouterr()
    with kept_out(place / OUTSIDE):
        arguments = ("--labels", labels, "--init-from", made, "--output", tmp_path / "out", "--training.steps", 1)
        assert run_command("jobs.train_second_order", *arguments) == 1
    *told, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and made.name in line
    assert all(each.startswith("windows of ") for each in told), told


def test_a_sound_start_is_trained(labels: Path, tmp_path: Path, run_command: RunCommand) -> None:
    """A sound checkpoint must be trained, or else the refusals of hostile checkpoints would prove nothing."""
    made = sound(tmp_path / "sound", "causal")
    arguments = ("--labels", labels, "--init-from", made, "--output", tmp_path / "out", "--training.steps", 1)
    assert run_command("jobs.train_second_order", *arguments) == 0


AUTO = re.compile(r"\bAuto\w+\.from_(?:pretrained|config)\(")


def test_every_automatic_class_is_told_not_to_run_code() -> None:
    """By default transformers asks on standard input whether to run a checkpoint's code."""
    root, calls = Path(__file__).parents[2], 0
    for file in (each for folder in ("pipeline", "jobs") for each in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and AUTO.match(f"{ast.unparse(node.func)}("):
                calls += 1
                assert "trust_remote_code=False" in ast.unparse(node), f"{file}: {ast.unparse(node)}"
    assert calls == 4


def test_links_into_the_blobs_of_the_hub_cache_are_loaded(hub: Hub, tmp_path: Path) -> None:
    made = sound(tmp_path / "sound", "causal")
    hub.add("user/sound", {file.name: file.read_bytes() for file in made.iterdir()}, kind="models")
    found = Checkpoint.find("user/sound")
    assert (found.folder / WEIGHTS).is_symlink()
    assert load_causal(found.folder).config.vocab_size == 8192
    assert found.sha256 == Checkpoint(made).sha256


def test_folders_that_load_different_weights_have_different_digests(tmp_path: Path) -> None:
    """Both folders hold the same files, but their indexes name different files as the weights."""
    digests = set()
    for name in ("a", "b"):
        made = sound(tmp_path / name, "causal")
        index("decoy.safetensors")(made)
        for copy in ("a", "b"):
            (made / f"{copy}.safetensors").write_bytes((made / "decoy.safetensors").read_bytes())
        places = json.loads((made / INDEX).read_text(encoding="utf-8"))
        places["weight_map"] = dict.fromkeys(places["weight_map"], f"{name}.safetensors")
        (made / INDEX).write_text(json.dumps(places), encoding="utf-8")
        digests.add(Checkpoint(made).sha256)
    assert len(digests) == 2


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)
GENTLE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=60, deadline=None, suppress_health_check=GENTLE)
@given(data=st.data(), kind=st.sampled_from(["causal", "second-order", "estimator"]))
def test_any_value_of_any_setting_is_refused_in_one_line_or_loads(
    data: st.DataObject, kind: CheckpointKind, place: Path
) -> None:
    made = _sound_once(place, kind)
    before = (made / "config.json").read_bytes()
    config = json.loads(before)
    config[data.draw(st.sampled_from(sorted(config)))] = data.draw(VALUES)
    _tried(made, kind, "config.json", json.dumps(config).encode(), place)


@settings(max_examples=60, deadline=None, suppress_health_check=GENTLE)
@given(data=st.data(), file=st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS]))
def test_any_changed_bytes_are_refused_in_one_line_or_load(data: st.DataObject, file: str, place: Path) -> None:
    made = _sound_once(place, "causal")
    content = bytearray((made / file).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content), 2000) - 1))] = data.draw(st.integers(0, 255))
    _tried(made, "causal", file, bytes(content), place)


def _sound_once(place: Path, kind: CheckpointKind) -> Path:
    made = place / f"sound-{kind}"
    return made if made.exists() else sound(made, kind)


def _tried(made: Path, kind: CheckpointKind, file: str, content: bytes, place: Path) -> None:
    before = (made / file).read_bytes()
    (made / file).write_bytes(content)
    try:
        with kept_out(place / OUTSIDE):
            opened(made, kind, place / "documents.parquet")
    except (ValueError, OSError) as error:
        assert "\n" not in str(error), error
    finally:
        (made / file).write_bytes(before)


def test_a_document_that_makes_the_tokenizer_panic_costs_only_its_unit(
    tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other documents are labelled, and the reason is recorded in one line."""
    monkeypatch.setattr("pipeline.engine.scheduler.PAUSE", 0.01)
    monkeypatch.setattr("pipeline.engine.scheduler.PATIENCE", 0.05)
    made = sound(tmp_path / "model", "second-order")
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    edit(made, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}}, "tokenizer.json")
    documents = write_documents(tmp_path / "documents.parquet", ["hello", "world", "a" * 40 + "!", "there"])
    arguments = ("--input", documents, "--estimator", made, "--workers", 0, "--rows-per-unit", 1)
    assert run_command("pipeline.annotate", *arguments, "--output", tmp_path / "out") == INCOMPLETE
    (note,) = Ledger(Subset("second-order", tmp_path / "out")).quarantined()
    assert note.start == 2 and "the tokenizer fails on a document" in note.reason and "\n" not in note.reason
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 3
