"""Command line of every command. The fields of a dataclass become flags, which a YAML file can also set (`--config`).

Errors that a user can cause end the command with one line on standard error and exit code 1.
"""

import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache, wraps
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import cyclopts
import yaml
from cyclopts.config import Yaml
from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel, InlineText
from httpx2 import HTTPError
from huggingface_hub.utils.tqdm import disable_progress_bars
from rich.text import Text

from pipeline.checks import require_lasting_outputs
from pipeline.interruptions import ending_in_a_line, output_is_closed
from pipeline.messages import FLAGS, UNENCODED, log_to_stderr, one_line, redacted, visible

INCOMPLETE = 3  # exit code of a command that leaves a dataset without some of its shards
COMMON_FLAGS = (
    "For every command: --config FILE reads a YAML file of the flags above (input: [a, b], training: {steps: 9}), and "
    "flags on the command line override the file; --debug shows the traceback of an error."
)


def run(command: Callable[..., int | None], module: str, *, resumes: bool = True) -> NoReturn:
    """Parse the arguments into `command`'s dataclass, call `command` and exit with its return value (None means 0).

    `resumes` is True if the same command resumes after an interruption.
    """
    _print_anything()
    log_to_stderr()
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hides warnings of retries and empty commits
    if os.environ.get("RANK", "0") != "0":  # processes that train together read the same rows: one of them warns
        logging.getLogger("pipeline.data.skipped").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # our own error reports weights that do not fit
    if "transformers" in sys.modules:  # it read its environment variable when it was imported
        sys.modules["transformers"].utils.logging.disable_progress_bar()
        sys.modules["transformers"].utils.logging.set_verbosity_error()
    arguments = [part for argument in sys.argv[1:] for part in _split(argument)]
    debug = "--debug" in arguments
    with ending_in_a_line(resumes=resumes):
        try:
            _require_text(arguments)
            parser = _parser(command, module, arguments)
            FLAGS.update(_flags(command))
            code = parser(arguments, exit_on_error=False, print_error=False)
        except (ValueError, OSError, HTTPError, cyclopts.CycloptsError) as error:
            if isinstance(error, BrokenPipeError) and output_is_closed():
                raise
            if debug:
                sys.exit(visible(redacted(traceback.format_exc()), keep="\n"))
            sys.exit(f"error: {one_line(_with_remedy(error))}")
        finally:
            FLAGS.clear()
    sys.exit(code)


def _print_anything() -> None:
    """Let output streams and tracebacks show a character as an escape if the terminal's encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _show_traceback


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    shown = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(visible(redacted(shown), keep="\n"))


def _require_text(arguments: Sequence[str]) -> None:
    """Raise if an argument is not text in this locale, because Arrow and the Hub accept only names in UTF-8.

    Raises:
        ValueError: if an argument cannot be decoded. The message names the argument.
    """
    for argument in arguments:
        if UNENCODED.search(argument):
            encoding = sys.getfilesystemencoding()
            remedy = "rename the file" if encoding == "utf-8" else "set PYTHONUTF8=1, or a UTF-8 locale"
            raise ValueError(f"the argument {argument} cannot be read as {encoding}; {remedy}")


def _with_remedy(error: Exception) -> str:
    """Return an error's message. If the error was raised by a library, add what the user can do."""
    if isinstance(error, cyclopts.UnusedCliTokensError):
        return f"{' '.join(error.unused_tokens or ())} belongs to no flag; --help shows the flags and their values"
    if isinstance(error, cyclopts.CycloptsError):
        return f"{str(error).strip().rstrip('.')}; --help shows the flags and their values"
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}; check the path and its permissions"
    if isinstance(error, HTTPError) and not isinstance(error, OSError):  # the Hub's own errors say what to do
        return f"a server did not answer as it should ({error or type(error).__name__}); run the same command again"
    return str(error)


def _parser(command: Callable[..., int | None], module: str, arguments: list[str]) -> cyclopts.App:
    """Return the parser for `command`, and remove --debug and --config from the list `arguments`."""
    if "--debug" in arguments:
        arguments.remove("--debug")
    return cyclopts.App(
        name=f"python -m {module}",
        default_command=_checked(command),
        default_parameter=cyclopts.Parameter(consume_multiple=(1, None), negative=(), show_default=_default),
        config=_config_files(arguments),
        help_epilogue=COMMON_FLAGS,
        group_commands="Help",
        help_format="plaintext",
        help_formatter=_Help(),
        version_flags=(),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )


def _default(value: object) -> str | None:
    """Return a default as the user would write it, or None for a missing value and for a flag that is off."""
    if value is None or value is False or value == ():
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class _Help(DefaultFormatter):
    """Formatter of help with a panel per group of settings, such as `--training.steps` and `--training.seed`.

    Lines break where the terminal ends, and not where a docstring breaks them.
    """

    def __call__(self, console: Any, options: Any, panel: HelpPanel) -> None:
        groups: dict[str, list[HelpEntry]] = {}
        for entry in panel.entries:
            _join(entry.description)
            groups.setdefault("".join(entry.names[:1]).rpartition(".")[0], []).append(entry)
        for group, entries in groups.items():
            title = panel.title if not group else group.removeprefix("--").capitalize()
            super().__call__(console, options, panel.copy(title=title, entries=entries))

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        _join(description)
        super().render_description(console, options, description)


def _join(description: Any) -> None:
    """Join the lines of each paragraph of a help text."""
    if isinstance(description, InlineText):
        paragraphs = str(description.primary_renderable).split("\n\n")
        description.primary_renderable = Text("\n\n".join(" ".join(each.split()) for each in paragraphs))


@cache
def _flags(command: Callable[..., int | None]) -> dict[str, str]:
    """Return the flag of each setting, by the setting's name (`steps`) and by its path (`training.steps`)."""
    parser = cyclopts.App(default_command=command, default_parameter=cyclopts.Parameter(negative=()))
    flags = [name for argument in parser.assemble_argument_collection() for name in argument.names]
    paths = {flag.removeprefix("--").replace("-", "_"): flag for flag in flags if flag.startswith("--")}
    return {path.rpartition(".")[2]: flag for path, flag in paths.items()} | paths


def _checked(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Return a function that checks that Ray will not delete the outputs of `command`, and then calls `command`."""

    @wraps(command)
    def checked(*configs: object) -> int | None:
        for config in configs:
            require_lasting_outputs(config)
        return command(*configs)

    return checked


def _split(argument: str) -> list[str]:
    """Return `--config=FILE` as two arguments, `--config` and `FILE`. Return any other argument as it is, in a list."""
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]


def _config_files(arguments: list[str]) -> list[Yaml]:
    files: list[Yaml] = []
    while "--config" in arguments:
        index = arguments.index("--config")
        if index + 1 == len(arguments):
            raise ValueError("--config needs a YAML file; name one, as in --config run.yaml")
        file = Path(arguments[index + 1])
        del arguments[index : index + 2]
        _check_yaml(file)
        files.append(Yaml(file.resolve(), must_exist=True))
    return files


def _check_yaml(file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"no file at --config {file}; check the path")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}; write flags as in `limit: 100`") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must map flag names to values, as in `limit: 100`")
