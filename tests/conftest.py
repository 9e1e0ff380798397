"""Fixtures that several test files share: a tokenizer, documents, FineWeb rows where they lie at hand, one Ray."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from pipeline.engine import driver
from tests.builders import sample_texts, write_documents

RunCommand = Callable[..., int]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("FINEWEB"):
        for item in items:
            if item.get_closest_marker("fineweb"):
                item.add_marker(pytest.mark.skip(reason="FINEWEB names no Parquet file of FineWeb rows"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with driver.cluster("local"):
        yield
    assert not ray.is_initialized()


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Runs `python -m MODULE ARGUMENTS...` in this process and returns its exit code; texts of errors go to stderr."""

    def command(module: str, *arguments: object) -> int:
        function = getattr(importlib.import_module(module), module.split(".")[-1])
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        from pipeline.command_line import run

        with pytest.raises(SystemExit) as stopped:
            run(function, module)
        if isinstance(stopped.value.code, str):
            print(stopped.value.code, file=sys.stderr)
            return 1
        return stopped.value.code or 0

    return command


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty documents: FineWeb's where they lie at hand, else built-in ones."""
    if os.environ.get("FINEWEB"):
        return Path(os.environ["FINEWEB"])
    return write_documents(tmp_path_factory.mktemp("documents") / "sample.parquet", sample_texts(50))
