"""`--output hf://datasets/USER/NAME` with a test server as the Hub, which fails at times.

Commands that are to be killed run in processes of their own.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline.data import hub as hub_module
from pipeline.data.ledger import PublishedLedger
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand, SmallDisk
from tests.forkserver import Forked
from tests.hub import Hub, hub_server
from tests.kills import Command, Started
from tests.tiny_models import tiny_second_order

URL = "hf://datasets/user/name"
LOAD = """
import json, sys
from datasets import load_dataset
whole = load_dataset("user/name", split="train")
streamed = load_dataset("user/name", split="train", streaming=True)
print(json.dumps([list(whole), list(streamed)]))
"""
FEATURES = """
from datasets import load_dataset
for name in ("user/name", "user/name-2"):
    for how in (False, True):
        features = load_dataset(name, split="train", streaming=how).features
        print({key: feature for key, feature in features.items() if key in %r})
"""
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_second_order(vocabulary=8192).save_pretrained(folder)
    copy_tokenizer(SHIPPED / "tokenizer", folder)
    return folder


@pytest.fixture
def run(run_command: RunCommand, hub: Hub, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command and returns its exit code and output. The output must hold no Hub token."""

    def run_it(*arguments: object, module: str = "pipeline.annotate") -> tuple[int, str]:
        here = ("--workers", 0) if module == "pipeline.annotate" else ()
        capsys.readouterr()
        code = run_command(module, *arguments, *here)
        printed = capsys.readouterr()
        check_no_token(printed.out + printed.err)
        return code, printed.out + printed.err

    return run_it


def check_no_token(printed: str) -> None:
    assert not re.search(r"hf_[A-Za-z0-9]{8}", printed)


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return {**hub.environment, "HF_HOME": str(home)}


def start(hub: Hub, home: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start the command in a process of its own, with its staging folder below `home`."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.annotate", *map(str, arguments)],
        env={**os.environ, **environment(hub, home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((folder / "data").rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def loaded(hub: Hub, home: Path) -> list[list[dict[str, Any]]]:
    """Load the dataset with `datasets`, whole and streamed."""
    ran = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment(hub, home), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    rows: list[list[dict[str, Any]]] = json.loads(ran.stdout)
    return rows


@pytest.mark.long
def test_a_run_that_is_killed_twice_while_requests_fail_publishes_what_a_local_run_writes(
    hub: Hub, run: Run, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start has an empty disk, so only the repository says what is missing."""
    documents = write_documents(tmp_path / "in.parquet", sample_texts(30, 600))
    chosen = ("--input", documents, "--estimator", model, "--rows-per-unit", 1)
    hub.faults.share = 0.1
    for time_of_death in (1, 2):
        (scratch := tmp_path / f"killed-{time_of_death}").mkdir()
        killed = Started(Command(tuple(map(str, chosen)), scratch, hub), workers=0)
        wait_for_uploads(hub, 7 * time_of_death, killed)
        assert killed.kill(signal.SIGKILL, "driver", random.Random(0)) and killed.ended(60) == -signal.SIGKILL
    monkeypatch.setattr(hub_module, "LONGEST_PAUSE", 0.1)
    code, printed = run(*chosen, "--output", URL, "--staging", tmp_path / "staging")
    assert code == 0, printed
    assert "documents      30" in printed and f"dataset        {URL}" in printed
    hub.faults.share = 0.0
    assert run(*chosen, "--output", tmp_path / "plain")[0] == 0
    expected = rows_of(tmp_path / "plain")
    assert loaded(hub, tmp_path / "home") == [expected, expected]
    files = hub.files("user/name")
    shards = [path for path in files if path.startswith("data/")]
    receipts = [line for path, text in files.items() if "/receipts/" in path for line in text.decode().splitlines()]
    assert len(shards) == 30 == len(receipts) == len({json.loads(line)["unit"] for line in receipts})
    assert len(hub.commits("user/name")) <= 9
    staged = list((tmp_path / "staging").rglob("*.parquet"))
    assert staged == [], "shards that are published still lie on the disk"
    before = len(hub.commits("user/name"))
    code, printed = run(*chosen, "--output", URL, "--staging", tmp_path / "another")
    assert code == 0 and "the dataset was complete" in printed and len(hub.commits("user/name")) == before


def wait_for_uploads(hub: Hub, count: int, run: Started) -> None:
    deadline = time.monotonic() + 120
    while sum(request.storage and request.method == "PUT" for request in hub.requests) < count:
        assert run.ended(0.05) is None and time.monotonic() < deadline, run.printed.read_text(encoding="utf-8")


def test_a_folder_is_published_with_what_it_would_have_had(hub: Hub, run: Run, tmp_path: Path, model: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(20, 300), id=list(range(20)))
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 5)
    assert run(*chosen, "--output", URL, "--staging", tmp_path / "staging")[0] == 0
    direct = hub.files("user/name")
    assert run(*chosen, "--output", tmp_path / "folder")[0] == 0
    code, printed = run(tmp_path / "folder", f"{URL}-2", module="pipeline.publish")
    assert code == 0 and "second-order: 4 of 4 shards are in hf://datasets/user/name-2" in printed
    later = hub.files("user/name-2")
    assert {path: content for path, content in later.items() if "data/" in path or "tokenizer/" in path} == {
        path: content for path, content in direct.items() if "data/" in path or "tokenizer/" in path
    }
    cards = [
        re.sub(r"user/name-2|begin \S+ \w+", "user/name", files["README.md"].decode()) for files in (direct, later)
    ]
    assert cards[0].replace("begin ", "") == cards[1].replace("begin ", "")
    commits = len(hub.commits("user/name-2"))
    assert run(tmp_path / "folder", f"{URL}-2", module="pipeline.publish")[0] == 0
    assert len(hub.commits("user/name-2")) == commits
    check_that_others_read_it(tmp_path / "folder")


def check_that_others_read_it(folder: Path) -> None:
    """Assert that polars and DuckDB read the same values as pyarrow from the dataset in a folder.

    A filter of pyarrow on `mean_entropy` must find a single row, and must skip row groups.
    """
    pattern, expected = str(folder / "data" / "**" / "*.parquet"), rows_of(folder)
    columns = ("id", "input_ids", "entropy", "expected_entropy", "num_tokens", "mean_entropy")
    wanted = [tuple(row[name] for name in columns) for row in expected]
    assert polars.read_parquet(pattern).select(columns).rows() == wanted
    listed = ", ".join(columns)
    assert duckdb.connect().execute(f"select {listed} from '{pattern}' order by id").fetchall() == wanted
    means = sorted(row["mean_entropy"] for row in expected)
    above = pads.field("mean_entropy") > means[-1] - 1e-6
    found = pq.read_table(folder / "data", filters=above)
    assert found.num_rows == 1
    dataset = pads.dataset(folder / "data", format="parquet")
    kept = sum(len(part.subset(above).row_groups) for part in dataset.get_fragments())
    assert kept == 1 < sum(part.num_row_groups for part in dataset.get_fragments())


@pytest.mark.long
def test_shards_go_by_xet_too(run: Run, tmp_path: Path, model: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(6, 300))
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 2)
    with hub_server(xet=tmp_path / "xet") as hub:
        published = start(hub, tmp_path / "home", *chosen, "--workers", 0, "--output", URL)
        printed = "".join(published.communicate(timeout=300))
        check_no_token(printed)
        assert published.returncode == 0, printed
        assert any("xet" in request.path for request in hub.requests)
        rows = loaded(hub, tmp_path / "home")
    assert run(*chosen, "--output", tmp_path / "plain")[0] == 0
    assert rows == [rows_of(tmp_path / "plain")] * 2


def test_two_jobs_on_one_repository_do_no_harm(hub: Hub, tmp_path: Path, model: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(24, 300))
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 1, "--workers", 0, "--output", URL)
    homes = [tmp_path / f"home-{job}" for job in (1, 2)]
    both = [
        Forked("pipeline.annotate", *chosen, "--staging", home / "staging", environment=environment(hub, home))
        for home in homes
    ]
    printed = [job.communicate(timeout=300) for job in both]
    assert [job.returncode for job in both] == [0, 0], printed
    files = hub.files("user/name")
    receipts = [line for path, text in files.items() if "/receipts/" in path for line in text.decode().splitlines()]
    assert sorted(json.loads(line)["unit"] for line in receipts) == list(range(24))
    assert len([path for path in files if path.startswith("data/")]) == 24


def test_another_run_in_the_repository_is_refused(hub: Hub, run: Run, tmp_path: Path, model: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(4, 300))
    chosen = ("--input", file, "--estimator", model, "--output", URL)
    assert run(*chosen, "--staging", tmp_path / "one")[0] == 0
    before, other = hub.files("user/name"), ("--staging", tmp_path / "two", "--overlap", 0)
    code, printed = run(*chosen, *other)
    assert code == 1 and re.fullmatch(r"error: --output .*another run's dataset \(overlap .*\n", printed)
    assert hub.files("user/name") == before
    code, printed = run(*chosen, *other, "--subset", "no-overlap")
    assert code == 0, printed
    assert hub.files("user/name").items() >= {name: before[name] for name in before if name != "README.md"}.items()
    assert 'load_dataset("user/name", "no-overlap", split="train")' in printed


def test_a_repository_with_data_of_its_own_keeps_it_or_is_left_as_it_is(
    hub: Hub, run: Run, tmp_path: Path, model: Path
) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(4, 300))
    chosen = ("--input", file, "--estimator", model, "--staging", tmp_path / "staging", "--output")
    hub.add("user/table", {"a.csv": b"text\nmine\n"})
    before = hub.files("user/table")
    code, printed = run(*chosen, "hf://datasets/user/table")
    assert code == 1 and printed.startswith("error: hf://datasets/user/table has data that `datasets` reads as csv")
    assert len(printed.splitlines()) == 1 and hub.files("user/table") == before
    hub.add("user/name", {"mine.parquet": file.read_bytes()})
    assert run(*chosen[:-2], tmp_path / "other", "--output", URL)[0] == 0
    own, streamed = loaded(hub, tmp_path / "home")
    assert own == streamed == pq.read_table(file).to_pylist()


@pytest.mark.parametrize(
    ("token", "output", "said"),
    [
        ("hf_" + "w" * 34, URL, "does not know this token"),
        ("reader", URL, "may not write"),
        ("writer", "hf://datasets/other/name", "may not write"),
        ("writer", "hf://datasets/user/na me", "is not a dataset of the Hub"),
        ("writer", "hf://user/name", "is not a dataset of the Hub"),
        ("writer", "s3://bucket/name", "write to a folder, or to hf://datasets/USER/NAME"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line(
    hub: Hub,
    run: Run,
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    output: str,
    said: str,
) -> None:
    hub.add("other/name", {"README.md": b"theirs"})
    file = write_documents(tmp_path / "in.parquet", sample_texts(2, 300))
    monkeypatch.setenv("HF_TOKEN", getattr(hub, token, token))
    monkeypatch.setattr("pipeline.annotate.config.HF_HOME", str(tmp_path / "home"))
    code, printed = run("--input", file, "--estimator", model, "--output", output)
    assert code == 1 and said in printed and len(printed.splitlines()) == 1


@pytest.mark.long
def test_a_disk_that_is_full_while_shards_are_staged_loses_nothing(
    hub: Hub, run: Run, tmp_path: Path, model: Path, small_disk: SmallDisk
) -> None:
    hub.faults.seconds_per_upload = 0.2
    file = write_documents(tmp_path / "in.parquet", sample_texts(100, 4000) * 4)
    wide = ("--dtype", "float32")  # in bfloat16 this model's labels have few distinct values, and all shards would fit
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 200, "--output", URL, *wide)
    code, printed = run(*chosen, "--staging", small_disk.folder / "staging")
    error = printed.splitlines()[-1]
    assert code == 1 and error.startswith("error: cannot write to") and "No space left on device" in error
    small_disk.grow()
    code, printed = run(*chosen, "--staging", small_disk.folder / "staging")
    assert code == 0 and "documents      316" in printed


@pytest.mark.parametrize("more", [{}, pytest.param({"_type": ["x", "y", "z"]}, marks=pytest.mark.long)])
def test_names_of_classes_are_those_of_the_source_on_the_hub_too(
    run: Run, hub: Hub, model: Path, tmp_path: Path, more: dict[str, list[str]]
) -> None:
    """The dataset has the class names that its source declares with ClassLabel.

    The card has no features if the source has a column with the reserved name `_type`. `datasets` then reads the class
    names from the shards.
    """
    columns = {"kind": [0, 1, None], **more}
    known = {"kind": {"names": ["ham", "spam"], "_type": "ClassLabel"}}
    table = pa.table({"text": sample_texts(3, 200), **columns})
    described = {"huggingface": json.dumps({"info": {"features": known}})}
    pq.write_table(table.replace_schema_metadata(described), tmp_path / "in.parquet")
    command = ("--input", tmp_path / "in.parquet", "--estimator", model)
    code, printed = run(*command, "--output", URL, "--staging", tmp_path / "staging")
    assert code == 0, printed
    assert run(*command, "--output", tmp_path / "folder")[0] == 0
    assert run(tmp_path / "folder", f"{URL}-2", module="pipeline.publish")[0] == 0
    reading = [sys.executable, "-c", FEATURES % [*columns]]
    ran = subprocess.run(reading, env=environment(hub, tmp_path / "home"), capture_output=True, text=True, check=False)
    wanted = "{'kind': ClassLabel(names=['ham', 'spam'])" + (", '_type': Value('string')}" if more else "}")
    assert ran.stdout.splitlines() == [wanted] * 4, ran.stderr


def test_a_damaged_shard_in_the_repository_is_labelled_and_published_again(
    hub: Hub, run: Run, tmp_path: Path, model: Path
) -> None:
    """The shard is replaced although its receipt is published. The card then has the right number of rows."""
    file = write_documents(tmp_path / "in.parquet", sample_texts(8, 300))
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 2, "--output", URL)
    assert run(*chosen, "--staging", tmp_path / "staging")[0] == 0
    before = hub.files("user/name")
    (path,) = (path for path in before if path.endswith("train-00002-of-00004.parquet"))
    hub.add("user/name", {path: before[path][:-9] + bytes(9)})
    code, printed = run(*chosen, "--staging", tmp_path / "empty")
    assert code == 0 and "to label       2 documents in 1 units" in printed and "documents      8\n" in printed
    assert hub.files("user/name")[path] == before[path]
    assert b"num_examples: 8\n" in hub.files("user/name")["README.md"]
    assert len(loaded(hub, tmp_path / "home")[0]) == 8


def test_a_damaged_staged_shard_is_labelled_again(
    hub: Hub, run: Run, tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, staging = write_documents(tmp_path / "in.parquet", sample_texts(8, 300)), tmp_path / "staging"
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 2)
    assert run(*chosen, "--output", staging)[0] == 0  # like a run that was killed before its first commit
    sound = {shard.name: shard.read_bytes() for shard in staging.rglob("*.parquet")}
    shard = next(staging.rglob("train-00002-of-00004.parquet"))
    damaged = bytearray(sound[shard.name])
    damaged[len(damaged) // 3] ^= 16
    shard.write_bytes(damaged)
    code, printed = run(*chosen, "--output", URL, "--staging", staging)
    assert code == 0 and "to label       2 documents in 1 units" in printed
    assert "1 staged shards are damaged and labelled again: train-00002-of-00004.parquet" in caplog.text
    files = hub.files("user/name")
    assert {Path(path).name: files[path] for path in files if path.startswith("data/")} == sound
    assert bytes(damaged) not in hub.repositories["datasets", "user/name"].objects.values()


def test_a_staging_folder_that_becomes_an_output_has_all_shards(
    run: Run, tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, staging = write_documents(tmp_path / "in.parquet", sample_texts(8, 300)), tmp_path / "staging"
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 2)
    assert run(*chosen, "--output", URL, "--staging", staging)[0] == 0
    assert list(staging.rglob("*.parquet")) == []
    code, printed = run(*chosen, "--output", staging)
    assert code == 0 and "to label       8 documents in 4 units" in printed
    assert f"{staging} was a staging folder; what was published from it is labelled again" in caplog.text
    assert len(rows_of(staging)) == 8
    code, printed = run(*chosen, "--output", URL, "--staging", staging)
    assert code == 0 and "the dataset was complete" in printed


@pytest.mark.parametrize("path", ["plan.json", "receipts/a.jsonl"])
def test_a_repositorys_ledger_that_is_damaged_is_named(
    hub: Hub, run: Run, tmp_path: Path, model: Path, path: str
) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(2, 300))
    hub.add("user/name", {f"_ledger/second-order/{path}": b'{"unit": 0, "shard": "/etc/passwd"'})
    before = hub.files("user/name")
    code, printed = run("--input", file, "--estimator", model, "--output", URL, "--staging", tmp_path / "staging")
    assert code == 1 and f"{URL}/_ledger/second-order/{path} is damaged (" in printed.splitlines()[-1]
    assert hub.files("user/name").items() >= before.items()


def test_a_repository_whose_plan_reads_another_file_is_refused(hub: Hub, run: Run, tmp_path: Path, model: Path) -> None:
    secret = write_documents(tmp_path / "secret.parquet", ["a secret"])
    hub.add("user/source", {"a.parquet": write_documents(tmp_path / "in.parquet", ["a text"]).read_bytes()})
    chosen = ("--input", "hf://datasets/user/source", "--estimator", model, "--output", URL, "--staging")
    assert run(*chosen, tmp_path / "one")[0] == 0
    file = "_ledger/second-order/plan.json"
    plan = json.loads(hub.files("user/name")[file])
    hub.add("user/name", {file: json.dumps({**plan, "source": [str(secret)]}).encode()})
    before = hub.files("user/name")
    code, printed = run(*chosen, tmp_path / "two")
    said = f"error: the plan of the run there reads {secret} for hf://datasets/user/source; choose another --output"
    assert code == 1 and printed.splitlines()[-1].startswith(said)
    assert hub.files("user/name") == before


def test_shards_that_the_repository_lacks_at_the_end_are_reported_with_exit_code_three(
    run: Run, hub: Hub, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have deleted shards of the repository while the command ran."""
    file = write_documents(tmp_path / "in.parquet", sample_texts(8, 300))
    whole = PublishedLedger.receipts
    monkeypatch.setattr(PublishedLedger, "receipts", lambda *arguments: whole(*arguments)[:-1])
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 2, "--output", URL)
    code, printed = run(*chosen, "--staging", tmp_path / "staging")
    assert code == 3 and "1 of 4 shards are missing; the same command completes them" in printed
    assert b"num_examples: 6\n" in hub.files("user/name")["README.md"]
