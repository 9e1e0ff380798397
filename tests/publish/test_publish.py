"""pipeline.publish of a folder from a stranger or a damaged disk: the content that is sent, and the messages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.hub import Repository
from pipeline.data.ledger import Ledger, PublishedLedger
from pipeline.engine.output import GROWING_FILE
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from schemas.layout import Subset
from schemas.receipts import PLAN_FILE, PUBLISHED_FILE, QUARANTINE, REPORT_FILE, as_lines
from tests.conftest import RunCommand
from tests.hub import Hub
from tests.hub.elsewhere import run
from tests.publish.datasets import annotated

URL, SECRET = "hf://datasets/user/name", b"-----BEGIN PRIVATE KEY-----"
COUNT = """
from datasets import load_dataset
print(load_dataset("user/name", split="train").num_rows)
"""


@pytest.fixture
def subset(tmp_path: Path) -> Subset:
    """Write a dataset of six shards with two documents each, and a file with a secret outside the dataset."""
    (tmp_path / "secret").write_bytes(SECRET)
    return annotated(tmp_path).subset


def sent(hub: Hub) -> list[bytes]:
    """Return everything sent to the Hub for the repository, committed or not."""
    if ("datasets", "user/name") not in hub.repositories:
        return []
    return [*hub.repositories["datasets", "user/name"].objects.values(), *hub.files("user/name").values()]


@pytest.mark.parametrize("target", ["/{}", "../../../secret", "../secret"])
@pytest.mark.parametrize("file", [PUBLISHED_FILE, "receipts/00000003.json", "receipts/a.jsonl"])
def test_a_file_outside_that_a_receipt_names_is_not_sent(
    hub: Hub, subset: Subset, run_command: RunCommand, target: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = Ledger(subset).receipts()[3]
    named = target.format(str(subset.root.parent / "secret").lstrip("/"))
    text = replace(receipt, shard=named, size=len(SECRET)).to_json()
    (subset.ledger / file).write_text(text, encoding="utf-8")
    code = run_command("pipeline.publish", subset.root, URL)
    assert not any(SECRET in content for content in sent(hub))
    if file == PUBLISHED_FILE:  # receipts of a staging folder, which do not matter here
        assert code == 0 and len(hub.files("user/name")) >= 6
    else:
        (line,) = capsys.readouterr().err.splitlines()
        assert code == 1 and f"{file} is damaged (" in line and "delete it" in line


@pytest.mark.parametrize(
    "place",
    [
        "README.md",
        "data",
        "data/exact/train-00003-of-00006.parquet",
        "tokenizer",
        "tokenizer/exact/added.json",
        "_ledger/exact/plan.json",
        "_ledger/exact/report.json",
        "_ledger/exact/quarantine/00000001.json",
        "_ledger/exact/receipts/a.jsonl",
    ],
)
def test_a_link_out_of_the_folder_sends_nothing(
    hub: Hub, subset: Subset, run_command: RunCommand, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, outside = subset.root / place, subset.root.parent / "secret"
    if path.is_dir():
        outside = path.rename(subset.root.parent / "moved")
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    assert run_command("pipeline.publish", subset.root, URL) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{place} is a link that leads out of" in line and sent(hub) == []


def test_a_folder_that_is_reached_by_a_link_is_published(
    hub: Hub, subset: Subset, run_command: RunCommand, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(subset.root)
    assert run_command("pipeline.publish", tmp_path / "link", URL) == 0
    assert len(PublishedLedger(Repository("user/name"), subset).receipts(6)) == 6


def test_only_the_labels_tokenizer_is_sent(
    hub: Hub, subset: Subset, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    """The source was already tokenized, so a tokenizer in the folder does not belong to the dataset."""
    copy_tokenizer(SHIPPED / "tokenizer", subset.tokenizer)
    assert run_command("pipeline.publish", subset.root, URL) == 0
    assert not any(path.startswith("tokenizer/") for path in hub.files("user/name"))
    plan = subset.ledger / PLAN_FILE
    text = plan.read_text(encoding="utf-8")
    plan.write_text(text.replace('"tokenizer_sha256": null', f'"tokenizer_sha256": "{"0" * 64}"'), encoding="utf-8")
    assert run_command("pipeline.publish", subset.root, f"{URL}-2") == 1
    said = "does not contain the labels' tokenizer; run the same pipeline.annotate command again, which writes it"
    assert said in capsys.readouterr().err


def test_a_damaged_shard_is_not_sent_and_the_rest_is(
    hub: Hub, subset: Subset, run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipts = Ledger(subset).receipts()
    shard = subset.data / receipts[3].shard
    sound = shard.read_bytes()
    damaged = bytearray(sound)
    damaged[len(damaged) // 3] ^= 16
    shard.write_bytes(damaged)
    for _ in range(2):
        capsys.readouterr()
        assert run_command("pipeline.publish", subset.root, URL) == 1
        printed = capsys.readouterr()
        assert "exact: 5 of 6 shards are in hf://datasets/user/name\n" in printed.out
        (line,) = printed.err.splitlines()
        assert line.startswith("error: 1 shards do not match their receipts and were not sent, train-00003-of-")
        assert f"`python -m pipeline.verify {subset.root} --repair`, then the same pipeline.annotate command" in line
        assert bytes(damaged) not in sent(hub)
        assert b"num_examples: 10\n" in hub.files("user/name")["README.md"]
    shard.write_bytes(sound)
    assert run_command("pipeline.publish", subset.root, URL) == 0
    assert b"num_examples: 12\n" in hub.files("user/name")["README.md"]
    assert run(hub, tmp_path / "home", COUNT) == 12


def test_a_damaged_published_shard_is_replaced(
    hub: Hub, subset: Subset, run_command: RunCommand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The repository still has the receipt of the damaged shard, so only another publication repairs the shard."""
    receipts = Ledger(subset).receipts()
    assert run_command("pipeline.publish", subset.root, URL) == 0
    path = f"data/exact/{receipts[3].shard}"
    sound = hub.files("user/name")[path]
    hub.add("user/name", {path: sound[:-9] + bytes(9)})
    assert len(PublishedLedger(Repository("user/name"), subset).receipts(6)) == 5
    assert run_command("pipeline.publish", subset.root, URL) == 0
    assert f"1 files without a receipt are replaced: {path}" in caplog.text
    assert hub.files("user/name")[path] == sound and run(hub, tmp_path / "home", COUNT) == 12
    assert PublishedLedger(Repository("user/name"), subset).receipts(6) == receipts


def test_unlabelled_shards_are_reported_and_set_the_exit_code(
    hub: Hub, subset: Subset, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    (subset.data / Ledger(subset).receipts()[3].shard).unlink()
    assert run_command("pipeline.publish", subset.root, URL) == 3
    printed = capsys.readouterr().out
    assert "exact: 5 of 6 shards are in hf://datasets/user/name; 1 are not labelled yet: run the same" in printed
    assert "load it with" not in printed and b"num_examples: 10\n" in hub.files("user/name")["README.md"]


def test_units_that_a_staging_folder_published_elsewhere_do_not_pass_for_done(
    hub: Hub, subset: Subset, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    receipts = Ledger(subset).receipts()
    (subset.ledger / PUBLISHED_FILE).write_text(as_lines(receipts), encoding="utf-8")
    for receipt in receipts[:4]:
        (subset.data / receipt.shard).unlink()
    assert run_command("pipeline.publish", subset.root, URL) == 3
    assert "exact: 2 of 6 shards are in" in capsys.readouterr().out


@pytest.mark.parametrize("file", [REPORT_FILE, f"{QUARANTINE}/00000001.json"])
def test_a_report_or_note_of_other_content_is_not_sent(
    hub: Hub, subset: Subset, run_command: RunCommand, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (subset.ledger / file).parent.mkdir(exist_ok=True)
    (subset.ledger / file).write_bytes(SECRET)
    assert run_command("pipeline.publish", subset.root, URL) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file} is damaged (Expecting value" in line and not any(SECRET in content for content in sent(hub))


def test_shards_of_two_plans_are_not_published(
    hub: Hub, subset: Subset, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    (subset.ledger / GROWING_FILE).touch()
    receipt = Ledger(subset).receipts()[3]
    name = receipt.shard.replace("-of-00006", "-of-00003").replace("00003-of", "00002-of")
    Ledger(subset).receipt_file(3).unlink()
    (subset.data / receipt.shard).rename(subset.data / name)
    Ledger(subset).receipt_file(2).write_text(replace(receipt, unit=2, shard=name).to_json(), encoding="utf-8")
    assert run_command("pipeline.publish", subset.root, URL) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "has a receipt of train-00002-of-00003.parquet, but the plan has 6 shards; run the same" in line
    assert list(hub.files("user/name")) == [".gitattributes"]


def test_a_folder_is_published_as_it_would_be_loaded(hub: Hub, subset: Subset, run_command: RunCommand) -> None:
    assert run_command("pipeline.publish", subset.root, URL) == 0
    plan = json.loads(hub.files("user/name")["_ledger/exact/plan.json"])
    assert plan["files"][0]["url"] == "a local file" and len(plan["units"]) == 6
