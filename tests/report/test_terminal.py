"""A document in a terminal, with colours and without."""

import io
import re

import pytest
from rich.console import Console

from pipeline.report.notebook import DocumentView
from pipeline.report.palette import DARK
from pipeline.report.terminal import print_document

VIEW = DocumentView(["The", " cat", "\n", "", "€", "\x1b[31m\x9b"], [8.0, None, 0.0, -8.0, 0.5, 1.0])
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def printed(view: DocumentView) -> str:
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", no_color=False, width=90)
    print_document(view, terminal)
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


def background(colour: str) -> str:
    return "48;2;" + ";".join(str(channel) for channel in bytes.fromhex(colour[1:]))


def test_tokens_are_printed_on_the_colours_of_their_labels_below_a_legend() -> None:
    legend, text = printed(VIEW).split("\n\n", 1)
    assert " ".join(ESCAPES.sub("", legend).split()) == "−8.00 nats, −11.54 bits 8.00 nats, 11.54 bits no label"
    assert all(background(colour) in legend for colour in (*DARK.positive, *DARK.negative))
    most, least = text.split("The")[0], text.split("·")[0].rpartition("\n")[2]
    assert background(DARK.positive[-1]) in most and background(DARK.negative[-1]) in least
    assert ESCAPES.sub("", text) == "The cat↵\n·€␛[31m␡\n"


def test_a_document_cannot_steer_the_terminal() -> None:
    assert "\x1b[31m" not in printed(VIEW) and "\x9b" not in printed(VIEW)


@pytest.mark.parametrize("console", [Console(no_color=True, force_terminal=True), Console(color_system=None)])
def test_without_colours_each_token_is_a_line_of_figures(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    print_document(VIEW, console)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["token", "entropy", "bits", "so", "far"],
        ["'The'", "8.00", "11.5"],
        ["'", "cat'", "11.5"],
        ["'\\n'", "0.00", "11.5"],
        ["part", "of", "a", "character", "-8.00", "0.0"],
        ["'€'", "0.50", "0.7"],
        ["'\\x1b[31m\\x9b'", "1.00", "2.2"],
    ]


def test_expected_entropy_has_a_column_where_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    print_document(DocumentView(["a"], [1.0], [2.5]), Console(color_system=None))
    assert [line.split() for line in capsys.readouterr().out.splitlines()][1] == ["'a'", "1.00", "2.50", "1.4"]
