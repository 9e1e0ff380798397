"""Faults that need their own Ray: a driver that is killed again and again, a lost node."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.data.ledger import Ledger
from pipeline.engine.output import open_run
from schemas.receipts import Plan
from tests.builders import write_documents
from tests.conftest import Head
from tests.engine.fakes import planned_run, shards, token_rows, undisturbed

pytestmark = pytest.mark.cluster


def documents(folder: Path, rows: int) -> Path:
    return write_documents(folder / "in.parquet", ["text"] * rows, input_ids=token_rows(rows))


@pytest.mark.long
@pytest.mark.parametrize(("kills", "rows"), [(2, 60), pytest.param(20, 500, marks=pytest.mark.slow)])
def test_a_driver_that_is_killed_again_and_again_leaves_the_same_dataset(
    tmp_path: Path, ray_head: Head, kills: int, rows: int
) -> None:
    file, output = documents(tmp_path, rows), tmp_path / "out"
    run, units = planned_run(output, [file], rows_per_unit=1)
    command = [sys.executable, "-m", "tests.engine.drive", str(file), str(output), ray_head.address]
    environment = {**os.environ, **ray_head.environment}
    moments = random.Random(0)

    def committed() -> int:
        return len(Ledger(run.subset).receipts())

    for kill in range(kills):
        # Every second driver is killed at any point, the others when they have committed something. Two workers need
        # 0.2 s per unit, so all units take longer than all drivers live.
        before = committed()
        driver = subprocess.Popen([*command, "0.4"], env=environment)
        while kill % 2 and committed() == before:
            assert driver.poll() is None
            time.sleep(0.1)
        time.sleep(moments.uniform(0.5, 4))
        driver.kill()
        driver.wait()
    assert 0 < committed() < rows, "the run was over before it was killed; give it more to do"
    subprocess.run([*command, "0"], env=environment, check=True)
    assert shards(output) == undisturbed(run, units, tmp_path / "plain")
    assert [receipt.unit for receipt in Ledger(run.subset).receipts()] == list(range(rows))
    assert {path.name for path in run.subset.ledger.iterdir()} == {"plan.json", "receipts"}
    open_run(run.subset, Plan(run.provenance, (), schema=run.schema), units)
    assert len(Ledger(run.subset).finished()) == rows


@pytest.mark.long
@pytest.mark.parametrize("process", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_a_killed_ray_ends_the_driver_with_a_message_and_the_same_command_resumes(tmp_path: Path, process: str) -> None:
    """Ray itself would let the driver wait forever, or end its process silently."""
    file, output = documents(tmp_path, rows=20), tmp_path / "out"
    run, units = planned_run(output, [file], rows_per_unit=1)
    command = [sys.executable, "-m", "tests.engine.drive", str(file), str(output), "local"]
    driver = psutil.Popen([*command, "1"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not run.subset.shards():
        assert driver.poll() is None
        time.sleep(0.1)
    (ours,) = [child for child in driver.children() if child.name() == process]
    ours.kill()
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert errors.splitlines()[-1] == (
        f"ConnectionError: Ray is gone: {process} ended, perhaps killed; the same command resumes"
    )
    assert 0 < len(Ledger(run.subset).receipts()) < 20
    subprocess.run([*command, "0"], check=True)
    assert shards(output) == undisturbed(run, units, tmp_path / "plain")


@pytest.mark.long
def test_a_node_that_joins_is_used_and_a_lost_node_costs_no_row(tmp_path: Path) -> None:
    file, output = documents(tmp_path, rows=60), tmp_path / "out"
    run, units = planned_run(output, [file], rows_per_unit=1)
    command = [sys.executable, "-m", "tests.engine.lose_node", str(file), str(output), "0.5"]
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    ended = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("{")]  # Ray may print that a node is lost
    report = json.loads(line)
    assert report["most"] == 4 and report["lost"] and report["left"] == 2 and report["committed"] == 60
    assert shards(output) == undisturbed(run, units, tmp_path / "plain")
