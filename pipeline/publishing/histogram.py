"""A histogram of entropies as text, and what can be read from it."""

from itertools import accumulate

from schemas.receipts import BIN_NATS, BINS

WIDTH = 40
LEAST_SHARE = 0.0005  # of all labels, that a line can show: 0.1%


def drawn_histogram(histogram: tuple[int, ...]) -> str:
    """A line for each bin: its lower end in nats, a bar, its share. Those after the last that shows are one line."""
    total, most = sum(histogram), max(histogram, default=0)
    if not total:
        return "no labels"
    shown = max(place for place, count in enumerate(histogram) if count / total >= LEAST_SHARE) + 1
    lines = [(_lower_end(place), count) for place, count in enumerate(histogram[:shown]) if place or count]
    if beyond := sum(histogram[shown:]):
        lines.append(("above", beyond))
    return "\n".join(
        f"{end:>9} {'█' * round(WIDTH * count / most):<{WIDTH}} {count / total:6.1%}".rstrip() for end, count in lines
    )


def median(histogram: tuple[int, ...]) -> str:
    """The median in nats, as near as the bins tell: between the ends of the one that it falls in."""
    half, place = sum(histogram) / 2, 0
    place = next((place for place, count in enumerate(accumulate(histogram)) if count >= half), 0)
    if not place:
        return "below 0" if half else "no"
    if place == BINS - 1:
        return f"above {_lower_end(place)}"
    before = sum(histogram[:place])
    return f"{(place - 1 + (half - before) / histogram[place]) * BIN_NATS:.2f}"


def _lower_end(place: int) -> str:
    return f"{(place - 1) * BIN_NATS:.1f}" if place else "below 0"
