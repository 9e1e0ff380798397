"""Display of one document in a terminal, shaded by entropy, or as a table of tokens if the terminal has no colours."""

import unicodedata
from collections.abc import Sequence

from rich.console import Console
from rich.style import Style
from rich.text import Text

from pipeline.messages import say, visible
from pipeline.report.notebook import PART, DocumentView, amount
from pipeline.report.palette import DARK, LEVELS, level

UNLABELLED = Style(dim=True, strike=True)
WIDTH = 24


def print_document(view: DocumentView, console: Console) -> None:
    """Print a document in colours, or as a table if the terminal has no colours or NO_COLOR is set."""
    if console.no_color or console.color_system is None:
        say(*figures(view))
    else:
        console.print(legend(view))
        console.print(shaded(view))
    if view.left:
        say(f"{view.left:,} more tokens are not shown; --tokens sets how many are")


def shaded(view: DocumentView) -> Text:
    """Return the text of the document, with each token in the colour of its entropy."""
    most = view.most
    text = Text()
    for token, nats in zip(view.tokens, view.entropies, strict=True):
        text.append(pictured(token) or "·", UNLABELLED if nats is None else style(level(nats, most)))
    return text


def legend(view: DocumentView) -> Text:
    """Return the colour scale. It has colours for negative labels only if the document has such labels."""
    most = view.most
    lowest = -LEVELS if min((nats for nats in view.entropies if nats is not None), default=0) < 0 else 0
    text = Text(f"{amount(-most) if lowest else 0} ")
    for signed in range(lowest, LEVELS + 1):
        text.append(" ", style(signed))
    return text.append(f" {amount(most)}   ").append("no label", UNLABELLED).append("\n")


def style(signed: int) -> Style:
    """Return the style of a colour level: its background, and a text colour that is readable on it."""
    if not signed:
        return Style()
    return Style(color=DARK.text, bgcolor=(DARK.positive if signed > 0 else DARK.negative)[abs(signed) - 1])


def pictured(text: str) -> str:
    """Return a text with marks at line ends, symbols for control characters, and escapes for direction marks.

    A document must not control the terminal or reorder the terminal's lines.
    """
    return "".join("↵\n" if character == "\n" else _picture(character) for character in text)


def figures(view: DocumentView) -> list[str]:
    """Return the lines of a table: a heading, then each token's text, labels, and running sum of entropies in bits."""
    series = [view.entropies, *([] if view.expected is None else [view.expected])]
    lines = [_line("token", ["entropy", "expected"][: len(series)], "bits so far")]
    for token, bits, *labels in zip(view.tokens, view.bits_so_far, *series, strict=True):
        cells = ["" if nats is None else f"{nats:.2f}" for nats in labels]
        lines.append(_line(repr(token) if token else PART, cells, f"{bits:.1f}"))
    return lines


def _line(token: str, cells: Sequence[str], bits: str) -> str:
    return f"{token:<{WIDTH}}" + "".join(f"{cell:>14}" for cell in (*cells, bits))


def _picture(character: str) -> str:
    if unicodedata.category(character) != "Cc":
        return visible(character)
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "␡"
