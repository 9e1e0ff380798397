"""Commands that real signals interrupt during their work, or that write to a pipe after its reader has ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import run
from pipeline.interruptions import Interrupted, ending_in_a_line
from tests.builders import write_documents
from tests.engine.fakes import token_rows
from tests.report.labelled_texts import write_texts
from tests.tiny_models import tiny_estimator

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def long_annotation(folder: Path, workers: int) -> tuple[str, ...]:
    """Return an annotation command that takes half a minute. Each of its units takes a tenth of a second."""
    tiny_estimator().save_pretrained(folder / "estimator")
    documents = [ids * 20 for ids in token_rows(300)]
    file = write_documents(folder / "in.parquet", ["text"] * len(documents), input_ids=documents)
    checkpoint = ("--method", "exact", "--estimator", str(folder / "estimator"), "--tokenizer", "none")
    return ("pipeline.annotate", "--input", str(file), *checkpoint, "--rows-per-unit", "1", "--workers", str(workers))


def started(*command: str) -> subprocess.Popen[str]:
    """Start a command in a session of its own, as in a terminal."""
    words = [sys.executable, "-m", *command]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=pipe, text=True, start_new_session=True)


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("workers", "number", "code"),
    [
        (0, *SIGNALS[0]),
        pytest.param(0, *SIGNALS[1], marks=pytest.mark.slow),
        pytest.param(1, *SIGNALS[0], marks=[pytest.mark.cluster, pytest.mark.slow]),
        pytest.param(1, *SIGNALS[1], marks=[pytest.mark.cluster, pytest.mark.long]),
    ],
)
def test_an_interrupted_annotation_says_how_far_it_is_and_the_same_command_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, workers: int
) -> None:
    command, output = long_annotation(tmp_path, workers), tmp_path / "out"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    process = started(*command, "--output", str(output))
    wait_until(lambda: len(list(output.rglob("receipts/*.json"))) > 2, process)
    # Ctrl-C reaches all processes of a terminal, including Ray's; a scheduler signals one process.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    done = len(list(output.rglob("receipts/*.json")))
    assert process.returncode == code, error
    assert error.splitlines()[-1] == f"interrupted; {done} of 300 units are done; the same command resumes"
    assert "Traceback" not in error
    # A worker of Ray is killed, and what it was writing is removed by the run that resumes.
    assert workers or not list(output.rglob("*.unfinished"))
    assert not (tmp_path / "home" / ".ray").exists(), "a token there would be asked of every later cluster's users"


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (Interrupted(signal.SIGTERM), 143)])
@pytest.mark.parametrize("resumes", [True, False])
def test_an_interrupt_is_one_line(
    capsys: pytest.CaptureFixture[str], error: KeyboardInterrupt, code: int, resumes: bool
) -> None:
    with pytest.raises(SystemExit) as ended, ending_in_a_line(resumes=resumes):
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == f"interrupted{'; the same command resumes' if resumes else ''}\n"


def test_what_handled_sigterm_before_is_put_back() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with pytest.raises(SystemExit), ending_in_a_line(resumes=False):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


SLOW_TO_CLOSE = """
import signal, sys, time
from pipeline.interruptions import ending_in_a_line
if sys.argv[1:] == ["ignored"]:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
with ending_in_a_line(resumes=True):
    try:
        exec("print('begun', flush=True); time.sleep(60)")
    finally:
        time.sleep(float(sys.argv[1]))
"""


def begun(*words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", SLOW_TO_CLOSE, *words], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize(("number", "code"), [*SIGNALS, (signal.SIGHUP, 129)])
def test_a_signal_that_comes_twice_at_once_is_one(number: int, code: int) -> None:
    """`timeout` sends its signal twice, and the second one must not change the message or the exit code.

    The signal interrupts code within an `exec`, because a plain KeyboardInterrupt there would lose the exit code.
    """
    process = begun("0.5")
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)
    assert process.communicate(timeout=20)[1] == "interrupted; the same command resumes\n"
    assert process.returncode == code


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_second_signal_ends_what_takes_long_to_close(number: int, code: int) -> None:
    process = begun("60")
    process.send_signal(number)
    time.sleep(1.2)
    process.send_signal(number)
    said = "interrupted again, before everything was closed; the same command resumes\n"
    assert process.communicate(timeout=20)[1] == said
    assert process.returncode == code


def test_a_signal_that_is_ignored_stays_so() -> None:
    """`nohup` lets a command ignore SIGHUP, and the command must not change that."""
    script = SLOW_TO_CLOSE.replace("time.sleep(60)", "time.sleep(1)").replace("float(sys.argv[1])", "0")
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", script, "ignored"], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=20) == ("", "") and process.returncode == 0


def test_a_standard_output_that_is_closed_from_the_start_is_no_error() -> None:
    script = "from pipeline.cli import run\ndef work() -> None: print('done')\nrun(work, 'some.command')"
    words = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, script]
    ended = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def with_closed_output(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m WORDS` with an output whose reader ends before the command writes, as `| head` may."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=folder,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [
        ("pipeline.report dataset --terminal", ""),
        ("pipeline.report dataset --terminal", "1"),
        ("pipeline", ""),
        ("pipeline.publish --help", ""),
    ],
)
def test_a_reader_that_has_gone_ends_a_command_in_silence(
    tmp_path: Path, words: str, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    if "dataset" in words:
        write_texts(tmp_path / "dataset")
    ended = with_closed_output(*words.split(), folder=tmp_path)
    assert ended.stderr == "" and ended.returncode == (1 if "--help" in words else 141), (
        "rich, which prints help, has 1"
    )


def test_another_pipe_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit, match=r"error: .*Broken pipe"):
        run(command, "some.command")
