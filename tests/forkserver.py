"""Commands in separate processes that start without delay, because a server that has imported torch is forked.

The server itself does not compute with torch. `Forked` has those methods of `subprocess.Popen` that tests use. `group`
starts a torch process group without a launcher, and sets the environment variables that a launcher would set.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from pipeline.experiments.parallel import PROCESSES
from tests.builders import command_of
from tests.conftest import free_ports

NOTHING: Mapping[str, str] = MappingProxyType({})


class Forked:
    """A process that runs `python -m MODULE ARGUMENTS...` on one thread, with its output in files."""

    def __init__(self, *command: object, environment: Mapping[str, str] = NOTHING) -> None:
        self.folder = TemporaryDirectory()
        self.printed = [Path(self.folder.name, name) for name in ("out", "err")]
        whole, words = {**os.environ, **environment}, list(map(str, command))
        self.process = PROCESSES.Process(target=_run, args=(words, whole, str(Path.cwd()), self.printed), daemon=True)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        assert self.process.exitcode is not None, "the command takes too long"
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        output, errors = (file.read_text(encoding="utf-8") for file in self.printed)
        return output, errors


def group(processes: int, *command: object, environment: Mapping[str, str] = NOTHING) -> list[Forked]:
    """Start the processes of one torch process group."""
    (port,) = free_ports(1)
    size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared = {**size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment}
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes))
    return [Forked(*command, environment={**shared, **rank}) for rank in ranks]


def follow_hub(environment: Mapping[str, str]) -> None:
    """Point huggingface_hub to the Hub of this environment.

    The library reads the environment at import, and was imported in the server that is forked.
    """
    from huggingface_hub import constants

    if "HF_ENDPOINT" in environment:
        address = environment["HF_ENDPOINT"]
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        constants.HUGGINGFACE_CO_URL_TEMPLATE, constants.ENDPOINT = template, address
        constants.HF_HUB_CACHE, constants.HF_HUB_DISABLE_XET = f"{environment['HF_HOME']}/hub", True


def _run(words: Sequence[str], environment: Mapping[str, str], folder: str, printed: Sequence[Path]) -> None:
    import torch

    from pipeline.cli import run

    for file, stream in zip(printed, (sys.stdout, sys.stderr), strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    follow_hub(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv, module = list(words), words[0]
    run(command_of(module), module)
