"""The image, as far as it can be checked where no Docker engine is: linted, and its steps done without one."""

import os
import re
import shlex
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from tests.checkers import ROOT, check
from tests.docker.dockerfile import DOCKERFILE, instructions

LET_IN = {
    line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
}


def copied() -> list[str]:
    """What the image takes from the project."""
    return [source for one in instructions("COPY") for source in one.rest.split()[:-1]]


def bound() -> list[str]:
    """What a step reads of the project and the image does not keep."""
    flags = " ".join(flag for one in instructions("RUN") for flag in one.flags if "type=bind" in flag)
    return re.findall(r"source=([^,\s]+)", flags)


def install_step() -> str:
    (step,) = [one.rest for one in instructions("RUN") if "pip install" in one.rest]
    return step


def test_hadolint_has_nothing_to_say_and_would_say_it(tmp_path: Path) -> None:
    assert check("hadolint", DOCKERFILE) is None
    careless = tmp_path / "Dockerfile"
    careless.write_text(DOCKERFILE.read_text(encoding="utf-8") + "USER root\nRUN pip install ray\n", encoding="utf-8")
    objections = check("hadolint", careless) or ""
    assert "DL3002" in objections and "DL3013" in objections


def test_all_that_is_copied_is_there_and_let_in_and_nothing_else_is() -> None:
    wanted = {*copied(), *bound()}
    assert wanted == LET_IN
    assert all((ROOT / name).exists() for name in wanted)


def test_the_base_is_pinned_and_the_user_is_not_root() -> None:
    base = dict(one.rest.split("=", 1) for one in instructions("ARG") if "=" in one.rest)["PYTHON"]
    assert re.fullmatch(r"\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert instructions("FROM")[-1].rest == "python:${PYTHON}"
    assert instructions("USER")[-1].rest.isdigit() and int(instructions("USER")[-1].rest) > 0


def test_no_instruction_names_a_secret() -> None:
    for one in instructions():
        if one.keyword in ("ARG", "ENV", "LABEL"):
            assert not re.search("token_|_token|secret|password", one.rest, re.IGNORECASE), one
    assert not instructions("ADD")


@pytest.mark.skipif(not os.environ.get("CI"), reason="installs all that an image holds, for minutes; set CI=1 for it")
def test_the_steps_make_a_place_where_the_first_command_works(tmp_path: Path) -> None:
    """In a fresh virtual environment, with torch as the package index has it, and the files that are copied alone."""
    context, python = tmp_path / "context", tmp_path / "venv" / "bin"
    context.mkdir()
    for name in (*copied(), *bound()):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, context / name)
    venv.create(tmp_path / "venv", with_pip=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    environment |= {"PATH": f"{python}:{os.environ['PATH']}", "TORCH_INDEX": "https://pypi.org/simple"}
    step = install_step().replace("/tmp/requirements.txt", str(tmp_path / "requirements.txt"))
    subprocess.run(step, shell=True, check=True, cwd=context, env=environment, stdout=subprocess.DEVNULL)
    for name in bound():
        (context / name).unlink()
    assert "token-entropy" not in subprocess.check_output([python / "pip", "list"], text=True)
    (first,) = instructions("CMD")
    command = [word.replace("/data", str(tmp_path)) for word in shlex.split(first.rest.strip("[]").replace(",", " "))]
    environment["PYTHONPATH"] = str(context)
    ended = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "dataset" in ended.stdout and list((tmp_path / "annotated-sample" / "data").rglob("*.parquet"))
