"""Plans and ledgers that anybody may have written: read correctly, or refused in a line that names the file."""

import json
import os
import shutil
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.ledger import Ledger
from pipeline.engine.output import GROWING_FILE, existing_plan, locked, open_run
from pipeline.publish.subset import plan_without_paths
from schemas.layout import Subset
from schemas.receipts import PLAN_FILE, QUARANTINE, RECEIPTS, Plan
from tests.publish.datasets import annotated
from tests.publish.datasets import planned as planned_run

DEEP = 100_000


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label six units in `out`, and write a file next to the folder that must not be changed."""
    folder = tmp_path_factory.mktemp("base")
    annotated(folder)
    (folder / "secret").write_text("secret", encoding="utf-8")
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def resume(folder: Path) -> set[int]:
    """Open a folder as pipeline.annotate does before it labels. Return the finished units."""
    run, units = planned_run(folder)
    open_run(run.subset, Plan(run.provenance, (), schema=run.schema), units)
    return Ledger(run.subset).finished()


def changed_plan(change: Callable[[dict[str, Any]], object]) -> Callable[[str], bytes]:
    def edit(text: str) -> bytes:
        plan = json.loads(text)
        change(plan)
        return json.dumps(plan).encode()

    return edit


def renamed(schema: str, name: bytes) -> str:
    """Return Arrow's serialized schema in base64, with `name` changed to bytes that are not UTF-8."""
    serialized = b64decode(schema)
    assert name in serialized
    return b64encode(serialized.replace(name, name[:-1] + b"\xae")).decode()


DAMAGE: dict[str, Callable[[str], bytes]] = {
    "empty": lambda text: b"",
    "cut": lambda text: text.encode()[:100],
    "zeros": lambda text: bytes(300),
    "latin": lambda text: b"\xff" + text.encode(),
    "list": lambda text: b"[]",
    "deep": lambda text: b"[" * DEEP,
    "deep inside": lambda text: text.replace('"inputs": []', f'"inputs": {"[" * DEEP}').encode(),
    "huge number": lambda text: text.replace('"window": 16', '"window": ' + "9" * 5000).encode(),
    "no number": lambda text: text.replace('"window": 16', '"window": NaN').encode(),
    "without run": changed_plan(lambda plan: plan.pop("run")),
    "run of nothing": changed_plan(lambda plan: plan.update(run={})),
    "without a key of run": changed_plan(lambda plan: plan["run"].pop("window")),
    "wrong type in run": changed_plan(lambda plan: plan["run"].update(window="16")),
    "no rows": changed_plan(lambda plan: plan["run"].update(rows_per_unit=0)),
    "unknown method": changed_plan(lambda plan: plan["run"].update(method="magic")),
    "unknown name": changed_plan(lambda plan: plan.update(more=1)),
    "without units": changed_plan(lambda plan: plan.pop("units")),
    "number of units": changed_plan(lambda plan: plan.update(units=10**9)),
    "unit of no file": changed_plan(lambda plan: plan["units"][0].__setitem__(0, 7)),
    "backward unit": changed_plan(lambda plan: plan["units"].append([0, 5, 5])),
    "files of strings": changed_plan(lambda plan: plan.update(files=["a"])),
    "inputs as text": changed_plan(lambda plan: plan.update(inputs="a")),
    "more sources": changed_plan(lambda plan: plan.update(source=["/etc/passwd"])),
    "schema of no bytes": changed_plan(lambda plan: plan.update(schema="?")),
    "schema of others": changed_plan(lambda plan: plan.update(schema=b64encode(b"\xff" * 99).decode())),
    "schema cut": changed_plan(lambda plan: plan.update(schema=plan["schema"][:400])),
    "column of no text": changed_plan(lambda plan: plan.update(schema=renamed(plan["schema"], b"mean_entropy"))),
    "element of no text": changed_plan(lambda plan: plan.update(schema=renamed(plan["schema"], b"item"))),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_plan_is_named_and_nothing_is_written(folder: Path, damage: Callable[[str], bytes]) -> None:
    file = Subset("exact", folder / "out").ledger / PLAN_FILE
    damaged = damage(file.read_text(encoding="utf-8"))
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    before = contents(folder)
    with pytest.raises(ValueError, match=r"plan.json is damaged \(.*\); choose another folder, or delete") as refused:
        resume(folder)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700
    assert contents(folder) == before
    with pytest.raises(ValueError, match=r"."):
        plan_without_paths(damaged.decode("latin-1"))


def test_a_plan_holds_the_number_of_its_units(folder: Path) -> None:
    plan = existing_plan(Subset("exact", folder / "out"))
    assert plan is not None and len(plan.units) == 6


def test_a_plan_of_an_older_version_is_read(folder: Path) -> None:
    text = (Subset("exact", folder / "out").ledger / PLAN_FILE).read_text(encoding="utf-8")
    values = json.loads(text)
    for name in ("source", "schema", "checkpoint"):
        del values[name]
    plan = Plan.from_json(json.dumps(values))
    assert plan.source == plan.provenance.source and plan.schema is None
    assert "source" not in json.loads(plan_without_paths(json.dumps(values)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:30],
        lambda text: "\0" * 300,
        lambda text: "[]",
        lambda text: "[" * DEEP,
        lambda text: text + "\n" + text,
        lambda text: text.replace('"unit": 3', '"unit": 4').replace("00003-of", "00004-of"),
        lambda text: text.replace('"unit": 3', '"unit": 3.0'),
        lambda text: text.replace('"rows": 2', '"rows": -2'),
        lambda text: text.replace('"nats": ', '"nats": 1e300, "more": '),
        lambda text: text.replace('"histogram": [', '"histogram": [0, '),
        lambda text: text.replace("train-00003", "../../../secret"),
    ],
)
def test_a_unit_with_a_damaged_receipt_is_labelled_again_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[str], str]
) -> None:
    subset = Subset("exact", folder / "out")
    file = Ledger(subset).receipt_file(3)
    text = file.read_text(encoding="utf-8")
    assert damage(text) != text
    file.write_text(damage(text), encoding="utf-8")
    with pytest.raises(ValueError, match=r"00000003.json is damaged \(.*\); delete it, and the same pipeline.annotate"):
        Ledger(subset).receipts()
    assert resume(folder) == {0, 1, 2, 4, 5}
    (line,) = caplog.messages
    assert line.startswith("1 units of exact are labelled again: ") and "00000003.json is damaged (" in line
    assert len(subset.shards()) == 5 and not file.exists()
    caplog.clear()
    assert resume(folder) == {0, 1, 2, 4, 5} and caplog.messages == []


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "another's"])
def test_a_shard_of_another_size_than_its_receipts_is_labelled_again_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    subset = Subset("exact", folder / "out")
    shards = [subset.data / receipt.shard for receipt in Ledger(subset).receipts()]
    content = {"cut": shards[3].read_bytes()[:-9], "empty": b"", "another's": shards[5].read_bytes()}
    assert len(content["another's"]) != shards[3].stat().st_size
    if damage == "gone":
        shards[3].unlink()
    else:
        shards[3].write_bytes(content[damage])
    assert [receipt.unit for receipt in Ledger(subset).receipts()] == [0, 1, 2, 4, 5]
    assert resume(folder) == {0, 1, 2, 4, 5}
    said = f"1 units of exact are labelled again: {shards[3]} is missing or has changed in size"
    assert caplog.messages == [said]
    assert not shards[3].exists()


def test_two_receipts_of_a_unit_that_differ_are_refused(folder: Path) -> None:
    subset = Subset("exact", folder / "out")
    text = Ledger(subset).receipt_file(3).read_text(encoding="utf-8")
    (subset.ledger / RECEIPTS / "a.jsonl").write_text(f"{text}\n{text}\n", encoding="utf-8")
    assert resume(folder) == set(range(6))
    other = json.dumps({**json.loads(text), "sha256": "0" * 64})
    (subset.ledger / RECEIPTS / "a.jsonl").write_text(other, encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.jsonl has a different receipt of unit 3 than an earlier file; delete it"):
        resume(folder)


def test_receipts_of_another_number_of_shards_do_not_count(folder: Path) -> None:
    subset = Subset("exact", folder / "out")
    text = Ledger(subset).receipt_file(3).read_text(encoding="utf-8")
    name = json.loads(text)["shard"]
    Ledger(subset).receipt_file(3).write_text(text.replace("-of-00006", "-of-00007"), encoding="utf-8")
    (subset.data / name).rename(subset.data / name.replace("-of-00006", "-of-00007"))
    assert resume(folder) == {0, 1, 2, 4, 5}
    assert len(subset.shards()) == 5


def test_a_damaged_shard_gets_no_new_receipt_while_its_dataset_grows(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subset = Subset("exact", folder / "out")
    shard = subset.data / Ledger(subset).receipts()[0].shard
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 16
    shard.write_bytes(content)
    (subset.ledger / GROWING_FILE).touch()
    assert resume(folder) == {1, 2, 3, 4, 5}
    assert "does not hold what was written, and its rows are labelled again" in caplog.text


OF_ANOTHER_KIND = ("README.md", "data", "tokenizer", "_ledger", "_ledger/lock", f"_ledger/exact/{PLAN_FILE}",
    f"_ledger/exact/{RECEIPTS}", f"_ledger/exact/{RECEIPTS}/00000003.json", f"_ledger/exact/{QUARANTINE}",
    f"_ledger/exact/{GROWING_FILE}", "data/exact", "data/exact/train-00003-of-00006.parquet")  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "folder", "file", "link"])
@pytest.mark.parametrize("place", OF_ANOTHER_KIND)
def test_an_entry_of_another_kind_is_used_or_refused_and_never_waited_for(folder: Path, place: str, kind: str) -> None:
    path = folder / "out" / place
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    put(kind, path, folder / "secret")
    before = contents(folder, without="out")
    refused = None
    try:
        with locked(folder / "out"):
            resume(folder)
    except (ValueError, OSError) as error:
        refused = error
    assert contents(folder, without="out") == before
    if kind in ("pipe", "link"):
        assert isinstance(refused, ValueError) and place in str(refused)


def put(kind: str, path: Path, target: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to(target)


def contents(folder: Path, without: str = "nothing") -> dict[str, bytes]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink())
    return {str(file): file.read_bytes() for file in files if without not in file.relative_to(folder).parts}


OUTSIDE = st.sampled_from(["../../../../secret", "../secret", "/etc/hostname", "secret"])
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), OUTSIDE, st.just([]), st.just({})
)


def edited(value: Any, data: st.DataObject) -> Any:
    """Return the JSON with one value changed, removed or added somewhere."""
    if not isinstance(value, dict | list) or not value or data.draw(st.integers(0, 3)) == 0:
        return data.draw(VALUES)
    key = data.draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    change = data.draw(st.sampled_from(["inside", "gone", "twice"]))
    if change == "inside":
        value[key] = edited(value[key], data)
    elif change == "gone":
        del value[key]
    elif isinstance(value, list):
        value.append(value[key])
    else:
        value[data.draw(st.text())] = value[key]
    return value


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """Return the file with some bytes changed, cut or added, or with a value of its JSON edited."""
    if data.draw(st.booleans()):
        return json.dumps(edited(json.loads(content), data)).encode()
    at, instead = data.draw(st.integers(0, len(content))), data.draw(st.binary(max_size=5))
    return content[:at] + instead + content[at + data.draw(st.sampled_from([0, len(instead), len(content)])) :]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), growing=st.booleans())
def test_whatever_is_written_in_a_ledger_is_an_error_or_a_run_of_this_folder(
    base: Path, data: st.DataObject, growing: bool
) -> None:
    with TemporaryDirectory() as place:
        folder = Path(shutil.copytree(base, Path(place) / "copy"))
        subset = Subset("exact", folder / "out")
        file = data.draw(st.sampled_from([subset.ledger / PLAN_FILE, *sorted((subset.ledger / RECEIPTS).iterdir())]))
        file.write_bytes(damaged(file.read_bytes(), data))
        if growing:
            (subset.ledger / GROWING_FILE).touch()
        before = contents(folder, without="out")
        for read in (lambda: Ledger(subset).receipts(), lambda: existing_plan(subset), lambda: resume(folder)):
            try:
                read()
            except (ValueError, OSError) as error:
                assert "\n" not in str(error)
        assert contents(folder, without="out") == before
