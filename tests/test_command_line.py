"""Flags, YAML beneath them, help, and one line for a mistake."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import cyclopts
import pytest

from pipeline.command_line import run


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


def test_flags_stand_above_the_yaml_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
