"""Text is readable on every colour, and colours differ in lightness, which people with colour blindness can see."""

from itertools import pairwise

import pytest

from pipeline.report.palette import DARK, LEVELS, LIGHT, Palette, level, level_class, palette_css


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as defined by the web's rule for contrast (WCAG)."""
    channels = [byte / 255 for byte in bytes.fromhex(colour[1:])]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_text_has_the_contrast_that_the_web_asks_for_on_every_colour(palette: Palette) -> None:
    for colour in (palette.paper, *palette.positive, *palette.negative):
        dark, light = sorted([luminance(colour), luminance(palette.text)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_every_ramp_goes_one_way_in_lightness_from_the_paper_on(palette: Palette) -> None:
    for ramp in (palette.positive, palette.negative):
        lightness = [*map(luminance, (palette.paper, *ramp))]
        steps = [after - before for before, after in pairwise(lightness)]
        assert len(ramp) == LEVELS and (all(step < 0 for step in steps) or all(step > 0 for step in steps))


def test_zero_small_large_negative_and_missing_labels_look_different() -> None:
    assert [level_class(nats, 8) for nats in (0, 1e-6, 4, 8, 99, -1e-6, -8, None)] == [
        *("p0", "p1", "p8", "p16", "p16", "n1", "n16", "none")
    ]
    places = [level(nats / 10, 8) for nats in range(-100, 101)]
    assert places == sorted(places) and {abs(place) for place in places} == {*range(LEVELS + 1)}


def test_the_styles_have_a_rule_for_every_level_in_both_schemes() -> None:
    css = palette_css()
    for sign in "pn":
        for place in range(1, LEVELS + 1):
            assert css.count(f"--{sign}{place}:") == 2 and f".{sign}{place}{{" in css
