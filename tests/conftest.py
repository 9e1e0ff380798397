"""Fixtures that several test files share: a Ray cluster, a Ray head, a Hub, commands, a small disk and documents."""

import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import ray
from huggingface_hub import constants
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from pipeline.engine.cluster import cluster
from tests.builders import command_of, sample_texts, write_documents
from tests.hub import Hub, hub_server

ROOT = Path(__file__).parents[1]
RAY = ExitStack()
"""Instances of Ray that this session has started."""
RunCommand = Callable[..., int]
MOUNT = ("mount", "-t", "tmpfs", "-o")
# In a process that starts Ray more than once, Ray 2.60 leaves an exporter of metrics behind. It reports every ten
# seconds, and if it reports while the process ends, after the last test, the result is a segmentation fault.
TELEMETRY = "RAY_enable_open_telemetry"
os.environ[TELEMETRY] = "0"
# Ray runs workers at niceness 15. Next to busy test processes, a worker would take a minute to import torch.
NICENESS = "RAY_worker_niceness"
os.environ[NICENESS] = "0"
# The tests' models are small: with several test processes, torch threads that wait for each other double the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Time limits of single examples fail on a busy machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# A process started in the background or by nohup ignores these signals, and so do its children. A handler that does
# nothing ignores them only in this process.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long` too")
    parser.addoption("--slow", action="store_true", help="run the tests marked `slow` and `long` too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marks = [] if config.getoption("--slow") else ["slow"] if config.getoption("--long") else ["slow", "long"]
    left_out = {item for item in items if any(map(item.get_closest_marker, marks))}
    config.hook.pytest_deselected(items=[*left_out])
    # With several processes (pytest -n), files that take minutes come first.
    long = {item.path for item in items if item.get_closest_marker("cluster")}
    left = (item for item in items if item not in left_out)
    items[:] = sorted(left, key=lambda item: (RAYS.index(ray_of(item.path)), item.path not in long))
    for item in items:
        if item.get_closest_marker("fineweb") and not os.environ.get("FINEWEB"):
            item.add_marker(pytest.mark.skip(reason="FINEWEB names no Parquet file of FineWeb rows"))


RAYS = ("head", "cluster", None)  # in the order in which tests run


@cache
def ray_of(file: Path) -> str | None:
    """Return the Ray instance that a file's tests use: `head` (which has a dashboard), `cluster`, or None."""
    found = re.findall(r"\b(ray_head|run_here|ray_cluster)\b", file.read_text(encoding="utf-8"))
    return ("cluster" if {*found} == {"ray_cluster"} else "head") if found else None


class FewRays(LoadFileScheduling):  # type: ignore[misc]
    """Scheduler of test files for pytest-xdist. It gives a process one test file at a time.

    Files that use the same Ray instance are all given to one process. Otherwise several processes would each start a
    Ray instance, and an idle instance takes up to a tenth of a core.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return ray_of(ROOT / file) or file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FewRays | None:
    return FewRays(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Shut Ray down after the last test file that uses it, instead of at the end of the session."""
    if ray_of(item.path) and nextitem and not ray_of(nextitem.path):
        RAY.close()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with chdir(ROOT):  # workers import tests from the folder in which Ray is started
        RAY.enter_context(cluster("local"))
    yield
    RAY.close()
    assert not ray.is_initialized()


@dataclass(frozen=True)
class Head:
    """A cluster of one node, started by `ray start --head` on loopback."""

    address: str
    dashboard: str
    metrics: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    yield RAY.enter_context(started_head(tmp_path_factory.mktemp("ray")))
    RAY.close()


@contextmanager
def started_head(home: Path) -> Iterator[Head]:
    gcs, dashboard, metrics, client, agent, agent_grpc = (str(port) for port in free_ports(6))
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32), encoding="utf-8")  # a token left by another Ray
    # Jobs join the Ray that was started last below this folder. The folder holds sockets, so its path must be short.
    folder = tempfile.TemporaryDirectory(prefix="ray-")
    environment = {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
        TELEMETRY: "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2"),
        *("--temp-dir", folder.name),
        *("--node-ip-address", "127.0.0.1", "--port", gcs, "--ray-client-server-port", client),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard, "--metrics-export-port", metrics),
        # The agent takes jobs; its usual port may belong to another Ray.
        *("--dashboard-agent-listen-port", agent, "--dashboard-agent-grpc-port", agent_grpc),
    ]
    with (home / "head.log").open("w", encoding="utf-8") as log:
        head = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        shown = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
        wait_for(urllib.request.Request(f"http://127.0.0.1:{dashboard}/api/version", headers=shown), head)
        yield Head(
            f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics", environment
        )
    finally:
        head.terminate()
        head.wait(30)
        folder.cleanup()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, below the ephemeral ports of the system.

    The system gives ephemeral ports to other processes. Ray's servers listen on all addresses, so another process could
    still get a server's port on loopback, and clients would reach that process.
    """
    free: list[int] = []
    with ExitStack() as stack:
        while len(free) < count:
            port = random.SystemRandom().randrange(20_000, 32_000)
            with suppress(OSError):
                stack.enter_context(socket.create_server(("", port)))
                free.append(port)
    return free


def wait_for(request: urllib.request.Request, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Wait until a server answers. Fail if its process ends or takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"{request.full_url} does not answer")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Yield a test Hub. This process's clients use its address and token by default, and upload by LFS."""
    with hub_server() as running:
        monkeypatch.setenv("HF_TOKEN", running.writer)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield running


def run_module(module: str, *arguments: object) -> int:
    """Run `python -m MODULE ARGUMENTS...` in this process, and return the exit code.

    Error messages go to standard error.
    """
    from pipeline.cli import run

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        run(command_of(module), module)
    if isinstance(stopped.value.code, str):
        print(stopped.value.code, file=sys.stderr)
        return 1
    return stopped.value.code or 0


@pytest.fixture
def run_command() -> RunCommand:
    """Return `run_module`."""
    return run_module


@dataclass(frozen=True)
class SmallDisk:
    """A file system of one megabyte."""

    folder: Path

    def grow(self) -> None:
        """Enlarge the file system to nine megabytes."""
        subprocess.run([*MOUNT, "remount,size=9m", self.folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    mounted = tmp_path / "small"
    mounted.mkdir()
    if os.geteuid() or subprocess.run([*MOUNT, "size=1m", "tmpfs", mounted], check=False).returncode:
        pytest.skip("only root can mount a file system")
    yield SmallDisk(mounted)
    subprocess.run(["umount", "-l", mounted], check=True)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of documents: the one that the environment variable FINEWEB names, or fifty built-in documents."""
    if os.environ.get("FINEWEB"):
        return Path(os.environ["FINEWEB"])
    return write_documents(tmp_path_factory.mktemp("documents") / "sample.parquet", sample_texts(50))
