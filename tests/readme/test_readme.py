"""Every command and snippet of README.md and docs/ is run or checked, and every path and flag in the text exists.

The commands run in one folder, in the order of PAGES. They run as written, except for the changes in
tests/readme/rules.py that make them small. Run this file as a whole, because later commands read the files of earlier
ones. The tutorial and errors.md have their own tests.
"""

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import datasets
import pytest
import ray
import torch
import transformers
from transformers import PreTrainedModel

from pipeline.models.checkpoint import SHIPPED
from tests.conftest import Head, RunCommand
from tests.readme.conftest import RunHere
from tests.readme.document import ROOT, Document, files_for_docker, names_of, unknown_names
from tests.readme.rules import Way, rule_for, way_of
from tests.readme.workspace import Workspace
from tests.test_job_submit import submitted
from tests.tiny_models import tiny_language_model

PAGES = (
    *("quickstart", "labels", "python", "models", "training", "trainers", "memorisation", "scoreboards"),
    *(
        "data",
        "sidecars",
        "exports",
        "cluster",
        "hub",
        "results",
        "compared-sources",
        "compared-text",
        "figures",
        "speed",
    ),
    *("checkpoints", "architecture", "modules", "security"),
)
FILES = [ROOT / "README.md", *(ROOT / "docs" / f"{page}.md" for page in PAGES)]
MANUAL = Document("\n\n".join(file.read_text(encoding="utf-8") for file in FILES))
MODULES = Document((ROOT / "docs" / "modules.md").read_text(encoding="utf-8"))
GIVEN = {"model", "optimizer", "rank", "ranks"}
"""Names that snippets may use without defining them, because every trainer or training loop has them."""
PEERS = {
    "trl": ("trl",),
    "nemo_curator": ("nemo_curator",),
    "streaming": ("streaming", "torchvision"),
    "litdata": ("litdata",),
    "torchtitan": ("torchtitan",),
}
"""Libraries that snippets import but the tests do not install, each with the modules that it needs."""
PATH = re.compile(r"[\w*.-]+/[\w*./-]*|[\w*-]+\.(py|md|toml|ya?ml|jsonl?|parquet|txt|html)")
MODULE = re.compile(r"(pipeline|jobs|schemas|tests)(\.\w+)+")
FLAG = re.compile(r"--[a-z][a-z-]*(?:\.[a-z][a-z-]*)?")
MADE_ELSEWHERE = {"quarantine/", "annotated-report/report.html", "opened.json", "export.json", "index.json"}
"""Paths in the text that do not exist in the dataset of these tests. They are written for failed units, or by
pipeline.report, jobs.compare_objectives and pipeline.export."""


SHARDED = "accelerate launch --config_file jobs/fsdp.yaml"
"""Beginning of the launch command that trains with sharded weights. Apart from the shards, this command is the same as
the launch command before it in the documentation."""


def commands(*ways: Way) -> list[Any]:
    found = [command for command in MANUAL.commands if way_of(command) in ways]
    return [pytest.param(one, marks=pytest.mark.slow) if one.startswith(SHARDED) else one for one in found]


@pytest.fixture
def annotated(there: Path, run_here: RunHere) -> Path:
    """Return the dataset `annotated`, which the pages' first command with `--output annotated` writes."""
    if not (there / "annotated").exists():
        run_here(next(command for command in MANUAL.commands if "--output annotated" in command))
    return there / "annotated"


@pytest.mark.parametrize("command", commands("here", "process"), ids=str)
def test_a_command_works_as_it_is_written(command: str, workspace: Workspace, run_here: RunHere) -> None:
    rule = rule_for(command)
    if rule.way == "here":
        run_here(command)
    else:
        code, printed = workspace.run(rule.applied(command))
        assert code == 0, printed


@pytest.mark.parametrize("command", commands("peer"), ids=str)
def test_lm_eval_does_a_command_as_it_is_written(command: str, there: Path, workspace: Workspace) -> None:
    pytest.importorskip("lm_eval", reason="`make peers` was not run")
    code, printed = workspace.run(rule_for(command).applied(command))
    assert code == 0, printed
    assert "bits_per_byte" in printed


@pytest.mark.parametrize("command", commands("internet"), ids=str)
def test_lm_eval_knows_the_tasks_though_their_data_are_not_fetched_here(command: str) -> None:
    tasks = pytest.importorskip("lm_eval.tasks", reason="`make peers` was not run")
    words = command.split()
    assert set(words[words.index("--tasks") + 1].split(",")) <= set(tasks.TaskManager().all_tasks)


def first_of(*given: str) -> list[Any]:
    """Return the values as parameters of a test, and mark all values except the first as slow."""
    return [given[0], *(pytest.param(other, marks=pytest.mark.slow) for other in given[1:])]


@pytest.mark.cluster
@pytest.mark.parametrize("command", first_of(*commands("cluster")), ids=str)
def test_a_job_is_done_by_a_cluster(command: str, workspace: Workspace, ray_head: Head) -> None:
    program, job, *arguments = workspace.job(rule_for(command).applied(command))
    assert (program, job) == ("ray", "job")
    assert "succeeded" in submitted(ray_head, *arguments)


@pytest.mark.parametrize("command", commands("make"), ids=str)
def test_make_has_the_target_though_it_is_not_made_here(command: str) -> None:
    make, _, _ = command.partition(" && ")
    subprocess.run([*make.split(), "--dry-run"], cwd=ROOT, capture_output=True, check=True)


def test_the_demo_works(run_here: RunHere) -> None:
    # A make that runs these tests would have this one print its directories.
    make = ["make", "demo", "--dry-run", "--no-print-directory"]
    shown = subprocess.run(make, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    command = shown.splitlines()[-1].removeprefix(".venv/bin/")
    run_here(f"{command} --limit 8")


@pytest.mark.parametrize("command", commands("tests"), ids=str)
def test_the_marks_of_tests_that_are_left_out_are_known_though_they_are_not_run_here(
    command: str, pytestconfig: pytest.Config
) -> None:
    known = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    (expression,) = re.findall(r'-m "(.*)"', command)
    assert set(expression.split()) - {"not", "and", "or"} <= known


@pytest.mark.parametrize("command", commands("measurement"), ids=str)
def test_a_measurement_has_the_flags_though_it_is_not_made_here(command: str) -> None:
    spec = importlib.util.find_spec(command.split()[2])
    assert spec is not None and set(FLAG.findall(command)) <= flags_in(spec)


def flags_in(spec: ModuleSpec) -> set[str]:
    """Return the command-line flags that a module declares. In a package, its module `__main__` declares them."""
    folders = spec.submodule_search_locations
    file = Path(next(iter(folders)), "__main__.py") if folders else Path(str(spec.origin))
    return set(re.findall(r'add_argument\("(--[a-z-]+)"', file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("command", commands("docker"), ids=str)
def test_docker_finds_the_files_though_it_is_not_run_here(command: str) -> None:
    assert [name for name in files_for_docker(command) if not (ROOT / name).is_file()] == []


@dataclass
class Notebook:
    """Code snippets of the pages. They are executed in order, each once, in one namespace that they share."""

    names: dict[str, Any]
    executed: int = 0

    def execute(self, number: int) -> PreTrainedModel | None:
        """Execute the snippets up to and including index `number`, except snippets that were executed before.

        Return the model that was given to the last snippet. Return None if the last snippet was not executed because it
        imports a library that is not installed.
        """
        model = None
        for snippet in MANUAL.snippets[self.executed : number + 1]:
            model = self._executed(snippet) if runs_here(snippet) else None
        self.executed = number + 1
        return model

    def _executed(self, snippet: str) -> PreTrainedModel:
        model: PreTrainedModel = tiny_language_model(vocabulary=8192).train()
        model.requires_grad_(True)
        self.names |= {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
        exec(compile(snippet, "README.md", "exec"), self.names)
        if "trainer = " in snippet and "trainer.train()" not in snippet:
            self.names["trainer"].train()
        return model


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(transformers, "TrainingArguments", partial(transformers.TrainingArguments, max_steps=2))
        yield Notebook({"rank": 0, "ranks": 1})
        ray.shutdown()


@pytest.mark.parametrize("number", range(len(MANUAL.snippets)))
def test_a_snippet_runs_and_trains(number: int, annotated: Path, notebook: Notebook) -> None:
    """A snippet may use the names of earlier snippets. If it uses the given `model`, it must train all weights."""
    model = notebook.execute(number)
    if model is None:
        pytest.skip("its library is not installed; another test looks at the snippet's names")
    if "model" in unknown_names(MANUAL.snippets[number], set()):
        untrained = tiny_language_model(vocabulary=8192).parameters()
        assert not any(torch.equal(one.cpu(), other) for one, other in zip(model.parameters(), untrained, strict=True))


def runs_here(snippet: str) -> bool:
    """Return False if the snippet imports a library of PEERS that is not installed."""
    imported = (needed for name, needed in PEERS.items() if f"from {name}" in snippet)
    return all(importlib.util.find_spec(module) is not None for needed in imported for module in needed)


@pytest.mark.parametrize("number", range(len(MANUAL.snippets)))
def test_a_snippet_has_its_names_from_itself_or_those_before_it(number: int) -> None:
    known = GIVEN.union(*map(names_of, MANUAL.snippets[:number]))
    assert unknown_names(MANUAL.snippets[number], known) == set()


def test_paths_in_the_text_exist_here_or_in_what_commands_write(annotated: Path) -> None:
    missing = {
        code
        for code in filter(PATH.fullmatch, MANUAL.codes)
        if not (ROOT / code).exists() and not (annotated.parent / code).exists()
    }
    patterns = {code: f"**/{re.sub('[A-Z]+', '*', code)}" for code in missing - MADE_ELSEWHERE}
    written = {code for code, pattern in patterns.items() if any(annotated.glob(pattern)) or any(SHIPPED.glob(pattern))}
    assert missing - MADE_ELSEWHERE == written


def test_modules_in_the_text_exist() -> None:
    assert [name for name in filter(MODULE.fullmatch, MANUAL.codes) if importlib.util.find_spec(name) is None] == []


def test_trees_of_folders_show_what_is_there(annotated: Path) -> None:
    missing = []
    for tree in MANUAL.trees:
        root = ROOT if (ROOT / next(iter(tree))).exists() else annotated.parent
        for path, said in tree.items():
            inside = re.findall(r"(?<![\w./])[\w*]+(?:\.py|\.yaml|/)(?=[\s,;.)]|$)", said) if path.endswith("/") else []
            if path == "jobs/":
                inside += [f"{name}.py" for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+(?![\w.*/])", said)]
            wanted = [path.replace("SUBSET", "*"), *(path + name for name in inside)]
            missing += [name for name in wanted if not any(root.glob(name.rstrip("/")))]
    assert missing == []


def test_the_tree_names_every_module() -> None:
    (tree,) = MODULES.trees
    modules = {file for folder in ("pipeline", "schemas") for file in (ROOT / folder).rglob("*.py")}
    named = {name.relative_to(ROOT).as_posix() for name in modules if name.name != "__init__.py"}
    assert sorted(named - set(tree)) == []
    assert all(file.stem in tree["jobs/"] for file in ROOT.glob("jobs/[!_]*.py"))


def test_flags_in_the_text_are_those_of_a_command(
    run_command: RunCommand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    flags = {"every command": {"--help", "--config", "--debug"}}
    for module in [
        "pipeline.annotate",
        "pipeline.publish",
        "pipeline.report",
        "pipeline.verify",
        "pipeline.export",
        "pipeline.join",
        *(f"jobs.{file.stem}" for file in ROOT.glob("jobs/[a-z]*.py")),
    ]:
        assert run_command(module, "--help") == 0
        flags[module] = set(re.findall(r"^│[ *]+(--\S+)", capsys.readouterr().out, re.MULTILINE))
    for module in ("tests.device", "tests.fuzz", "tests.kills"):
        spec = importlib.util.find_spec(module)
        assert spec is not None
        flags[module] = flags_in(spec)
    every = set().union(*flags.values())
    for code in MANUAL.codes:
        first, *_ = code.split()
        if first.startswith("--") or f"jobs.{first}" in flags:
            known = every if first.startswith("--") else flags[f"jobs.{first}"]
            assert set(FLAG.findall(code)) <= known, f"{code} has a flag that no command takes"


def test_a_command_that_nobody_knows_is_found_and_refused() -> None:
    text = "Run `python -m jobs.new`:\n\n    install it \\\n        --now  # at once\n\n```yaml\na: b\n```\n"
    found = Document(text).commands
    assert found == ["python -m jobs.new", "install it --now"]
    for command in found:
        with pytest.raises(AssertionError, match=f"no test runs: `{command}`. Add a Rule"):
            rule_for(command)


def test_a_text_is_taken_apart_as_its_readers_do() -> None:
    deep = 30 * " "
    text = f"# A `b`, c!\n\n## Twice\n\n## Twice\n\n    a/      one\n      b.py, c.py  two\n{deep}and more\n"
    document = Document(text + "\n[there](docs/a.md#b)\n\n    import os\n")
    assert document.anchors == {"a-b-c", "twice", "twice-1"}
    assert document.trees == [{"a/": "one", "a/b.py": "two and more", "a/c.py": "two and more"}]
    assert document.links == ["docs/a.md#b"] and document.snippets == ["import os\n"] and document.commands == []
    assert unknown_names("for x in y: print(x, z)", {"y"}) == {"z"}
    assert files_for_docker("docker build -f docker/Dockerfile .") == {"docker/Dockerfile"}
    assert files_for_docker("docker build .") == {"Dockerfile"} and files_for_docker("docker run it") == set()
