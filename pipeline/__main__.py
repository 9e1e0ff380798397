"""List of the commands, each with the first sentence of its help. The source is parsed, and no command is imported."""

import ast
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import cyclopts

from pipeline.interruptions import ending_in_a_line
from pipeline.messages import say

HELP = ("--help", "-h")
REFUSED = 2  # exit code


def list_commands(arguments: Sequence[str]) -> None:
    """Print all commands. Refuse arguments other than --help."""
    listed = commands()
    for argument in arguments:
        if argument not in HELP:
            refuse(argument, listed)
    table = cyclopts.App(
        name="python -m pipeline",
        help="Annotate datasets with per-token entropies, and train with them. `python -m COMMAND --help` explains a "
        "command.",
        usage="Usage: python -m COMMAND [OPTIONS]",
        help_format="plaintext",
        help_flags=(),
        version_flags=(),
    )
    for place, (name, sentence) in enumerate(listed.items()):
        table.command(cyclopts.App(name=name, help=sentence, help_flags=(), version_flags=(), sort_key=place))
    with table.console.capture() as help_text:  # rich would end with exit code 1 if nobody reads its output
        table.help_print([])
    sys.stdout.write(help_text.get())


def refuse(argument: str, listed: dict[str, str]) -> NoReturn:
    """Exit with an error message, which names the command that is most similar to the argument."""
    (closest,) = get_close_matches(argument, listed, n=1, cutoff=0)
    say(
        f"error: {argument} is not a command: did you mean python -m {closest}? python -m pipeline lists all commands",
        file=sys.stderr,
    )
    sys.exit(REFUSED)


def commands() -> dict[str, str]:
    """Return a mapping from the module of each command to the first sentence of its help."""
    files = {f"pipeline.{file.parent.name}": file for file in files_of("pipeline", "*/__main__.py")}
    files |= {f"jobs.{file.stem}": file for file in files_of("jobs", "[!_]*.py")}
    modules = {name: ast.parse(file.read_bytes()) for name, file in files.items()}
    return {name: first_sentence(command) for name, module in modules.items() if (command := command_of(module))}


def files_of(package: str, pattern: str) -> Iterator[Path]:
    """Yield a package's files that match a pattern, sorted by name. Yield nothing if the package is not installed."""
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        yield from sorted(Path(folder).glob(pattern))


def command_of(module: ast.Module) -> ast.FunctionDef | None:
    """Return the function that a module passes to `pipeline.cli.run`, or None if the module is not a command."""
    functions = {statement.name: statement for statement in module.body if isinstance(statement, ast.FunctionDef)}
    for guard in module.body:
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "__name__ == '__main__'":
            for call in ast.walk(guard):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "run":
                    return functions[ast.unparse(call.args[0])]
    return None


def first_sentence(command: ast.FunctionDef) -> str:
    """Return the first sentence of the function's docstring, in one line."""
    text = " ".join((ast.get_docstring(command) or "").split())
    return text.partition(". ")[0].rstrip(".") + "."


if __name__ == "__main__":
    with ending_in_a_line(resumes=False):
        list_commands(sys.argv[1:])
