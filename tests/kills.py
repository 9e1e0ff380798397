"""`python -m tests.kills --count 200 [--hub] [--ray SHARE]`: annotations killed at random moments, and resumed.

The driver gets SIGKILL, SIGTERM or SIGINT, or a Ray worker gets SIGKILL. The same command is repeated until it
completes. Then shards, receipts, card and the rows that `datasets` loads must equal those of an undisturbed run, and
neither unfinished files nor staged shards may be left. Each trial has its own seed: `--first 17 --count 3` starts with
trial 17.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from datasets import disable_progress_bars, load_dataset

from pipeline.experiments.parallel import PROCESSES
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from tests.builders import sample_texts, write_documents
from tests.forkserver import follow_hub
from tests.hub import Hub, hub_server
from tests.tiny_models import tiny_second_order

DOCUMENTS = 24
MOST_KILLS = 3
"""Maximum number of signals in a trial. After the last signal, the command is left to complete."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FINE = {signal.SIGKILL: {-9, 0}, signal.SIGTERM: {143, -15, 0}, signal.SIGINT: {130, -2, 0}}
"""Allowed exit codes by signal. The codes -15 and -2 mean that the signal came while the command was importing modules
or ending. The code 0 means that the signal came after the command had ended."""


@dataclass(frozen=True)
class Command:
    """Command line of an annotation, which writes to a folder or to a repository on the Hub for tests."""

    inputs: tuple[str, ...]
    scratch: Path
    """Folder that holds the output folder or the staging folder."""
    hub: Hub | None = None

    @property
    def words(self) -> tuple[str, ...]:
        staging = ("--output", "hf://datasets/user/name", "--staging", str(self.scratch / "staging"))
        return (*self.inputs, *(staging if self.hub else ("--output", str(self.scratch / "out"))))

    @property
    def environment(self) -> dict[str, str]:
        return {**(self.hub.environment if self.hub else {}), "HF_HOME": str(self.scratch / "home")}

    def files(self) -> dict[str, bytes]:
        """Return all published files, or all files in the folder, except the run's report and lock."""
        if self.hub:
            files = dict(self.hub.files("user/name"))
        else:
            out = self.scratch / "out"
            files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        return {name: data for name, data in files.items() if Path(name).name not in ("report.json", "lock")}

    def left(self) -> list[str]:
        """Return the files left behind that a completed run should have removed."""
        return sorted(map(str, [*self.scratch.rglob("*.unfinished"), *self.scratch.glob("staging/**/*.parquet")]))


class Started:
    """A command in a process of its own, forked from a process that has imported torch."""

    def __init__(self, command: Command, workers: int) -> None:
        self.printed = command.scratch / "printed"
        words = (*command.words, "--workers", str(workers))
        self.process = PROCESSES.Process(
            target=annotate_in_this_process, args=(words, command.environment, str(self.printed), str(Path.cwd()))
        )
        self.printed.unlink(missing_ok=True)
        self.process.start()
        while not self.printed.exists():
            time.sleep(0.01)

    def ended(self, seconds: float | None = None) -> int | None:
        self.process.join(seconds)
        return self.process.exitcode

    def kill(self, number: int, victim: str, dice: random.Random) -> bool:
        """Send a signal to the driver or to a worker; return False if the process has already ended."""
        assert self.process.pid is not None
        try:
            driver = psutil.Process(self.process.pid)
            children = [one for one in driver.children(recursive=True) if one.name().startswith("ray::")]
            workers = [one for one in children if "Agent" not in one.name()]  # Ray itself ends with its agents
            if victim == "worker":
                dice.choice(workers or [driver]).send_signal(number if workers else signal.SIGKILL)
            else:
                driver.send_signal(number)
        except psutil.NoSuchProcess:
            return False
        return self.process.is_alive() or self.process.exitcode != 0


def annotate_in_this_process(words: tuple[str, ...], environment: dict[str, str], printed: str, folder: str) -> None:
    """Run `python -m pipeline.annotate WORDS...` with a Hub whose address huggingface_hub did not know at import."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command installs its own handler
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.setsid()
    os.environ.update(environment)
    os.chdir(folder)
    follow_hub(environment)
    import torch

    from pipeline.annotate.__main__ import annotate
    from pipeline.cli import run
    from pipeline.data import hub

    hub.LONGEST_PAUSE = 0.5  # for a Hub whose requests fail at times
    torch.set_num_threads(1)
    sys.argv = ["pipeline.annotate", *words]
    run(annotate, "pipeline.annotate")


@dataclass
class Undisturbed:
    """An undisturbed run: its files, the rows that `datasets` loads, and its duration in seconds."""

    files: dict[str, bytes]
    rows: list[dict[str, object]]
    seconds: float


def rows_of(files: dict[str, bytes], folder: Path) -> list[dict[str, object]]:
    """Write a dataset's files into a folder, and return the rows that `datasets` loads."""
    for name, data in files.items():
        if not name.startswith("_ledger"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    loaded = load_dataset(str(folder), split="train", cache_dir=str(folder / "cache"))
    return list(loaded)


@dataclass
class Kills:
    """Trials of killed annotations, each compared with one undisturbed run."""

    folder: Path
    seed: int
    hub: bool
    ray_share: float = 0.0
    failures: list[str] = field(default_factory=list)
    kills: int = 0

    def __post_init__(self) -> None:
        documents = write_documents(self.folder / "in.parquet", sample_texts(DOCUMENTS, 400))
        tiny_second_order(vocabulary=8192).save_pretrained(self.folder / "model")
        copy_tokenizer(SHIPPED / "tokenizer", self.folder / "model")
        model = ("--estimator", str(self.folder / "model"))
        self.inputs = ("--input", str(documents), *model, "--rows-per-unit", "1")
        self.undisturbed("first")  # its time includes the start of the server that forks commands
        self.expected = self.undisturbed("second")
        assert len(self.expected.rows) == DOCUMENTS

    def undisturbed(self, name: str) -> Undisturbed:
        with self.command(name) as command, TemporaryDirectory(dir=self.folder) as place:
            started, begun = Started(command, workers=0), time.monotonic()
            assert started.ended() == 0, started.printed.read_text(encoding="utf-8")
            seconds, files = time.monotonic() - begun, command.files()
            assert not command.left()
            return Undisturbed(files, rows_of(files, Path(place)), seconds)

    def command(self, name: str) -> "Trial":
        return Trial(self, name)

    def trial(self, number: int) -> Iterator[str]:
        """Run an annotation that is killed up to MOST_KILLS times and then completed.

        Yield a text for each fault. It names the signals that were sent, and describes the fault.
        """
        dice = random.Random(f"{self.seed}-{number}")
        workers = 2 if dice.random() < self.ray_share else 0
        did: list[str] = []
        with self.command(f"trial-{number}") as command:
            for _ in range(dice.randint(1, MOST_KILLS)):
                done, wrong = self.attempt(command, workers, dice)
                did.append(done)
                if wrong:
                    yield f"trial {number}: {'; '.join(did)}: {wrong}"
            last = Started(command, workers)
            if last.ended(300) != 0:
                printed = last.printed.read_text(encoding="utf-8")
                yield f"trial {number}: {'; '.join(did)}; the last ended with {last.process.exitcode}: {printed[-600:]}"
                return
            for wrong in self.differences(command):
                yield f"trial {number}: {'; '.join(did)}: {wrong}"

    def attempt(self, command: Command, workers: int, dice: random.Random) -> tuple[str, str]:
        """Start the command, and send one signal to the driver or to a worker at a random moment.

        Return a description of the signal, and a description of the fault with which the command ended. The second text
        is empty if the command ended without a fault.
        """
        victim = "worker" if workers and dice.random() < 0.5 else "driver"
        number = signal.SIGKILL if victim == "worker" else dice.choice(SIGNALS)
        moment = dice.uniform(0, self.expected.seconds + (8 if workers else 0))
        started = Started(command, workers)
        started.ended(moment)
        done = f"{number.name} of the {victim} after {moment:.2f} s"
        if not started.kill(number, victim, dice):
            return f"{done}, too late", ""
        self.kills += 1
        code = started.ended(300)
        printed = started.printed.read_text(encoding="utf-8")
        if code is None:
            started.process.kill()
            return done, f"it has not ended after five minutes: {printed[-300:]}"
        fine = FINE[number] if victim == "driver" else {0, -9}
        if code not in fine:
            return done, f"it ended with {code}: {printed[-600:]}"
        trace = "Traceback" in printed or "*** SIG" in printed
        return done, f"a stack trace: {printed[-600:]}" if trace and number != signal.SIGKILL else ""

    def differences(self, command: Command) -> Iterator[str]:
        """Yield a sentence for each difference from the undisturbed run."""
        files, expected = command.files(), self.expected.files
        for name in sorted({*files, *expected}):
            if "receipts" not in name and files.get(name) != expected.get(name):
                yield f"{name} {'differs' if name in files and name in expected else 'exists in only one of them'}"
        if lines_of(files) != lines_of(expected):
            yield "the receipts differ"
        if left := command.left():
            yield f"left behind: {', '.join(left)}"
        with TemporaryDirectory(dir=self.folder) as place:
            if rows_of(files, Path(place)) != self.expected.rows:
                yield "datasets loads something else"


def lines_of(files: dict[str, bytes]) -> list[bytes]:
    """Return all receipts as sorted lines, because a resumed run may divide them differently into files."""
    return sorted(line for name, data in files.items() if "receipts" in name for line in data.splitlines())


class Trial:
    """A command with its own folder and, if requested, its own Hub."""

    def __init__(self, kills: Kills, name: str) -> None:
        self.kills, self.scratch, self.stack = kills, kills.folder / name, ExitStack()

    def __enter__(self) -> Command:
        self.scratch.mkdir()
        hub = self.stack.enter_context(hub_server()) if self.kills.hub else None
        return Command(self.kills.inputs, self.scratch, hub)

    def __exit__(self, *reason: object) -> None:
        self.stack.close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    parser.add_argument("--count", type=int, default=200, help="signals to send")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--hub", action="store_true", help="annotate to a repository of the test Hub")
    parser.add_argument("--ray", type=float, default=0.1, help="share of the trials with Ray workers")
    options = parser.parse_args(arguments)
    disable_progress_bars()
    with TemporaryDirectory(prefix="kills-") as folder:
        kills = Kills(Path(folder), options.seed, options.hub, options.ray)
        place = "the test Hub" if options.hub else "a folder"
        print(f"to {place}, seed {options.seed}; undisturbed {kills.expected.seconds:.1f} s", flush=True)
        number = options.first
        while kills.kills < options.count:
            for failure in kills.trial(number):
                kills.failures.append(failure)
                print(f"FAILED seed {options.seed}, {failure}", flush=True)
            number += 1
            print(
                f"{kills.kills} killed in {number - options.first} trials, {len(kills.failures)} failures", flush=True
            )
    return 1 if kills.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
