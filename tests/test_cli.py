"""Command line: flags, which override YAML files; the help; and one-line messages of mistakes."""

import logging
import os
import re
import subprocess
import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import cyclopts
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cli import run
from pipeline.messages import LineFormatter, say


@dataclass(frozen=True, kw_only=True)
class Inner:
    steps: int = 3
    """Steps to take."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    input: tuple[str, ...]
    """Files to read."""
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Config:
    received: list[Config] = []

    def command(config: Config) -> None:
        received.append(config)

    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run(command, "some.command")
    if stopped.value.code is not None:
        raise ValueError(stopped.value.code)
    return received[0]


def test_a_flag_takes_several_values(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parsed(monkeypatch, "--input", "a", "b", "--inner.steps", "7")
    assert config == Config(input=("a", "b"), inner=Inner(steps=7))


def test_flags_override_the_yaml_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("input: [a, b]\nlimit: 5\ninner: {steps: 9}\n", encoding="utf-8")
    assert parsed(monkeypatch, "--config", str(file)) == Config(input=("a", "b"), limit=5, inner=Inner(steps=9))
    assert parsed(monkeypatch, "--limit", "6", "--config", str(file)).limit == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--input"),
        (["--input", "a", "--limt", "3"], "Did you mean --limit"),
        (["--input", "a", "--limit", "many"], "many"),
        (["--config"], "needs a YAML file"),
        (["--config", "absent.yaml"], "no file at --config absent.yaml"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        parsed(monkeypatch, *arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"), [("- a", "must map flag names"), ("a: [", "is not YAML"), ("inpt: [a]", "inpt")]
)
def test_a_yaml_file_is_checked_like_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        parsed(monkeypatch, "--config", str(file))


def test_a_user_sees_help_and_a_non_zero_exit() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "jobs.train_tokenizer", "--help"], capture_output=True, text=True, check=True
    )
    assert "--vocabulary" in shown.stdout and "8192" in shown.stdout and "--config" in shown.stdout
    refused = subprocess.run(
        [sys.executable, "-m", "jobs.train_tokenizer"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1


def test_help_breaks_lines_only_where_the_terminal_ends() -> None:
    words, wide = [sys.executable, "-m", "pipeline.annotate", "--help"], os.environ | {"COLUMNS": "1000"}
    shown = subprocess.run(words, env=wide, capture_output=True, text=True, check=True).stdout
    rows = [line for line in shown.splitlines() if line.startswith("│")]
    assert len(rows) > 20 and all(line.startswith("│ --") for line in rows)


def test_help_has_a_panel_per_group_and_defaults_as_they_are_typed() -> None:
    words = [sys.executable, "-m", "jobs.train_language_model", "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"╭─ (\w+) ─", shown) == ["Parameters", "Model", "Training", "Help"]
    parameters, model, training = (shown.partition(f"╭─ {name} ─")[2] for name in ("Parameters", "Model", "Training"))
    assert "│ --model." not in parameters.partition("╰")[0]
    assert "│ --model.width" in model and "│ --training.seed" in training
    assert "[default: 192]" in model and "[default: False]" not in shown and "[default: ()]" not in shown


def test_a_traceback_shows_every_cause_and_no_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(config: Config) -> None:
        try:
            raise KeyError("https://host/file?X-Amz-Signature=abc123secret")
        except KeyError as error:
            raise ValueError("cannot read") from error

    monkeypatch.setattr(sys, "argv", ["command", "--input", "a", "--debug"])
    with pytest.raises(SystemExit) as stopped:
        run(command, "some.command")
    shown = str(stopped.value.code)
    assert "Traceback" in shown and "KeyError" in shown and "ValueError: cannot read" in shown
    assert "abc123secret" not in shown and "X-Amz-Signature=***" in shown


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=()), max_size=40), st.sampled_from([ValueError, OSError]))
def test_any_error_is_a_line_that_steers_no_terminal(
    monkeypatch: pytest.MonkeyPatch, text: str, kind: type[Exception]
) -> None:
    def command(config: Config) -> None:
        raise kind(text)

    monkeypatch.setattr(sys, "argv", ["command", "--input", "a"])
    with pytest.raises(SystemExit) as stopped:
        run(command, "some.command")
    shown = str(stopped.value.code)
    assert shown.startswith("error: ") and not {"Cc", "Cs", "Zl", "Zp"} & set(map(unicodedata.category, shown))
    assert "\u202e" not in shown and "\u2066" not in shown


PRINTING = """
import sys
from pipeline.cli import run
from tests.test_cli import Config, command_that_prints
run(command_that_prints, "some.command")
"""


def command_that_prints(config: Config) -> None:
    say(f"{config.input[0]} é 日本 \x1b[2J")
    if config.limit:
        raise RuntimeError("a mistake of ours: \x1b[2J é https://user:word@host/")


def printed_in(locale: dict[str, str], *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", **locale}
    command = [sys.executable, "-c", PRINTING, "--input", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, check=False, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"a \\xe9 \\u65e5\\u672c"), ("latin-1", b"a \xe9 \\u65e5\\u672c")]
)
def test_a_terminal_without_a_character_shows_an_escape(encoding: str, shown: bytes) -> None:
    done = printed_in({"PYTHONIOENCODING": encoding}, "a")
    assert (done.returncode, done.stdout) == (0, shown + b" \\x1b[2J\n"), done.stderr


def test_a_traceback_of_ours_steers_no_terminal_and_holds_no_credential() -> None:
    done = printed_in({}, "a", "--limit", "1")
    assert done.returncode == 1 and b"Traceback" in done.stderr
    assert done.stderr.strip().endswith(b"RuntimeError: a mistake of ours: \\x1b[2J \\xe9 https://***@host/")


@pytest.mark.parametrize(
    ("locale", "told"),
    [({}, b"cannot be read as ascii; set PYTHONUTF8=1"), ({"PYTHONUTF8": "1"}, b"cannot be read as utf-8; rename")],
)
def test_a_name_that_is_not_text_in_the_locale_is_refused(locale: dict[str, str], told: bytes) -> None:
    done = printed_in(locale, b"caf\xe9.parquet")
    assert done.returncode == 1 and done.stderr.startswith(b"error: the argument caf\\udce9.parquet ")
    assert told in done.stderr and done.stderr.count(b"\n") == 1


def test_the_flags_of_a_command_stand_for_the_settings_that_the_library_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors, printed text and the log show settings as flags. Other words in backticks stay as they are."""

    def command(config: Config) -> None:
        say("a larger `limit`")
        record = logging.makeLogRecord({"msg": "see `inner.steps`", "levelname": "WARNING"})
        print(LineFormatter("%(message)s").format(record))
        raise ValueError("`input` and `steps`, not `input_ids`")

    monkeypatch.setattr(sys, "argv", ["command", "--input", "a"])
    with pytest.raises(SystemExit) as stopped:
        run(command, "some.command")
    assert stopped.value.code == "error: --input and --inner.steps, not `input_ids`"
    assert capsys.readouterr().out.splitlines() == ["a larger --limit", "see --inner.steps"]
