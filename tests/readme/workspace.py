"""The folder in which the documentation's commands run: like a clone, with the files that they read and a test Hub."""

import json
import os
import shlex
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.data.sample import sample_documents
from pipeline.models.checkpoint import SHIPPED
from pipeline.models.loading import save_checkpoint
from schemas.rows import FINEWEB
from tests.builders import sample_texts, write_documents
from tests.forkserver import Forked
from tests.hub import Hub
from tests.jobs import test_compare_objectives as comparison
from tests.jobs.test_measure_truth import TINY
from tests.readme.document import ROOT
from tests.tiny_models import tiny_language_model

LONGEST = 300  # characters of a document that nothing is trained on


@dataclass(frozen=True)
class Workspace:
    folder: Path
    hub: Hub = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a process in a clone whose virtual environment is active, with the test Hub."""
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        home = str(self.folder / "home")
        return {"PATH": programs, "PYTHONPATH": str(ROOT), "HF_HOME": home, **self.hub.environment}

    def run(self, command: str) -> tuple[int, str]:
        """Run a command in a process of its own, and return the exit code and the printed text.

        A job or a command of the pipeline runs in a fork of a process that has imported torch, and any other command in
        a shell.
        """
        python, option, *words = self.words(command)
        if (python, option) == ("python", "-m") and words[0].startswith(("pipeline.", "jobs.")):
            with chdir(self.folder):
                process = Forked(*words, environment=self.environment)
            return process.wait(300), "".join(process.communicate())
        ran = subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return ran.returncode, ran.stdout

    def words(self, command: str) -> list[str]:
        """Return the words of a command, with patterns of file names expanded as a shell does."""
        found: list[str] = []
        for word in shlex.split(command):
            found += sorted(glob(word, root_dir=self.folder)) or [word]
        return found

    def job(self, command: str) -> list[str]:
        """Return the words of a `ray job submit` command, with this environment in --runtime-env-json.

        The Ray head was started without this environment.

        Raises:
            AssertionError: if the command sets a variable that this environment lacks.
        """
        words = shlex.split(command)
        if "--runtime-env-json" in words:
            at = words.index("--runtime-env-json")
            assert json.loads(words[at + 1])["env_vars"].keys() <= self.environment.keys()
            del words[at : at + 2]
        return [*words[:3], "--runtime-env-json", json.dumps({"env_vars": self.environment}), *words[3:]]


def prepare(folder: Path, hub: Hub) -> Workspace:
    """Write all files that commands read but no command writes. Return the workspace."""
    for name in ("jobs", "pipeline", "schemas"):
        (folder / name).symlink_to(ROOT / name)
    write_documents(folder / "documents.parquet", sample_texts(60, 800))
    write_documents(folder / "books.parquet", sample_texts(3, LONGEST))
    (folder / "notes.txt").write_text(sample_texts(1, LONGEST)[0], encoding="utf-8")
    lines = [json.dumps({"text": text}) + "\n" for text in sample_texts(8, LONGEST)]
    (folder / "documents.jsonl").write_text("".join(lines), encoding="utf-8")
    for number, rows in enumerate((fineweb_rows(0, 6), fineweb_rows(6, 12))):
        file = folder / "fineweb" / f"{number:03d}.parquet"
        file.parent.mkdir(exist_ok=True)
        pq.write_table(rows, file)
    write_language_model(folder / "language-model")
    hub.add("HuggingFaceFW/fineweb-edu", {"sample/10BT/000_00000.parquet": edu_file(folder)})
    sizes = {"contest": comparison.CONTEST, "training": comparison.TRAINING, "model": comparison.MODEL}
    tiny = {"truth": {"contest": TINY}, "objectives": {**sizes, **comparison.SIZES}}
    (folder / "tiny").mkdir()
    for name, settings in tiny.items():
        (folder / "tiny" / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return Workspace(folder, hub)


def write_language_model(folder: Path) -> None:
    """Write a checkpoint for labels by `--method causal`, with the shipped tokenizer."""
    model = tiny_language_model(vocabulary=8192)
    model.config.eos_token_id = 0
    save_checkpoint(model, folder, dtype="float32", tokenizer_folder=SHIPPED / "tokenizer", card="")


def fineweb_rows(start: int, stop: int) -> pa.Table:
    """Return the sample documents from `start` to `stop`, with short texts and FineWeb's columns."""
    rows = [{**row, "text": row["text"][:LONGEST]} for row in sample_documents().slice(start, stop - start).to_pylist()]
    return pa.Table.from_pylist(rows, schema=FINEWEB)


def edu_file(folder: Path) -> bytes:
    """Write a Parquet file with FineWeb's columns and FineWeb-Edu's `score`. Return its bytes."""
    rows = fineweb_rows(12, 18)
    file = folder / "edu.parquet"
    pq.write_table(rows.append_column("score", pa.array([2.5] * len(rows))), file)
    return file.read_bytes()
