"""The colours of entropies: two ramps from the paper's colour, as hexadecimal sRGB, for light and for dark paper.

Positive labels are orange, negative ones blue, which the common colour blindnesses keep apart; both ramps go one way in
lightness. They end where the text on them would no longer be readable.
"""

from dataclasses import dataclass
from math import floor

import numpy as np

LEVELS = 16


@dataclass(frozen=True)
class Palette:
    """Colours of the levels 1 to LEVELS; level 0 is the paper."""

    paper: str
    text: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def ramp(*anchors: str) -> tuple[str, ...]:
    """LEVELS colours from the first anchor to the last, the others at equal distances between them."""
    channels_A3 = np.array([[*bytes.fromhex(anchor[1:])] for anchor in anchors])
    at_L = np.linspace(0, len(anchors) - 1, LEVELS)
    channels_L3 = np.stack([np.interp(at_L, range(len(anchors)), channel_A) for channel_A in channels_A3.T], axis=1)
    return tuple("#" + bytes(np.round(channels_3).astype(np.uint8)).hex() for channels_3 in channels_L3)


LIGHT = Palette("#fdfcf9", "#211f1c", ramp("#fdf3e2", "#f9c98c", "#dd6f4f"), ramp("#edf3fa", "#aecbe9", "#6295d2"))
DARK = Palette("#17181b", "#ebe8e3", ramp("#261f1a", "#6a3d20", "#a8492d"), ramp("#1a222d", "#28486d", "#2c68ad"))


def level(nats: float, most: float) -> int:
    """From -LEVELS to LEVELS; only 0 itself is level 0, and labels beyond `most` nats are at the ends."""
    if not nats:
        return 0
    size = min(LEVELS, max(1, floor(abs(nats) / most * LEVELS + 0.5)))  # the page's script rounds halves up
    return size if nats > 0 else -size


def level_class(nats: float | None, most: float) -> str:
    """The class that `palette_css` colours; `none` for a token without a label."""
    if nats is None:
        return "none"
    signed = level(nats, most)
    return f"n{-signed}" if signed < 0 else f"p{signed}"


def palette_css() -> str:
    """Colours of the classes p1, p2, ... and n1, n2, ... below `.entropies`, following the reader's colour scheme."""
    classes = [f".entropies .{name}{{background:var(--{name})}}" for name in _variables(LIGHT) if name[1:].isdigit()]
    light, dark = (_declared(_variables(palette)) for palette in (LIGHT, DARK))
    return f"{light}\n@media (prefers-color-scheme:dark){{{dark}}}\n" + "".join(classes)


def _variables(palette: Palette) -> dict[str, str]:
    ramps = {"p": palette.positive, "n": palette.negative}
    levels = {f"{sign}{level}": colour for sign, colours in ramps.items() for level, colour in enumerate(colours, 1)}
    return {"paper": palette.paper, "text": palette.text, **levels}


def _declared(variables: dict[str, str]) -> str:
    return ".entropies{" + "".join(f"--{name}:{colour};" for name, colour in variables.items()) + "}"
