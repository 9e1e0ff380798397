"""Private names of libraries that this project uses, with the purpose of each: any release may change them.

If a test fails, find out what replaces the private name in the new release of the library. Change the module of this
project that uses the name, and then the library's upper bound in pyproject.toml.
"""

import ast
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LIBRARIES = {"ray", "huggingface_hub", "datasets", "transformers", "pyarrow", "fsspec", "accelerate", "tokenizers"}


def takes(*names: str) -> Callable[[Any], bool]:
    """Return a check that a function has these parameters."""
    return lambda function: set(names) <= set(inspect.signature(function).parameters)


USED: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "pipeline/engine/local_ray.py": {
        "ray._private.ray_constants.ENABLE_RAY_CLUSTER": (
            lambda value: isinstance(value, bool),
            "local_settings sets it to False so that Ray listens on 127.0.0.1; see services.resolve_ip_for_localhost",
        ),
        "ray._private.worker.connect": (
            takes("node", "session_name", "mode"),
            "signals_wait wraps it to restore SIGTERM's handler; see how ray.init makes its core worker",
        ),
        "ray._private.utils.set_sigterm_handler": (
            takes("sigterm_handler"),
            "signals_wait disables it while Ray starts; see how ray.init handles SIGTERM",
        ),
    },
    "pipeline/engine/cluster.py": {
        "ray._private.worker._global_node": (
            lambda value: value is None or hasattr(value, "dead_processes"),
            "require_ray asks it which of Ray's processes have ended",
        ),
        "ray._private.accelerators.get_all_accelerator_managers": (
            lambda function: all(hasattr(one, "get_current_node_num_accelerators") for one in function()),
            "nodes_at counts this machine's GPUs with it before Ray starts",
        ),
        "ray._private.utils.get_num_cpus": (takes(), "nodes_at counts this machine's cores with it before Ray starts"),
    },
    "pipeline/publish/card.py": {
        "datasets.Features._from_yaml_list": (
            takes("yaml_data"),
            "the card's features are written as datasets reads them",
        ),
        "datasets.Features._to_yaml_list": (takes("self"), "the card's features are written as datasets reads them"),
    },
}
"""For each module and private name: a check of the name's value, and the purpose of its use."""


def found_in(file: Path) -> Iterator[str]:
    """Yield the private names that a file imports from libraries, or reads from objects that are not its own."""
    imported: dict[str, str] = {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            source = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            imported |= {alias.asname or alias.name: f"{source}{alias.name}" for alias in node.names}
    used = {name for name in imported.values() if name.partition(".")[0] in LIBRARIES}
    yield from (name.rpartition(".")[2] for name in used if private(name) and not is_module(name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = imported.get(node.value.id, "")
            ours = node.value.id in ("self", "cls") or owner.partition(".")[0] in sys.stdlib_module_names
            if not ours and private(f"{owner}.{node.attr}"):
                yield node.attr


def private(name: str) -> bool:
    """Return True if a name has one leading underscore, except the public names of named tuples, such as `_replace`."""
    return bool(re.search(r"\._(?!fields$|replace$|asdict$|make$)[a-z]", name))


def is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def test_private_names_are_used_where_this_table_says_and_nowhere_else() -> None:
    files = [file for folder in ("pipeline", "jobs", "schemas") for file in (ROOT / folder).rglob("*.py")]
    found = {str(file.relative_to(ROOT)): set(found_in(file)) for file in files}
    known = {module: {name.rpartition(".")[2] for name in names} for module, names in USED.items()}
    assert {name: names for name, names in found.items() if names} == known


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in USED.items() for name in names], ids=lambda part: str(part)
)
def test_a_private_name_is_what_its_user_expects(module: str, name: str) -> None:
    fits, purpose = USED[module][name]
    cure = f"{name} has changed, which {module} uses: {purpose}. Change it there, then the version in pyproject.toml"
    holder, _, last = name.rpartition(".")
    owner = importlib.import_module(holder) if is_module(holder) else importlib.import_module("datasets").Features
    assert hasattr(owner, last), cure
    assert fits(getattr(owner, last)), cure


def test_ray_still_takes_what_it_is_given_and_reads_the_environment() -> None:
    source = inspect.getsource(ray._private.worker.init)
    for option in ("_node_ip_address", "_temp_dir"):
        assert f'kwargs.pop("{option}"' in source or f"{option}:" in source, (
            f"ray.init takes {option} no more, which pipeline/engine/local_ray.py gives it; see its new way"
        )
    from ray._private.authentication import authentication_token_setup as tokens

    assert tokens.AUTH_MODE_ENV_VAR == "RAY_AUTH_MODE" and callable(tokens.enable_token_auth_by_default), (
        "a Ray of one's own may ask for no token: pipeline/engine/local_ray.py relies on Ray's default"
    )


def test_libraries_whose_private_names_are_used_have_a_highest_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    for library in {name.partition(".")[0] for names in USED.values() for name in names}:
        assert "<" in str(bounds[library]), f"{library} needs an upper bound: its private names may go in any release"
