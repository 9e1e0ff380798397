"""Fixtures for the documentation's commands: the folder in which they run, and a function that runs them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import RunCommand
from tests.hub import hub_server
from tests.readme.rules import rule_for
from tests.readme.workspace import Workspace, prepare

RunHere = Callable[[str], None]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with hub_server() as hub:
        yield prepare(tmp_path_factory.mktemp("clone"), hub)


@pytest.fixture
def there(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the workspace's folder the working directory of this process, and return it."""
    monkeypatch.chdir(workspace.folder)
    return workspace.folder


@pytest.fixture
def run_here(workspace: Workspace, there: Path, run_command: RunCommand, ray_cluster: None) -> RunHere:
    """Return a function that changes a command by its rule (see tests.readme.rules) and runs it in this process.

    The function asserts that the command ends with exit code 0.
    """

    def run(command: str) -> None:
        python, option, module, *arguments = workspace.words(rule_for(command).applied(command))
        assert (python, option) == ("python", "-m")
        assert run_command(module, *arguments) == 0

    return run
