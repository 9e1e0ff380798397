"""Licence, citation and changes of the repository, and the files that mention them."""

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import yaml

from tests.checkers import ROOT, check

CITATION, SCHEMA = ROOT / "CITATION.cff", ("--builtin-schema", "vendor.citation-file-format")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_licence_is_the_one_that_the_package_names() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0" and "Apache License" in text and "Version 2.0, January 2004" in text
    assert text.rstrip().endswith("limitations under the License.")


def test_the_citation_is_valid_and_would_not_be_without_authors(tmp_path: Path) -> None:
    assert check("check-jsonschema", *SCHEMA, "--force-filetype", "yaml", CITATION) is None
    anonymous = tmp_path / "CITATION.cff"
    anonymous.write_text(
        CITATION.read_text(encoding="utf-8").replace("authors:\n  - name: The token-entropy authors\n", ""),
        encoding="utf-8",
    )
    assert "authors" in (check("check-jsonschema", *SCHEMA, "--force-filetype", "yaml", anonymous) or "")


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2511.10618" and paper["title"].startswith("Know Your Limits")


def test_the_changes_of_this_version_are_told() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == PROJECT["version"] and len(set(headings)) == len(headings)


def test_the_make_targets_in_the_contributors_guide_exist() -> None:
    told = set(re.findall(r"`make (\w+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    made = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"setup", "test", "lint", "docs"} <= told <= made


SAME_NAMES = {"__init__", "__main__", "config", "second_order"}
"""Module names that may repeat. Each package has its settings, and label methods are named like their models."""


def test_no_two_modules_and_no_two_classes_share_a_name() -> None:
    """Only `Config` may occur several times, as the class of each command's settings."""
    modules, classes = defaultdict(list), defaultdict(list)
    for file in sorted(file for folder in ("pipeline", "jobs", "schemas") for file in (ROOT / folder).rglob("*.py")):
        modules[file.stem].append(file)
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(file)
    assert [name for name, files in modules.items() if len(files) > 1 and name not in SAME_NAMES] == []
    assert [name for name, files in classes.items() if len(files) > 1 and name != "Config"] == []
