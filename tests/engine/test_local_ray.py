"""A run's private Ray: it is closed to other users, leaves no trace, and starts in any environment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import worker

from pipeline.engine import local_ray
from pipeline.engine.local_ray import LONGEST, PREFIX, private_folder
from tests.builders import write_documents
from tests.engine.fakes import planned_run, shards, token_rows, undisturbed

NOBODY = 65534
JOIN = """
import os, sys
from pathlib import Path
import ray
from ray._private import ray_constants
ray_constants.ENABLE_RAY_CLUSTER = False
address, folder = sys.argv[1:]
try:
    print(*(path.name for path in Path(folder).iterdir()))
except PermissionError:
    print("closed")
try:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1")
    print(ray.get(ray.remote(lambda: os.getuid()).remote(), timeout=60))
except ConnectionError:
    print("refused")
"""
CALL = """
import http.client, sys, urllib.error, urllib.request
for port in sys.argv[1:]:
    for path in ("get_or_create_runtime_env", "api/job_agent/jobs/"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data=b"{}", method="POST")
        try:
            print(urllib.request.urlopen(request, timeout=5).status)
        except urllib.error.HTTPError as error:
            print(error.code)
        except (OSError, http.client.HTTPException):
            print("no answer")
"""


def ran(script: str, *words: str, user: int | None, **environment: str) -> list[str]:
    """Run a script, and return the lines that it prints.

    The script runs as the user with the id `user`, or as the current user if `user` is None. It gets a minimal
    environment and the variables in `environment`, instead of the current environment.
    """
    plain = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "TMPDIR": "/tmp", **environment}
    become = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    command = [*become, sys.executable, "-c", script, *words]
    ended = subprocess.run(command, env=plain, cwd="/", capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.fixture
def nobody() -> int:
    if os.geteuid():
        pytest.skip("a process of another user can be started by root alone")
    try:
        assert ran("import os, ray; print(os.getuid())", user=NOBODY) == [str(NOBODY)]
    except (OSError, AssertionError):
        pytest.skip("other users cannot read this Python")
    return NOBODY


def folder_of_ray() -> Path:
    assert worker._global_node is not None
    return Path(worker._global_node.get_temp_dir_path()).parent


@pytest.mark.long
@pytest.mark.cluster
def test_another_user_who_knows_the_address_gets_nothing(ray_cluster: None, nobody: int) -> None:
    reach = (ray.get_runtime_context().gcs_address, str(folder_of_ray()))
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    assert ran(JOIN, *reach, user=None, **ours) == ["ray", str(os.geteuid())], "who has the token gets in"
    once = {"RAY_NUM_REDIS_GET_RETRIES": "1"}  # a refused client would retry twenty times, a second apart
    assert ran(JOIN, *reach, user=nobody, **once) == ["closed", "refused"]
    assert ran(JOIN, *reach, user=nobody, **{**ours, **once, "RAY_AUTH_TOKEN": "0" * 64}) == ["closed", "refused"]


@pytest.mark.cluster
def test_no_server_of_it_takes_orders_without_the_token(ray_cluster: None, nobody: int) -> None:
    processes = psutil.Process().children(recursive=True)
    listening = {one.laddr.port for process in processes for one in process.net_connections("tcp") if not one.raddr}
    answers = ran(CALL, *map(str, listening), user=nobody)
    assert answers.count("401") >= 2, "of the agents that would run a job, or install packages for one"
    assert set(answers) <= {"401", "404", "405", "no answer"}


@pytest.mark.cluster
def test_the_token_is_in_no_command_line_and_no_file(ray_cluster: None) -> None:
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64 and os.environ["RAY_AUTH_MODE"] == "token"
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            assert token not in " ".join(process.cmdline())
    assert folder_of_ray().stat().st_mode & 0o777 == 0o700
    files = [file for file in folder_of_ray().rglob("*") if file.is_file() and not file.is_symlink()]
    assert files and not any(token.encode() in file.read_bytes() for file in files)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return Ray's folder for temporary files. The limit on the length of its path is lifted."""
    monkeypatch.setattr(local_ray, "LONGEST", 4096)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    yield tmp_path


def test_only_this_user_can_read_its_folder_which_is_removed_at_the_end(temporary: Path) -> None:
    with private_folder() as folder:
        assert Path(folder).parent.parent == temporary and Path(folder).parent.stat().st_mode & 0o777 == 0o700
        Path(folder, "session").mkdir(parents=True)
        with private_folder() as another:
            assert another != folder
        assert Path(folder, "session").is_dir()
    assert not list(temporary.iterdir())


def test_what_a_killed_run_leaves_is_removed_by_the_next_and_nothing_else_is(temporary: Path) -> None:
    script = (
        "import os, pathlib; from pipeline.engine import local_ray; local_ray.LONGEST = 4096\n"
        "with local_ray.private_folder() as folder: pathlib.Path(folder).mkdir(); os.kill(os.getpid(), 9)"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    old, young = temporary.iterdir()
    foreign, file = temporary / "other", temporary / f"{PREFIX}file"
    foreign.mkdir()
    file.touch()
    (temporary / f"{PREFIX}link").symlink_to(foreign)
    at_work = private_folder()
    Path(at_work.__enter__()).mkdir()
    (held,) = set(temporary.iterdir()) - {old, young, foreign, file, temporary / f"{PREFIX}link"}
    for folder in (old, held, foreign, file):
        os.utime(folder, times=(0, time.time() - 2 * local_ray.YOUNG))
    with private_folder():
        assert not old.exists()
        assert young.exists(), "whose lock may be about to be taken"
        assert all(path.exists() for path in (held, foreign, file))
    at_work.__exit__(None, None, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file can be given to another user by root alone")
def test_a_folder_of_another_user_is_left_alone(temporary: Path) -> None:
    trap = temporary / f"{PREFIX}trap"
    trap.mkdir()
    os.utime(trap, times=(0, 0))
    os.chown(trap, NOBODY, NOBODY)
    with private_folder():
        assert trap.exists()


def test_its_path_is_short_even_if_the_path_for_temporary_files_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with private_folder() as folder:
        assert len(str(Path(folder).parent)) <= LONGEST
    monkeypatch.setattr(local_ray, "LONGEST", 8)
    with pytest.raises(OSError, match="set TMPDIR=/tmp"), private_folder():
        pass


STARTS = """
import os, signal, sys, time
from ray._private import node, worker
from pipeline.engine.cluster import cluster
from pipeline.interruptions import ending_in_a_line

def terminated(function):
    def called(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **named)
    return called

def terminated_after(function):
    def called(*arguments, **named):
        function(*arguments, **named)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)  # the signal comes during this second
    return called

if sys.argv[1] == "processes":
    node.Node.start_ray_processes = terminated(node.Node.start_ray_processes)
else:
    worker.connect = terminated_after(worker.connect)
with ending_in_a_line(resumes=True), cluster("local"):
    print("started")
"""


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.parametrize("during", [pytest.param("processes", marks=pytest.mark.slow), "connect"])
def test_sigterm_while_it_starts_is_one_line_and_leaves_nothing(tmp_path: Path, during: str) -> None:
    """Ray's own handlers would end the process with exit code 15, or print a C++ stack trace."""
    temporary = Path("/tmp", f"t{os.getpid()}")  # Ray needs a short path
    temporary.mkdir()
    environment = {**os.environ, "RAY_TMPDIR": str(temporary), "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    starts = subprocess.run(
        [sys.executable, "-c", STARTS, during], env=environment, capture_output=True, text=True, check=False
    )
    assert (starts.returncode, starts.stdout) == (143, ""), starts.stderr
    assert starts.stderr == "interrupted; the same command resumes\n"
    assert not (tmp_path / ".ray").exists()
    temporary.rmdir()


@pytest.mark.long
@pytest.mark.cluster
def test_it_starts_in_any_environment(tmp_path: Path) -> None:
    """Ray starts without a home, with a long TMPDIR, in the C locale, with closed input and with few open files."""
    file = write_documents(tmp_path / "in.parquet", ["text"] * 4, input_ids=token_rows(4))
    output, long = tmp_path / "out", tmp_path / ("x" * 120)
    long.mkdir()
    run, units = planned_run(output, [file], rows_per_unit=1)
    odd = {
        **{"HOME": "/proc/nohome", "TMPDIR": str(long), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        **{"http_proxy": "http://127.0.0.1:1", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(Path.cwd())},
    }
    drive = f"{sys.executable} -OO -m tests.engine.drive {file} {output} local 0"
    subprocess.run(
        ["sh", "-c", f"umask 077; ulimit -n 256; exec {drive} <&-"], env={**os.environ, **odd}, check=True, timeout=120
    )
    assert shards(output) == undisturbed(run, units, tmp_path / "plain")
    assert not list(long.iterdir())
