"""Names of an annotated dataset's inputs and model: in shards, card, report and summary."""

import json
import re
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data.annotated import find_annotations
from pipeline.data.ledger import Ledger
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from pipeline.report.page import write_report
from schemas.annotations import PROVENANCE_KEY, SHIPPED_MODEL, UNRECORDED_MODEL, Provenance
from schemas.layout import Subset
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.hub import Hub
from tests.tiny_models import tiny_second_order

ANNOTATE = ("pipeline.annotate", "--workers", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "my-model"
    tiny_second_order(vocabulary=8192).save_pretrained(folder)
    copy_tokenizer(SHIPPED / "tokenizer", folder)
    return folder


def notes(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True)
    files = [folder / f"a-note-about-something-{number:04d}.txt" for number in range(count)]
    for file in files:
        file.write_text("A short note.", encoding="utf-8")
    return files


def shards(output: Path) -> list[Path]:
    return sorted((output / "data").rglob("*.parquet"))


def provenance_of(shard: Path) -> Provenance:
    return Provenance.from_json(pq.read_schema(shard).metadata[PROVENANCE_KEY].decode())


def test_a_footer_is_as_large_for_many_files_as_for_one(run_command: RunCommand, tmp_path: Path, model: Path) -> None:
    sizes = []
    for count in (1, 40):
        files, output = notes(tmp_path / str(count) / "notes", count), tmp_path / f"out-{count}"
        assert run_command(*ANNOTATE, "--input", *files, "--estimator", model, "--output", output) == 0
        sizes.append(max(pq.read_metadata(shard).serialized_size for shard in shards(output)))
        assert str(tmp_path).encode() not in b"".join(file.read_bytes() for file in [*shards(output)])
        plan = json.loads((output / "_ledger" / "second-order" / "plan.json").read_text(encoding="utf-8"))
        assert plan["source"] == plan["inputs"] == list(map(str, files)), "the ledger has the whole list"
    assert abs(sizes[0] - sizes[1]) < 20
    found = find_annotations(str(tmp_path / "out-40")).provenance
    assert (found.source, found.source_files) == (("40 local files in notes",), 40)


def test_no_path_of_this_disk_is_published(
    run_command: RunCommand, tmp_path: Path, model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_documents(tmp_path / "secret" / "in.parquet", ["a", "b"] * 8, input_ids=[[1, 2]] * 15 + [[9999]])
    hub.add("user/source", {"0.parquet": file.read_bytes()})
    commit = hub.commits("user/source")[-1].oid
    monkeypatch.setattr("pipeline.engine.scheduler.PAUSE", 0.1)
    chosen = ("--input", file, "hf://datasets/user/source", "--estimator", model, "--tokenizer", "none")
    published = ("--output", "hf://datasets/user/name", "--staging")
    assert run_command(*ANNOTATE, *chosen, *published, tmp_path / "staging") == 3
    assert run_command(*ANNOTATE, *chosen, "--output", tmp_path / "out") == 3
    assert run_command("pipeline.publish", tmp_path / "out", "hf://datasets/user/later") == 3
    for name in ("user/name", "user/later"):
        files = hub.files(name)
        assert any("quarantine" in path for path in files)
        assert not [path for path, content in files.items() if str(tmp_path).encode() in content]
        plan = json.loads(files["_ledger/second-order/plan.json"])
        assert plan["source"] == ["a local file", f"hf://datasets/user/source@{commit}"]
        assert "1 local file in secret" in files["README.md"].decode()
    hub.add("user/source", {"1.parquet": file.read_bytes()})
    again = run_command(*ANNOTATE, *chosen, *published, tmp_path / "empty")
    assert again == 3, "the published plan alone pins the source's commit"


def test_a_moved_input_is_the_same_and_another_is_refused(
    run_command: RunCommand, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_documents(tmp_path / "one" / "in.parquet", sample_texts(4, 200))
    other = write_documents(tmp_path / "one" / "other.parquet", sample_texts(5, 200)[1:])
    chosen = ("--estimator", model, "--output", tmp_path / "out", "--rows-per-unit", 2)
    assert run_command(*ANNOTATE, "--input", file, *chosen) == 0
    (tmp_path / "two").mkdir()
    moved, renamed = shutil.move(file, tmp_path / "two"), shutil.copytree(model, tmp_path / "renamed")
    shards(tmp_path / "out")[0].unlink()
    again = ("--estimator", renamed, *chosen[2:])
    assert run_command(*ANNOTATE, "--input", moved, *again) == 0
    assert {provenance_of(shard).model for shard in shards(tmp_path / "out")} == {"my-model"}
    assert {provenance_of(shard).source for shard in shards(tmp_path / "out")} == {("1 local file in one",)}
    capsys.readouterr()
    assert run_command(*ANNOTATE, "--input", other, *chosen) == 1
    assert "another run's dataset (source_sha256" in capsys.readouterr().err


def test_a_dataset_of_another_commit_is_another_run(
    run_command: RunCommand, tmp_path: Path, model: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(2, 200))
    commits = [hub.add("user/source", {"0.parquet": file.read_bytes(), "x": b"%d" % turn}) for turn in range(2)]
    inputs = [f"hf://datasets/user/source@{commit}" for commit in commits]
    chosen = ("--estimator", model, "--output", tmp_path / "out")
    assert [run_command(*ANNOTATE, "--input", named, *chosen) for named in inputs] == [0, 1]
    assert re.search(r"another run's dataset \(source .*source@", capsys.readouterr().err)


def test_a_run_of_an_older_version_is_read_and_resumed(run_command: RunCommand, tmp_path: Path, model: Path) -> None:
    """Shards of an older version hold the paths of inputs instead of their names.

    These shards and those of the resumed run must together be one dataset.
    """
    files, output = notes(tmp_path / "notes", 6), tmp_path / "out"
    chosen = ("--input", *files, "--estimator", model, "--output", output)
    assert run_command(*ANNOTATE, *chosen) == 0
    subset = Subset("second-order", output)
    plan = json.loads((subset.ledger / "plan.json").read_text(encoding="utf-8"))
    plan["run"] = old = {**plan["run"], "source": plan.pop("source")}
    for name in ("source_files", "model"):
        del old[name]
    (subset.ledger / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    receipts = Ledger(subset).receipts()
    for receipt in receipts:
        shard = subset.data / receipt.shard
        table = pq.read_table(shard).replace_schema_metadata({PROVENANCE_KEY: json.dumps(old, indent=2)})
        pq.write_table(table, shard)
        Ledger(subset).record(
            replace(receipt, sha256=sha256(shard.read_bytes()).hexdigest(), size=shard.stat().st_size)
        )
    (output / "README.md").unlink()
    found = find_annotations(str(output)).provenance
    assert (found.source, found.source_files, found.model) == (tuple(map(str, files)), 0, UNRECORDED_MODEL)
    shards(output)[0].unlink()
    assert run_command(*ANNOTATE, *chosen) == 0
    assert len(shards(output)) == 6 == len(receipts)
    assert find_annotations(str(output)).provenance == found
    assert str(tmp_path) not in (output / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("shipped", [True, False])
def test_every_output_names_the_model_and_warns_of_the_shipped_one(
    run_command: RunCommand, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], shipped: bool
) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(2, 300))
    chosen = () if shipped else ("--estimator", model)
    assert run_command(*ANNOTATE, "--input", file, *chosen, "--output", tmp_path / "out") == 0
    page = write_report(str(tmp_path / "out"), tmp_path / "report")
    told = [
        capsys.readouterr().out,
        (tmp_path / "out" / "README.md").read_text(encoding="utf-8"),
        page.read_text(encoding="utf-8"),
    ]
    name = SHIPPED_MODEL if shipped else "my-model"
    assert provenance_of(shards(tmp_path / "out")[0]).model == name
    for text in told:
        assert name in text and ("--method causal --estimator NAME" in text) == shipped


def test_a_model_of_the_hub_is_named_with_its_commit(
    run_command: RunCommand, tmp_path: Path, model: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.add("user/model", {file.name: file.read_bytes() for file in model.iterdir()}, kind="models")
    file = write_documents(tmp_path / "in.parquet", sample_texts(2, 300))
    assert run_command(*ANNOTATE, "--input", file, "--estimator", "user/model", "--output", tmp_path / "out") == 0
    assert f"model          user/model@{commit}\n" in capsys.readouterr().out
    assert f"user/model@{commit}" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
