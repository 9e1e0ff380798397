"""Every command reads and writes UTF-8, whatever the locale says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import write_documents
from tests.conftest import ROOT

TEXT = "Ένα, два, 三, 🙂 and naïve: half of it is outside of Latin-1."
LOCALES = [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1"}]


def run(environment: dict[str, str], *arguments: object) -> None:
    """Run a command in the locale that `environment` sets, and assert that the command succeeds.

    Two ways in which Python itself switches to UTF-8 are turned off: its UTF-8 mode and its coercion of the C locale.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    off = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **environment}
    command = [sys.executable, "-m", *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, env={**own, **off}, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "environment",
    [pytest.param(LOCALES[0], marks=pytest.mark.slow), pytest.param(LOCALES[1], marks=pytest.mark.long)],
    ids=lambda each: each["LC_ALL"],
)
def test_an_annotation_its_card_and_its_page_are_utf_8(tmp_path: Path, environment: dict[str, str]) -> None:
    write_documents(tmp_path / "in.parquet", [TEXT] * 3, **{"naïve": ["ä"] * 3})
    out = tmp_path / "out"
    labelling = ("--workers", 0)
    run(environment, "pipeline.annotate", "--input", tmp_path / "in.parquet", "--output", out, *labelling)
    assert "naïve" in (out / "README.md").read_text(encoding="utf-8")
    run(environment, "pipeline.report", out, "--output", tmp_path / "page")
    page = next((tmp_path / "page").glob("*.html")).read_text(encoding="utf-8")
    assert "🙂" in page or "\\ud83d\\ude42" in page
