"""Faults that need a Ray of their own: a driver that is killed again and again, a node that is lost."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.engine.ledger import finished, read_receipts
from pipeline.engine.opening import Plan, open_run
from tests.builders import write_documents
from tests.conftest import Head
from tests.engine.fakes import planned_run, shards, token_rows, undisturbed

KILLS = 20

pytestmark = pytest.mark.cluster


def documents(folder: Path, rows: int) -> Path:
    return write_documents(folder / "in.parquet", ["text"] * rows, input_ids=token_rows(rows))


def test_a_driver_that_is_killed_twenty_times_leaves_the_same_dataset(tmp_path: Path, ray_head: Head) -> None:
    file, output = documents(tmp_path, rows=500), tmp_path / "out"
    run, units = planned_run(output, [file], rows_per_unit=1)
    command = [sys.executable, "-m", "tests.engine.drive", str(file), str(output), ray_head.address]
    environment = {**os.environ, **ray_head.environment}
    moments = random.Random(0)
    for _ in range(KILLS):
        # Two workers need 100 s for all units, longer than the drivers live together: 20 times 3.5 s on average
        driver = subprocess.Popen([*command, "0.4"], env=environment)
        time.sleep(moments.uniform(1, 6))
        driver.kill()
        driver.wait()
    committed = len(list(read_receipts(run.subset)))
    assert 0 < committed < 500, "the run was over before it was killed; give it more to do"
    subprocess.run([*command, "0"], env=environment, check=True)
    assert shards(output) == undisturbed(run, units, tmp_path / "plain")
    assert [receipt.unit for receipt in read_receipts(run.subset)] == list(range(500))
    assert {path.name for path in run.subset.ledger.iterdir()} == {"plan.json", "receipts"}
    open_run(run.subset, Plan(run.provenance, ()), units)
    assert len(finished(run.subset)) == 500


def test_a_node_that_joins_is_used_and_one_that_is_lost_costs_no_row(tmp_path: Path) -> None:
    file, output = documents(tmp_path, rows=200), tmp_path / "out"
    run, units = planned_run(output, [file], rows_per_unit=1)
    command = [sys.executable, "-m", "tests.engine.lose_node", str(file), str(output), "0.3"]
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    ended = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report["most"] == 4 and report["lost"] and report["left"] == 2 and report["committed"] == 200
    assert shards(output) == undisturbed(run, units, tmp_path / "plain")
