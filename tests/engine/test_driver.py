"""The driver on a real Ray: workers that die, fail, or find no room."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.engine import driver
from pipeline.engine.annotation import Run
from pipeline.engine.ledger import read_receipts
from pipeline.engine.plan import Unit
from tests.builders import random_tokens, tiny_second_order, write_documents
from tests.engine.test_labelling import provenance

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    tiny_second_order().save_pretrained(tmp_path / "model")
    return Run(tmp_path / "out", (tmp_path / "model",), None, None, provenance("second-order"), units=4)


@pytest.fixture
def units(tmp_path: Path) -> list[Unit]:
    ids = [random_tokens(1, 20 + row, seed=row)[0].tolist() for row in range(8)]
    file = write_documents(tmp_path / "in.parquet", ["text"] * 8, input_ids=ids)
    return [Unit(index, str(file), 2 * index, 2 * index + 2) for index in range(4)]


def test_a_ray_of_our_own_listens_on_loopback_alone() -> None:
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {
        connection.laddr.ip
        for process in ours
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening and all(ip.removeprefix("::ffff:").startswith("127.") for ip in listening), listening


def rows_of(run: Run) -> list[int]:
    shards = sorted((run.output / "data").glob("*.parquet"))
    return [length for shard in shards for length in pq.read_table(shard).column("num_tokens").to_pylist()]


def test_more_workers_than_the_cluster_has_room_for_only_wait(run: Run, units: list[Unit]) -> None:
    receipts = list(driver.annotate_units(run, units, workers=4))
    assert {receipt.unit: receipt for receipt in receipts} == read_receipts(run.output)
    assert rows_of(run) == list(range(20, 28))


def kill_a_worker() -> None:
    """Kills one worker process of the local Ray, as running out of memory would."""
    workers = [child for child in psutil.Process().children(recursive=True) if child.name().startswith("ray::Worker")]
    workers[0].kill()


def test_a_unit_whose_worker_is_killed_is_given_out_again(run: Run, units: list[Unit]) -> None:
    receipts = driver.annotate_units(run, units, workers=1)
    units_done = [next(receipts).unit]
    kill_a_worker()
    units_done += [receipt.unit for receipt in receipts]
    assert sorted(units_done) == [0, 1, 2, 3]
    assert rows_of(run) == list(range(20, 28))


def test_a_worker_that_never_lives_to_load_ends_the_run(
    run: Run, units: list[Unit], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def start(run: Run, tasks: dict[Any, Any]) -> None:
        starts.append(1)
        actor: Any = ray.remote(max_restarts=0)(Dying)
        dying = actor.remote()
        tasks[dying.load.remote()] = (dying, None)

    monkeypatch.setattr(driver, "_start_worker", start)
    with pytest.raises(ValueError, match="starting a worker killed 3 workers"):
        list(driver.annotate_units(run, units, workers=1))
    assert len(starts) == 3


class Dying:
    def load(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_unit_that_fails_is_named_with_the_reason(run: Run, units: list[Unit], tmp_path: Path) -> None:
    file = write_documents(tmp_path / "bad.parquet", ["text"] * 2, input_ids=[[1], [1, 2, 97]])
    with pytest.raises(ValueError, match=r"rows 0 to 2 of .*bad.parquet: token ids from 1 to 97 do not fit"):
        list(driver.annotate_units(run, [Unit(0, str(file), 0, 2)], workers=1))
    assert read_receipts(run.output) == {}
    assert list(run.output.glob("data/*.parquet")) == []


def test_a_checkpoint_that_gives_no_finite_labels_is_refused(run: Run, units: list[Unit]) -> None:
    model = tiny_second_order()
    model.seeing.bias.fill_(float("nan"))
    model.save_pretrained(run.checkpoints[0])
    with pytest.raises(ValueError, match="gives entropy that is not finite"):
        list(driver.annotate_units(run, units[:1], workers=1))
