"""The command that shows a dataset."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.report.__main__ import folder_for
from tests.conftest import RunCommand
from tests.hub import hub_server
from tests.report.labelled_texts import TEXTS, write_texts
from tests.report.test_page import contents_of

MODULE = "pipeline.report"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("dataset"))


def test_a_page_is_written_with_as_much_as_is_asked_for(
    dataset: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--documents", 2, "--sample", 5, "--tokens", 3, "--by", "dump", "--seed", 1)
    assert run_command(MODULE, dataset, "--output", tmp_path / "page", *asked) == 0
    page = tmp_path / "page" / "report.html"
    contents = contents_of(page)
    assert len(contents["documents"]) == 2 and all(len(shown["tokens"]) <= 3 for shown in contents["documents"])
    assert sum(documents for _, documents, *_ in contents["groups"]["rows"]) == 5
    assert re.search(rf"{re.escape(str(page))} has [1-9][\d.]* kB; open", capsys.readouterr().out)


def test_a_page_lies_beside_its_dataset_and_takes_the_place_of_no_other(
    tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_texts(tmp_path / "sets" / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    pages = {"sets/one": "sets/one-report", "sets/two/": "sets/two-report"}
    pages["sets/two/data/second-order"] = "sets/two-second-order-report"
    for named, folder in pages.items():
        assert run_command(MODULE, named) == 0
        assert f"{folder}/report.html has " in (told := capsys.readouterr().out) and "replaces" not in told
    assert {path: path.read_bytes() for path in before} == before
    assert run_command(MODULE, "sets/one/data/second-order", "--output", "sets/one-report") == 0
    assert "and replaces an earlier one of this dataset; open it" in capsys.readouterr().out
    page = (tmp_path / "sets/one-report/report.html").read_bytes()
    assert run_command(MODULE, "sets/two", "--output", "sets/one-report") == 1
    assert "is there already and shows something else than sets/two" in capsys.readouterr().err
    assert (tmp_path / "sets/one-report/report.html").read_bytes() == page
    assert str(tmp_path).encode() not in page
    monkeypatch.chdir("sets/two")
    assert run_command(MODULE, ".", "--documents", 1) == 0
    assert "two-report/report.html has " in capsys.readouterr().out


def test_a_dataset_of_the_hub_has_its_page_here() -> None:
    assert folder_for("hf://datasets/user/name") == folder_for("hf://datasets/user/name@main") == Path("name-report")
    assert folder_for("hf://datasets/user/name/data/exact") == Path("name-exact-report")


def test_another_dataset_stands_beside(dataset: Path, tmp_path: Path, run_command: RunCommand) -> None:
    other = write_texts(tmp_path / "other", seed=1)
    assert run_command(MODULE, dataset, "--against", other / "data/second-order", "--output", tmp_path) == 0
    assert "other/second-order" in contents_of(tmp_path / "report.html")["series"]


def test_a_document_is_printed_in_figures_where_there_is_no_terminal(
    dataset: Path,
    tmp_path: Path,
    run_command: RunCommand,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(MODULE, dataset, "--terminal", "--document", 5, "--tokens", 4) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0].split()[:3] == ["token", "entropy", "expected"]
    assert re.fullmatch(r"\d+ more tokens are not shown; --tokens sets how many are", lines[5])
    beginning = "".join(ast.literal_eval(line[:24].strip()) for line in lines[1:5])
    assert beginning and TEXTS[5].startswith(beginning)
    assert not [*tmp_path.iterdir()]


def test_mistakes_are_one_line(dataset: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        ((dataset, "--terminal", "--document", 6), "has no document 6; its 6 count from 0"),
        ((dataset, "--terminal", "--by", "dump"), "--terminal shows one document of one dataset; leave --by out, or"),
        ((dataset, "--terminal", "--by", "dump", "--against", dataset), "leave --against and --by out, or --terminal"),
        ((dataset, "--documents", 0), "documents to show must be at least 1, not 0"),
        ((dataset / "data",), "is not an annotated dataset"),
    ):
        assert run_command(MODULE, *arguments) == 1
        assert told in capsys.readouterr().err


def test_a_dataset_of_the_hub_is_shown_without_torch(dataset: Path, tmp_path: Path) -> None:
    """The command runs in another process, because the Hub's clients read their environment only once."""
    files = {str(path.relative_to(dataset)): path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    script = (
        "import sys; from pathlib import Path; from pipeline.report.page import write_report\n"
        "write_report('hf://datasets/user/name', Path(sys.argv[1])); assert not {'torch', 'ray'} & {*sys.modules}"
    )
    with hub_server() as hub:
        hub.add("user/name", files)
        environment = {**hub.environment, "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-c", script, str(tmp_path)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    contents = contents_of(tmp_path / "report.html")
    assert contents["title"] == "name/second-order" and len(contents["documents"]) == len(TEXTS)
