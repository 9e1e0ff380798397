"""Fixtures that several test files share: a tokenizer, documents, FineWeb rows where they lie at hand, one Ray."""

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
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from pipeline.engine.cluster import cluster
from tests.builders import command_of, sample_texts, write_documents
from tests.hub import Hub, hub_server

ROOT = Path(__file__).parents[1]
RAY = ExitStack()
"""The Rays of the session."""
RunCommand = Callable[..., int]
MOUNT = ("mount", "-t", "tmpfs", "-o")
# Of a process that starts Ray more than once, Ray 2.60 leaves an exporter of metrics behind. It reports every ten
# seconds, and when that falls into the end of the process, after the last test, it is a segmentation fault.
TELEMETRY = "RAY_enable_open_telemetry"
os.environ[TELEMETRY] = "0"
# Models of tests are small: threads of torch that wait for each other double the time, where several processes test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is started in the background, or by nohup, ignores these signals, and so do the commands that it starts; a
# function that does nothing ignores them here alone.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked `slow` too, as CI does")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = [] if config.getoption("--slow") else [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    # Of files that several processes share (pytest -n), those that take minutes come first.
    long = {item.path for item in items if item.get_closest_marker("cluster")}
    left = (item for item in items if item not in slow)
    items[:] = sorted(left, key=lambda item: (RAYS.index(ray_of(item.path)), item.path not in long))
    for item in items:
        if item.get_closest_marker("fineweb") and not os.environ.get("FINEWEB"):
            item.add_marker(pytest.mark.skip(reason="FINEWEB names no Parquet file of FineWeb rows"))


RAYS = ("head", "cluster", None)  # in the order of their tests


@cache
def ray_of(file: Path) -> str | None:
    """The Ray of the session that its tests ask for, if any: a head with a dashboard, or a cluster alone."""
    found = re.findall(r"\b(ray_head|run_here|ray_cluster)\b", file.read_text(encoding="utf-8"))
    return ("cluster" if {*found} == {"ray_cluster"} else "head") if found else None


class FewRays(LoadFileScheduling):  # type: ignore[misc]
    """A file to each process at a time; to one all that use a Ray head, and to one all that use a cluster alone.

    An idle Ray costs each process up to a tenth of a core.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return ray_of(ROOT / file) or file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FewRays | None:
    return FewRays(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends what the session has of Ray after the last file that uses it, not with the session."""
    if ray_of(item.path) and nextitem and not ray_of(nextitem.path):
        RAY.close()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with chdir(ROOT):  # its workers import tests from where it is started, wherever the first test that asks for it is
        RAY.enter_context(cluster("local"))
    yield
    RAY.close()
    assert not ray.is_initialized()


@dataclass(frozen=True)
class Head:
    """A cluster of one node, started as `ray start --head` does it for everyone, but on loopback."""

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
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32), encoding="utf-8")  # as another Ray leaves one
    # Its jobs join the Ray that was started last below this folder. Sockets lie there too, whose paths must be short.
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
        # The agent takes jobs; at its usual port another Ray's may be.
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
    """Ports that nobody listens on, below those that the system gives to whoever asks for any.

    Ray's servers listen on every address; what is given the same port of loopback later is reached in their place.
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
    """Returns when a server answers; fails when its process has ended or takes too long."""
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
    """The Hub of this process's clients: their address and token where they are given none, with uploads by LFS."""
    with hub_server() as running:
        monkeypatch.setenv("HF_TOKEN", running.writer)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield running


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Runs `python -m MODULE ARGUMENTS...` in this process and returns its exit code; texts of errors go to stderr."""

    def command(module: str, *arguments: object) -> int:
        function = command_of(module)
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        from pipeline.cli import run

        with pytest.raises(SystemExit) as stopped:
            run(function, module)
        if isinstance(stopped.value.code, str):
            print(stopped.value.code, file=sys.stderr)
            return 1
        return stopped.value.code or 0

    return command


@dataclass(frozen=True)
class SmallDisk:
    """A file system of one megabyte."""

    folder: Path

    def grow(self) -> None:
        """To nine."""
        subprocess.run([*MOUNT, "remount,size=9m", self.folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    mounted = tmp_path / "small"
    mounted.mkdir()
    if os.geteuid() or subprocess.run([*MOUNT, "size=1m", "tmpfs", mounted], check=False).returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield SmallDisk(mounted)
    subprocess.run(["umount", "-l", mounted], check=True)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty documents: FineWeb's where they lie at hand, else built-in ones."""
    if os.environ.get("FINEWEB"):
        return Path(os.environ["FINEWEB"])
    return write_documents(tmp_path_factory.mktemp("documents") / "sample.parquet", sample_texts(50))
