"""Every mistake in docs/errors.md is made in this process, and its message is compared with the message on the page.

Each row of the page has the arguments of one mistake. A section of the page may name common arguments of its rows. A
common argument is added to the arguments of a row unless the row has the same flag.
"""

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import RunCommand
from tests.hub import Hub
from tests.mistakes.materials import SECRET, write_materials

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
MODULE = re.compile(r"^## .*`python -m ([a-z._]+)`", re.MULTILINE)
COMMON = re.compile(r"In addition to the arguments: `([^`]*)`")
ROW = re.compile(r"^\| (.+?) \| (?:`([^`]*)` )?\| `([^`]+)` \| (.+?) \|$", re.MULTILINE)
TABLE_LINE = re.compile(r"^\|(?! Mistake \||---)", re.MULTILINE)
ENVIRONMENT = re.compile(r"[A-Z_]+=")

# Files that a refused command may leave: a training without steps does not block other settings, and a plan is resumed.
BEGUN = {"unfinished.json", "plan.json", "tokenizer.json", "tokenizer_config.json"}


@dataclass(frozen=True)
class Mistake:
    """A mistake: a row of docs/errors.md."""

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    says: re.Pattern[str]


def mistakes() -> Iterator[Mistake]:
    sections = re.split(r"(?=^## )", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for section in sections:
        module, common = MODULE.search(section), COMMON.search(section)
        assert module is not None, section
        for name, arguments, says, _ in ROW.findall(section):
            words = shlex.split(arguments)
            environment = dict(word.split("=", 1) for word in words if ENVIRONMENT.match(word))
            own = [word for word in words if not ENVIRONMENT.match(word)]
            added = [part for flag in flags(common[1] if common else "") if flag[0] not in own for part in flag]
            fragments = ".*".join(re.escape(part) for part in re.split(" ?… ?", says))
            yield Mistake(name, module[1], (*own, *added), environment, re.compile(f"^error: .*{fragments}"))


def flags(arguments: str) -> list[list[str]]:
    """Split arguments into flags, each with its values."""
    return [shlex.split(f"--{part}") for part in re.split(r"(?:^| )--", arguments) if part]


MISTAKES = list(mistakes())


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("materials")
    write_materials(folder)
    return folder


@pytest.fixture
def folder(materials: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the working directory, with a Hub that has datasets. Afterwards remove the output of the command."""
    monkeypatch.chdir(materials)
    monkeypatch.setattr("pipeline.progress.SHORT_SECONDS", 3600)  # on a busy machine a slow stage would print a line
    for name in ("user/name", "other/name"):
        hub.add(name, {"a.parquet": (materials / "good.parquet").read_bytes()})
    hub.add("user/table", {"a.csv": (materials / "table.csv").read_bytes()})
    named = b"---\nconfigs:\n- config_name: exact\n  data_files: a.parquet\n---\n"
    hub.add("user/exact", {"a.parquet": (materials / "good.parquet").read_bytes(), "README.md": named})
    hub.add("user/broken", {"README.md": b"---\nlicense: mit\nlicense: gpl\n---\n"})
    plan = (materials / "sets" / "run" / "out" / "_ledger" / "exact" / "plan.json").read_bytes()
    hub.add("user/published", {"_ledger/exact/plan.json": plan.replace(b'"share": 1.0', b'"share": 0.5')})
    read = json.dumps({**json.loads(plan), "inputs": ["hf://datasets/user/name"], "source": ["/etc/passwd"]})
    hub.add("user/reads-others", {"_ledger/exact/plan.json": read.encode()})
    hub.add("user/plan-damaged", {"_ledger/exact/plan.json": b"{"})
    hub.add("user/receipt-damaged", {"_ledger/exact/plan.json": plan, "_ledger/exact/receipts/a.jsonl": b"{"})
    yield materials
    shutil.rmtree("out", ignore_errors=True)


def contents(folder: str | Path) -> dict[str, int]:
    """Return the time at which each file below a folder was last written, in nanoseconds.

    The locks of runs are left out, because they are empty.
    """
    found = dict[str, int]()
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            found |= contents(entry.path)
        elif entry.is_file() and entry.name != "lock":
            found[entry.path] = entry.stat().st_mtime_ns
    return found


def test_every_row_of_the_page_is_executed() -> None:
    assert len(MISTAKES) >= 60
    assert len(MISTAKES) == len(TABLE_LINE.findall(PAGE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: f"{each.module}, {each.name}")
def test_a_mistake_is_one_line_that_says_what_to_do_and_leaves_nothing_behind(
    mistake: Mistake,
    folder: Path,
    run_command: RunCommand,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if "999" in mistake.arguments:  # more CPUs than the cluster has
        request.getfixturevalue("ray_cluster")
    for name, value in mistake.environment.items():
        monkeypatch.setenv(name, value)
    before = contents(folder)
    capsys.readouterr()
    assert run_command(mistake.module, *mistake.arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert mistake.says.search(line), line
    assert SECRET not in line and "Traceback" not in line
    after = contents(folder)
    assert {Path(file).name for file in after.keys() - before.keys()} <= BEGUN
    assert before.items() <= after.items()
