"""The colours of entropies, as hexadecimal sRGB: two ramps from the background colour, in light and in dark mode.

Positive labels are orange and negative labels are blue, which people with common colour blindness can tell apart. Along
a ramp, lightness only falls or only rises. A ramp ends where text on its colour would no longer be readable.
"""

from dataclasses import dataclass
from math import floor

import numpy as np

LEVELS = 16


@dataclass(frozen=True)
class Palette:
    """Colours of the background, the text, and the positive and negative levels. Level 0 is the background's colour."""

    paper: str
    text: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def ramp(*anchors: str) -> tuple[str, ...]:
    """Return a ramp of LEVELS colours from the first anchor to the last, with the other anchors evenly spaced on it."""
    channels_A3 = np.array([[*bytes.fromhex(anchor[1:])] for anchor in anchors])
    at_L = np.linspace(0, len(anchors) - 1, LEVELS)
    channels_L3 = np.stack([np.interp(at_L, range(len(anchors)), channel_A) for channel_A in channels_A3.T], axis=1)
    return tuple("#" + bytes(np.round(channels_3).astype(np.uint8)).hex() for channels_3 in channels_L3)


LIGHT = Palette("#fdfcf9", "#211f1c", ramp("#fdf3e2", "#f9c98c", "#dd6f4f"), ramp("#edf3fa", "#aecbe9", "#6295d2"))
DARK = Palette("#17181b", "#ebe8e3", ramp("#261f1a", "#6a3d20", "#a8492d"), ramp("#1a222d", "#28486d", "#2c68ad"))


def level(nats: float, most: float) -> int:
    """Return the colour level of a label, from -LEVELS to LEVELS.

    Only a label of exactly 0 has level 0. Labels beyond `most` nats have the highest or the lowest level.
    """
    if not nats:
        return 0
    size = min(LEVELS, max(1, floor(abs(nats) / most * LEVELS + 0.5)))  # the page's script rounds halves up
    return size if nats > 0 else -size


def level_class(nats: float | None, most: float) -> str:
    """Return the CSS class with a label's colour (see `palette_css`); `none` for a token without a label."""
    if nats is None:
        return "none"
    signed = level(nats, most)
    return f"n{-signed}" if signed < 0 else f"p{signed}"


def palette_css() -> str:
    """Return CSS for elements in `.entropies`: the colours of the classes p1, p2, ... and n1, n2, ...

    The colours follow the reader's colour scheme, light or dark.
    """
    classes = [f".entropies .{name}{{background:var(--{name})}}" for name in _variables(LIGHT) if name[1:].isdigit()]
    light, dark = (_declared(_variables(palette)) for palette in (LIGHT, DARK))
    return f"{light}\n@media (prefers-color-scheme:dark){{{dark}}}\n" + "".join(classes)


def _variables(palette: Palette) -> dict[str, str]:
    ramps = {"p": palette.positive, "n": palette.negative}
    levels = {f"{sign}{level}": colour for sign, colours in ramps.items() for level, colour in enumerate(colours, 1)}
    return {"paper": palette.paper, "text": palette.text, **levels}


def _declared(variables: dict[str, str]) -> str:
    return ".entropies{" + "".join(f"--{name}:{colour};" for name, colour in variables.items()) + "}"
