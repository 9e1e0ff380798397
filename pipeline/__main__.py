"""Lists the commands with the first line of their docstrings, read without importing them."""

import ast
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from pipeline.interruptions import ending_in_a_line
from pipeline.messages import say

ROOT = Path(__file__).parents[1]
HELP = ("--help", "-h")


def list_commands(arguments: Sequence[str]) -> None:
    """Prints all commands; arguments other than --help are refused."""
    known = commands()
    for argument in arguments:
        if argument not in HELP:
            (closest,) = get_close_matches(argument, known, n=1, cutoff=0)
            sys.exit(
                f"error: {argument} is no command; the nearest is python -m {closest}, python -m pipeline lists all"
            )
    say("Commands, each explained by `python -m COMMAND --help`:", "")
    for name, does in known.items():
        say(f"{name:{max(map(len, known))}}  {does}")


def commands() -> dict[str, str]:
    """Every module that can be run, with its first line."""
    packages = {f"pipeline.{file.parent.name}": file for file in sorted(ROOT.glob("pipeline/*/__main__.py"))}
    files = packages | {f"jobs.{file.stem}": file for file in sorted(ROOT.glob("jobs/[!_]*.py"))}
    modules = {name: ast.parse(file.read_bytes()) for name, file in files.items()}
    return {name: first_line(module) for name, module in modules.items() if can_be_run(module)}


def can_be_run(module: ast.Module) -> bool:
    """True if the module has an `if __name__ == "__main__"`."""
    tests = [statement.test for statement in module.body if isinstance(statement, ast.If)]
    return "__name__ == '__main__'" in map(ast.unparse, tests)


def first_line(module: ast.Module) -> str:
    """The first line of the docstring, which is a sentence."""
    return (ast.get_docstring(module) or "").partition("\n")[0]


if __name__ == "__main__":
    with ending_in_a_line(resumes=False):
        list_commands(sys.argv[1:])
