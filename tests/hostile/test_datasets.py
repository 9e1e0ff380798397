"""A dataset prepared by an attacker is published, annotated, verified, reported and trained on.

No file outside the dataset's folder is opened or changed, and no code from the dataset is run. Each command succeeds,
prints a list of the dataset's faults, or ends with an error message of one line.
"""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.forkserver import Forked
from tests.hostile.datasets import SECRET, TRICKS, Prey, write_outside
from tests.hostile.watching import watched
from tests.hub import Hub
from tests.tiny_models import tiny_second_order

SECONDS = 30
VOCABULARY = 8192


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder with documents, a checkpoint and the dataset made with them."""
    folder = tmp_path_factory.mktemp("good")
    write_documents(folder / "documents.parquet", sample_texts(8, 200))
    tiny_second_order(vocabulary=VOCABULARY).save_pretrained(folder / "model")
    copy_tokenizer(SHIPPED / "tokenizer", folder / "model")
    annotation = Forked("pipeline.annotate", *annotating(folder))
    printed = annotation.communicate()
    assert annotation.returncode == 0, printed
    return folder


def annotating(folder: Path, output: object = None) -> list[object]:
    return [
        *("--input", folder / "documents.parquet", "--estimator", folder / "model", "--rows-per-unit", 2),
        *("--workers", 0, "--output", output or folder / "dataset"),
    ]


@pytest.fixture
def prey(good: Path, tmp_path: Path) -> Prey:
    shutil.copytree(good / "dataset", tmp_path / "dataset")
    write_outside(tmp_path / "outside")
    return Prey(tmp_path / "dataset", tmp_path / "outside")


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def reading(dataset: object, folder: Path, good: Path) -> dict[str, tuple[object, ...]]:
    """Return, by module, the arguments of commands that read a dataset and write into a folder."""
    sizes = "--training.steps 1 --model.layers 1 --model.width 16 --model.heads 2 --model.context 4"
    return {
        "pipeline.verify": (dataset, "--estimator", good / "model"),
        "pipeline.report": (dataset, "--output", folder / "page"),
        "jobs.train_language_model": (
            *("--labels", dataset, "--output", folder / "trained", "--held-out", 1),
            *("--training.tokens-per-batch", 16, *sizes.split()),
        ),
    }


@pytest.fixture
def attempt(prey: Prey, run_command: RunCommand, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Return a function that runs a command on the attacker's dataset and checks the command's behaviour.

    The command must not open anything in the folder with the secret. It must succeed, print its list of faults, or end
    with a line that begins with `error: `. It must not print a traceback or a control sequence.
    """

    def attempt(module: str, *arguments: object) -> None:
        capsys.readouterr()
        with watched(prey.outside) as touched:
            code = run_command(module, *arguments)
        printed = capsys.readouterr()
        assert touched == [], module
        assert "\x1b" not in printed.out + printed.err, module
        told = printed.err.splitlines()[-1:] or [""]
        lists = (module, code) in (("pipeline.verify", 1), ("pipeline.publish", 3)) and printed.out
        assert code == 0 or lists or told[0].startswith("error: "), (module, printed)
        assert "Traceback" not in printed.err, module

    return attempt


@pytest.mark.parametrize("trick", TRICKS)
def test_an_attackers_folder_reaches_nothing_outside_it(
    trick: str, prey: Prey, good: Path, hub: Hub, attempt: Callable[..., None]
) -> None:
    TRICKS[trick](prey)
    hub.add("user/stranger", {"LICENSE": b"none"})
    attempt("pipeline.publish", prey.dataset, "hf://datasets/user/stranger")
    for module, arguments in reading(prey.dataset, prey.outside.parent, good).items():
        attempt(module, *arguments)
    attempt("pipeline.annotate", *annotating(good, prey.dataset))
    assert_secret_kept(hub, prey.outside.parent)


@pytest.mark.long
@pytest.mark.parametrize("trick", [trick for trick in TRICKS if not trick.startswith("link")])
def test_an_attackers_repository_reaches_nothing_on_the_disk(
    trick: str, prey: Prey, good: Path, hub: Hub, attempt: Callable[..., None]
) -> None:
    TRICKS[trick](prey)
    files = [file for file in prey.dataset.rglob("*") if file.is_file()]
    hub.add("user/stranger", {file.relative_to(prey.dataset).as_posix(): file.read_bytes() for file in files})
    url = "hf://datasets/user/stranger"
    for module, arguments in reading(url, prey.outside.parent, good).items():
        attempt(module, *arguments)
    attempt("pipeline.annotate", *annotating(good, url))
    assert_secret_kept(hub, prey.outside.parent)


def assert_secret_kept(hub: Hub, folder: Path) -> None:
    """Assert that the secret is neither in the repository nor in any written file."""
    assert SECRET.encode() not in b"".join(hub.files("user/stranger").values())
    for written in ("page", "trained", "dataset"):
        for file in (folder / written).rglob("*"):
            assert file.is_symlink() or not file.is_file() or SECRET.encode() not in file.read_bytes(), file
