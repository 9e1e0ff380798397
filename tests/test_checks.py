"""Outputs in the folder that `ray job submit` creates for a job. Ray deletes this folder after the job."""

from pathlib import Path

import pytest

from pipeline.checks import require_lasting
from tests.conftest import RunCommand

COPY = Path("session_latest") / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
ANNOTATE = ("pipeline.annotate", "--workers", 0)
TRAIN = ("jobs.train_tokenizer", "--input", "in.txt")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder with a path like that of Ray's copy of a job's working directory, and return it.

    The folder becomes the working directory of this process.
    """
    folder = tmp_path / COPY
    folder.mkdir(parents=True)
    (folder / "in.txt").write_text("A text of a few words.", encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


@pytest.mark.parametrize(
    ("command", "flag", "name"),
    [
        ((*ANNOTATE, "--input", "in.txt", "--output", "labels"), "output", "labels"),
        ((*ANNOTATE, "--input", "in.txt", "--output", "./deep/labels"), "output", "labels"),
        ((*ANNOTATE, "--input", "in.txt"), "output", "annotated"),
        (ANNOTATE, "output", "annotated-sample"),
        ((*ANNOTATE, "--output", "hf://datasets/user/name", "--staging", "stage"), "staging", "stage"),
        ((*TRAIN, "--output", "tokens"), "output", "tokens"),
        (("jobs.measure_truth", "--output", "truth"), "output", "truth"),
    ],
)
def test_an_output_that_would_go_with_the_job_is_refused_with_one_that_lasts(
    run_command: RunCommand,
    tmp_path: Path,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
    command: tuple[object, ...],
    flag: str,
    name: str,
) -> None:
    assert run_command(*command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is in Ray's copy of the working directory" in line
    assert line.endswith(f"as in --{flag} {tmp_path / 'home' / name}")
    assert [file.name for file in copy.rglob("*")] == ["in.txt"]


def test_an_absolute_output_is_written_from_there(run_command: RunCommand, tmp_path: Path, copy: Path) -> None:
    assert run_command(*TRAIN, "--output", tmp_path / "tokens", "--vocabulary", 258) == 0
    assert run_command(*ANNOTATE, "--input", "in.txt", "--output", tmp_path / "labels") == 0
    assert list((tmp_path / "labels").rglob("*.parquet"))
    with pytest.raises(ValueError, match=r"`output` .* is in Ray's copy"):
        require_lasting("output", copy / "an absolute path into the copy")


@pytest.mark.parametrize("folder", ["runtime_resources/out", "working_dir_files/out", "out"])
def test_other_folders_are_as_good_as_any(tmp_path: Path, folder: str) -> None:
    require_lasting("output", tmp_path / folder)
