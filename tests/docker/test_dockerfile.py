"""The image, checked without a Docker engine: the Dockerfile is linted, and its steps run outside a container."""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.checkers import ROOT, check
from tests.docker.dockerfile import DOCKERFILE, instructions

LET_IN = {
    line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
}


def copied() -> list[str]:
    """Return the project's files and folders that are copied into the image."""
    return [source for one in instructions("COPY") for source in one.rest.split()[:-1]]


def bound() -> list[str]:
    """Return the project's files that a step of the build reads but the image does not keep."""
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


HASHED = {
    name: (ROOT / "docker" / name).read_text(encoding="utf-8")
    for name in ("requirements.txt", "requirements-cu130.txt")
}


def test_every_requirement_is_pinned_to_hashes_and_agrees_with_what_was_tested() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    tested: dict[str, str] = {
        canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", pins, re.MULTILINE)
    }
    locked: dict[str, str] = {}
    for name, text in HASHED.items():
        blocks = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
        for block in blocks:
            assert re.fullmatch(r"[\w.-]+==\S+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+", block), (
                name,
                block[:200],
            )
            package, version = block.split(" ", 1)[0].split("==")
            assert package not in locked
            locked[package] = version
    own = {package: version for package, version in locked.items() if package in tested}
    assert own == {package: version for package, version in tested.items() if package in locked}, (
        "`make lock` writes the image's requirements anew"
    )
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for requirement in map(Requirement, needed):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_torch_and_cuda_are_in_the_requirements_for_gpus_alone() -> None:
    assert "torch==" not in HASHED["requirements.txt"] and "nvidia" not in HASHED["requirements.txt"]
    (version,) = re.findall(r"^torch==(\S+)", HASHED["requirements-cu130.txt"], re.MULTILINE)
    assert f"TORCH={version}" in [one.rest for one in instructions("ARG")], "torch without CUDA is of the same version"


def test_each_step_asks_one_index_and_packages_have_hashes() -> None:
    """If pip asks two indexes, it takes the higher version of a package, no matter who uploaded it."""
    step = install_step()
    assert "extra-index-url" not in step
    for command in re.findall(r"pip install [^;&]+", step):
        assert command.count("--index-url") == 1 and "--no-deps" in command
        assert "--require-hashes" in command or '"torch==${TORCH}"' in command


def test_ssh_is_in_the_launchers_image_alone() -> None:
    stages = [one.rest for one in instructions("FROM")]
    assert stages == ["python:${PYTHON} AS plain", "plain AS ssh", "plain"]
    text = DOCKERFILE.read_text(encoding="utf-8")
    plain, ssh = text.split("FROM plain", 2)[:2]
    assert "apt-get" not in plain and "openssh-client rsync" in ssh
    assert [one.rest for one in instructions("USER")] == ["1000", "0", "1000"]


def test_all_that_is_copied_is_there_and_let_in_and_nothing_else_is() -> None:
    wanted = {*copied(), *bound()}
    assert wanted == LET_IN
    assert all((ROOT / name).exists() for name in wanted)


def test_the_base_is_pinned_and_the_user_is_not_root() -> None:
    base = dict(one.rest.split("=", 1) for one in instructions("ARG") if "=" in one.rest)["PYTHON"]
    assert re.fullmatch(r"\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert instructions("FROM")[0].rest == "python:${PYTHON} AS plain"
    assert instructions("USER")[-1].rest.isdigit() and int(instructions("USER")[-1].rest) > 0


def test_no_instruction_names_a_secret() -> None:
    for one in instructions():
        if one.keyword in ("ARG", "ENV", "LABEL"):
            assert not re.search("token_|_token|secret|password", one.rest, re.IGNORECASE), one
    assert not instructions("ADD")


@pytest.mark.skipif(not os.environ.get("CI"), reason="installs all that an image holds, for minutes; set CI=1 for it")
def test_the_steps_make_a_place_where_the_first_command_works(tmp_path: Path) -> None:
    """The steps run in a fresh virtual environment, with torch from the package index and only the copied files."""
    context, python = tmp_path / "context", tmp_path / "venv" / "bin"
    context.mkdir()
    for name in copied():
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, context / name)
    for name in bound():
        shutil.copy(ROOT / name, context)
    venv.create(tmp_path / "venv", with_pip=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    environment |= {"PATH": f"{python}:{os.environ['PATH']}", "DEVICE": "cu130", "INDEX": "https://pypi.org/simple"}
    subprocess.run(install_step(), shell=True, check=True, cwd=context, env=environment, stdout=subprocess.DEVNULL)
    for name in bound():
        (context / Path(name).name).unlink()
    assert "token-entropy" not in subprocess.check_output([python / "pip", "list"], text=True)
    (first,) = instructions("CMD")
    command = [word.replace("/data", str(tmp_path)) for word in shlex.split(first.rest.strip("[]").replace(",", " "))]
    environment["PYTHONPATH"] = str(context)
    ended = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "dataset" in ended.stdout and list((tmp_path / "annotated-sample" / "data").rglob("*.parquet"))
