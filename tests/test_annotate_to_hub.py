"""`--output hf://datasets/USER/NAME`, as a user runs it: in processes of its own, against a Hub that fails at times."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from tests.builders import sample_texts, write_documents
from tests.conftest import SmallDisk
from tests.hub import Hub, hub_server
from tests.tiny_models import tiny_second_order

URL = "hf://datasets/user/name"
LOAD = """
import json, sys
from datasets import load_dataset
whole = load_dataset("user/name", split="train")
streamed = load_dataset("user/name", split="train", streaming=True)
print(json.dumps([list(whole), list(streamed)]))
"""


@pytest.fixture
def served() -> Iterator[Hub]:
    with hub_server() as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_second_order(vocabulary=8192).save_pretrained(folder)
    copy_tokenizer(SHIPPED / "tokenizer", folder)
    return folder


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return {**hub.environment, "HF_HOME": str(home)}


def start(
    hub: Hub, home: Path, *arguments: object, module: str = "pipeline.annotate", token: str | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        env={**environment(hub, home), "HF_TOKEN": token or hub.writer},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(hub: Hub, home: Path, *arguments: object, **chosen: Any) -> tuple[int, str]:
    """The exit code, and all that was printed, in which no token may be."""
    process = start(hub, home, *arguments, **chosen)
    output, errors = process.communicate(timeout=300)
    assert not re.search(r"hf_[A-Za-z0-9]{8}", output + errors)
    return process.returncode, output + errors


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((folder / "data").rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def loaded(hub: Hub, home: Path) -> list[list[dict[str, Any]]]:
    """By `datasets`, whole and streamed."""
    ran = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment(hub, home), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    rows: list[list[dict[str, Any]]] = json.loads(ran.stdout)
    return rows


def test_a_run_that_is_killed_twice_while_requests_fail_publishes_what_a_local_run_writes(
    served: Hub, tmp_path: Path, model: Path, documents: Path
) -> None:
    """The second time on an empty disk: the repository alone says what is missing."""
    chosen = ("--input", documents, "--limit", 50, "--estimator", model, "--rows-per-unit", 1, "--workers", 1)
    served.faults.share = 0.1
    for time_of_death in (1, 2):
        run = start(served, tmp_path / f"home-{time_of_death}", *chosen, "--output", URL)
        wait_for_uploads(served, 10 * time_of_death, run)
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    code, printed = ended(served, tmp_path / "home-3", *chosen, "--output", URL)
    assert code == 0, printed
    assert "documents      50" in printed and f"dataset        {URL}" in printed
    served.faults.share = 0.0
    assert ended(served, tmp_path / "plain", *chosen, "--output", tmp_path / "plain")[0] == 0
    expected = rows_of(tmp_path / "plain")
    assert loaded(served, tmp_path / "home") == [expected, expected]
    files = served.files("user/name")
    shards = [path for path in files if path.startswith("data/")]
    receipts = [line for path, text in files.items() if "/receipts/" in path for line in text.decode().splitlines()]
    assert len(shards) == 50 == len(receipts) == len({json.loads(line)["unit"] for line in receipts})
    assert len(served.commits("user/name")) <= 9
    staged = list((tmp_path / "home-3" / "annotated").rglob("*.parquet"))
    assert staged == [], "shards that are published still lie on the disk"
    before = len(served.commits("user/name"))
    code, printed = ended(served, tmp_path / "home-4", *chosen, "--output", URL)
    assert code == 0 and "the dataset was complete" in printed and len(served.commits("user/name")) == before


def wait_for_uploads(hub: Hub, count: int, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while sum(request.storage and request.method == "PUT" for request in hub.requests) < count:
        assert time.monotonic() < deadline and run.poll() is None, run.communicate()
        time.sleep(0.05)


def test_a_folder_is_published_with_what_it_would_have_had(served: Hub, tmp_path: Path, model: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(20, 300), id=list(range(20)))
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 5, "--workers", 1)
    assert ended(served, tmp_path, *chosen, "--output", URL)[0] == 0
    direct = served.files("user/name")
    assert ended(served, tmp_path, *chosen, "--output", tmp_path / "folder")[0] == 0
    code, printed = ended(served, tmp_path, tmp_path / "folder", f"{URL}-2", module="pipeline.publish")
    assert code == 0 and "second-order: 4 of 4 shards are in hf://datasets/user/name-2" in printed
    later = served.files("user/name-2")
    assert {path: content for path, content in later.items() if "data/" in path or "tokenizer/" in path} == {
        path: content for path, content in direct.items() if "data/" in path or "tokenizer/" in path
    }
    cards = [
        re.sub(r"user/name-2|begin \S+ \w+", "user/name", files["README.md"].decode()) for files in (direct, later)
    ]
    assert cards[0].replace("begin ", "") == cards[1].replace("begin ", "")
    commits = len(served.commits("user/name-2"))
    assert ended(served, tmp_path, tmp_path / "folder", f"{URL}-2", module="pipeline.publish")[0] == 0
    assert len(served.commits("user/name-2")) == commits
    check_that_others_read_it(tmp_path / "folder")


def check_that_others_read_it(folder: Path) -> None:
    """pyarrow, DuckDB and polars find the same values; a filter on `mean_entropy` skips row groups."""
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


def test_shards_go_by_xet_too(tmp_path: Path, model: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(6, 300))
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 2, "--workers", 1)
    with hub_server(xet=tmp_path / "xet") as hub:
        code, printed = ended(hub, tmp_path / "home", *chosen, "--output", URL)
        assert code == 0, printed
        assert any("xet" in request.path for request in hub.requests)
        rows = loaded(hub, tmp_path / "home")
    assert ended(hub, tmp_path, *chosen, "--output", tmp_path / "plain")[0] == 0
    assert rows == [rows_of(tmp_path / "plain")] * 2


def test_two_jobs_on_one_repository_do_no_harm(served: Hub, tmp_path: Path, model: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(24, 300))
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 1, "--workers", 1, "--output", URL)
    both = [start(served, tmp_path / f"home-{job}", *chosen) for job in (1, 2)]
    printed = [job.communicate(timeout=300) for job in both]
    assert [job.returncode for job in both] == [0, 0], printed
    files = served.files("user/name")
    receipts = [line for path, text in files.items() if "/receipts/" in path for line in text.decode().splitlines()]
    assert sorted(json.loads(line)["unit"] for line in receipts) == list(range(24))
    assert len([path for path in files if path.startswith("data/")]) == 24


def test_another_run_in_the_repository_is_refused(served: Hub, tmp_path: Path, model: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(4, 300))
    chosen = ("--input", file, "--estimator", model, "--workers", 1, "--output", URL)
    assert ended(served, tmp_path / "one", *chosen)[0] == 0
    before = served.files("user/name")
    code, printed = ended(served, tmp_path / "two", *chosen, "--overlap", 0)
    assert code == 1 and re.fullmatch(r"error: --output .*another run's dataset \(overlap .*\n", printed)
    assert served.files("user/name") == before
    code, printed = ended(served, tmp_path / "two", *chosen, "--overlap", 0, "--subset", "no-overlap")
    assert code == 0, printed
    assert served.files("user/name").items() >= {name: before[name] for name in before if name != "README.md"}.items()
    assert 'load_dataset("user/name", "no-overlap", split="train")' in printed


@pytest.mark.parametrize(
    ("token", "output", "said"),
    [
        ("hf_" + "w" * 34, URL, "does not know this token"),
        ("reader", URL, "may not write"),
        ("writer", "hf://datasets/other/name", "may not write"),
        ("writer", "hf://datasets/user/na me", "names no dataset of the Hub"),
        ("writer", "hf://user/name", "names no dataset of the Hub"),
        ("writer", "s3://bucket/name", "write to one, or to hf://datasets/USER/NAME"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line(
    served: Hub, tmp_path: Path, model: Path, token: str, output: str, said: str
) -> None:
    served.add("other/name", {"README.md": b"theirs"})
    file, known = write_documents(tmp_path / "in.parquet", sample_texts(2, 300)), getattr(served, token, token)
    code, printed = ended(served, tmp_path, "--input", file, "--estimator", model, "--output", output, token=known)
    assert code == 1 and said in printed and len(printed.splitlines()) == 1


def test_a_disk_that_is_full_while_shards_are_staged_loses_nothing(
    served: Hub, tmp_path: Path, model: Path, small_disk: SmallDisk
) -> None:
    served.faults.seconds_per_upload = 0.2
    file = write_documents(tmp_path / "in.parquet", sample_texts(100, 4000) * 4)
    chosen = ("--input", file, "--estimator", model, "--rows-per-unit", 200, "--workers", 1, "--output", URL)
    code, printed = ended(served, tmp_path, *chosen, "--staging", small_disk.folder / "staging")
    error = printed.splitlines()[-1]
    assert code == 1 and error.startswith("error: cannot write to") and "No space left on device" in error
    small_disk.grow()
    code, printed = ended(served, tmp_path, *chosen, "--staging", small_disk.folder / "staging")
    assert code == 0 and "documents      316" in printed
