"""Annotation on a Ray cluster: `ray job submit` sends the command to the cluster's head. The head runs on loopback."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.builders import sample_texts, write_documents
from tests.conftest import Head, RunCommand
from tests.engine.fakes import shards

ROOT = Path(__file__).parent.parent
METRICS = ("token_entropy_units", "token_entropy_tokens", "token_entropy_batch_fill", "token_entropy_device_wait")

pytestmark = pytest.mark.cluster


def ray_job(head: Head, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", *arguments]
    environment = {**os.environ, **head.environment, "RAY_ADDRESS": head.dashboard}
    return subprocess.run(
        command, env=environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


def submit(head: Head, name: str, *arguments: object, follow: bool) -> str:
    """Submit an annotation; return the output of `ray job submit`."""
    options = ["--submission-id", name, "--working-dir", ".", *([] if follow else ["--no-wait"])]
    entry = [sys.executable, "-m", "pipeline.annotate", *map(str, arguments)]
    return submitted(head, "submit", *options, "--", *entry)


def submitted(head: Head, *words: str, succeeds: bool = True) -> str:
    """Return the output of `ray job`; retry while a busy head has no agent for the job."""
    deadline = time.monotonic() + 120
    while "No available agent" in (ended := ray_job(head, *words)).stdout:
        assert time.monotonic() < deadline, ended.stdout
        time.sleep(2)
    assert (ended.returncode == 0) == succeeds, ended.stdout
    return ended.stdout


def wait_until(happened: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)


def shown_metrics(head: Head) -> str:
    with urllib.request.urlopen(head.metrics, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.long
def test_a_job_is_submitted_followed_interrupted_and_resumed(
    ray_head: Head, tmp_path: Path, run_command: RunCommand
) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(30, characters=600))
    arguments = ("--input", file, "--method", "exact", "--share", 0.1, "--rows-per-unit", 1)
    output = tmp_path / "out"
    submit(ray_head, "first", *arguments, "--workers", 1, "--output", output, follow=False)
    wait_until(lambda: len(list((output / "data").rglob("*.parquet"))) > 2)
    wait_until(lambda: all(name in shown_metrics(ray_head) for name in METRICS))
    token = ray_head.environment["RAY_AUTH_TOKEN"]
    client = JobSubmissionClient(ray_head.dashboard, headers={"Authorization": f"Bearer {token}"})
    client.stop_job("first")
    wait_until(lambda: client.get_job_status("first").is_terminal())
    committed = len(list((output / "_ledger").rglob("receipts/*.json")))
    assert 0 < committed < 30, "the run was over before it was stopped; give it more to do"
    assert client.get_job_status("first") == JobStatus.STOPPED
    printed = submit(ray_head, "second", *arguments, "--workers", 1, "--output", output, follow=True)
    assert "documents      30" in printed and "succeeded" in printed
    assert run_command("pipeline.annotate", *arguments, "--workers", 0, "--output", tmp_path / "plain") == 0
    assert shards(output) == shards(tmp_path / "plain")


def test_an_output_in_the_folder_that_ray_deletes_is_refused_at_once(ray_head: Head) -> None:
    words = ("submit", "--submission-id", "relative", "--working-dir", ".", "--")
    entry = (sys.executable, "-m", "pipeline.annotate", "--output", "annotated")
    printed = submitted(ray_head, *words, *entry, succeeds=False)
    assert "error: --output annotated is in Ray's copy of the working directory" in printed
    assert f"as in --output {ray_head.environment['HOME']}/annotated" in printed and "workers  " not in printed
