"""One document in a terminal, shaded by entropy; where there are no colours, a line a token with its figures."""

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
    """In colours where the terminal has them and NO_COLOR is not set."""
    if console.no_color or console.color_system is None:
        say(*figures(view))
    else:
        console.print(legend(view))
        console.print(shaded(view))
    if view.left:
        say(f"{view.left:,} more tokens are not shown; --tokens says how many are")


def shaded(view: DocumentView) -> Text:
    """The document's text, a token in the colour of its entropy."""
    most = view.most
    text = Text()
    for token, nats in zip(view.tokens, view.entropies, strict=True):
        text.append(pictured(token) or "·", UNLABELLED if nats is None else style(level(nats, most)))
    return text


def legend(view: DocumentView) -> Text:
    """From the lowest colour that is in use to the highest."""
    most = view.most
    lowest = -LEVELS if min((nats for nats in view.entropies if nats is not None), default=0) < 0 else 0
    text = Text(f"{amount(-most) if lowest else 0} ")
    for place in range(lowest, LEVELS + 1):
        text.append(" ", style(place))
    return text.append(f" {amount(most)}   ").append("no label", UNLABELLED).append("\n")


def style(place: int) -> Style:
    """The colour of a level, with a text colour that is readable on it."""
    if not place:
        return Style()
    return Style(color=DARK.text, bgcolor=(DARK.positive if place > 0 else DARK.negative)[abs(place) - 1])


def pictured(text: str) -> str:
    """Line ends marked, control characters as pictures, marks of direction escaped: documents must not steer a terminal
    nor reorder its lines."""
    return "".join("↵\n" if character == "\n" else _picture(character) for character in text)


def figures(view: DocumentView) -> list[str]:
    """A line a token: its text, nats, nats expected where they are there, bits of the document so far."""
    series = [view.entropies, *([] if view.expected is None else [view.expected])]
    lines = [_line("token", ["entropy", "expected"][: len(series)], "bits so far")]
    for place, (token, bits) in enumerate(zip(view.tokens, view.bits_so_far, strict=True)):
        labels = [labels[place] for labels in series]
        told = ["" if nats is None else f"{nats:.2f}" for nats in labels]
        lines.append(_line(repr(token) if token else PART, told, f"{bits:.1f}"))
    return lines


def _line(token: str, told: Sequence[str], bits: str) -> str:
    return f"{token:<{WIDTH}}" + "".join(f"{figure:>14}" for figure in (*told, bits))


def _picture(character: str) -> str:
    if unicodedata.category(character) != "Cc":
        return visible(character)
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "␡"
