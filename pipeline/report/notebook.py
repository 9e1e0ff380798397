"""Display of one document in a notebook: self-contained HTML, with the tokens shaded by entropy.

    from pipeline.report.notebook import show
    show(dataset[0], tokenizer)     # a row of load_dataset(...), a tokenizer of tokenizers or transformers

The HTML needs no script. The labels of a token are in the token's tooltip.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.messages import visible
from pipeline.report.palette import LEVELS, level_class, palette_css
from pipeline.report.tokens import TokenTexts
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, INPUT_IDS

ASSETS = Path(__file__).parent / "assets"
PART = "part of a character"
SHARE_ON_SCALE = 0.99
MARKS = {"\n": '<i class="line">\n</i>', " ": '<i class="space"> </i>'}


@dataclass(frozen=True)
class DocumentView:
    """First tokens of a document, as texts, with their entropies and expected entropies in nats.

    An entropy is None for a token without a label. `expected` is None for labels without expected entropies.
    """

    tokens: Sequence[str]
    entropies: Sequence[float | None]
    expected: Sequence[float | None] | None = None
    left: int = 0
    """Number of the document's remaining tokens, which come after `tokens`."""

    def __post_init__(self) -> None:
        for labels in (self.entropies, self.expected):
            if labels is not None and len(labels) != len(self.tokens):
                raise ValueError(f"{len(labels)} labels for {len(self.tokens)} tokens; give one for each")

    @property
    def most(self) -> float:
        """End of the colour scale in whole nats. At most one label in a hundred lies beyond the end."""
        sizes = [abs(nats) for nats in self.entropies if nats is not None]
        return max(1, math.ceil(np.quantile(sizes, SHARE_ON_SCALE))) if sizes else 1

    @property
    def bits_so_far(self) -> Iterator[float]:
        """Running sum of the entropies, in bits, up to and including each token."""
        nats = 0.0
        for entropy in self.entropies:
            nats += entropy or 0
            yield nats / math.log(2)

    def tooltips(self) -> Iterator[str]:
        """Yield the tooltip of each token: lines with its text, its labels, and the document's bits so far."""
        expected = self.expected or [None] * len(self.tokens)
        for token, entropy, expectation, bits in zip(
            self.tokens, self.entropies, expected, self.bits_so_far, strict=True
        ):
            yield "\n".join(
                [
                    repr(token) if token else PART,
                    "no label" if entropy is None else f"entropy {amount(entropy)}",
                    *([] if expectation is None else [f"expected {amount(expectation)}"]),
                    f"{bits:,.1f} bits of the document so far",
                ]
            )

    def _repr_html_(self) -> str:
        most = self.most
        tokens = "".join(
            _token_html(token, level_class(nats, most), tooltip)
            for token, nats, tooltip in zip(self.tokens, self.entropies, self.tooltips(), strict=True)
        )
        style = f"<style>{palette_css()}{(ASSETS / 'tokens.css').read_text(encoding='utf-8')}</style>"
        return (
            f'<div class="entropies" style="padding:.75rem 1rem">{style}{_scale_html(self.entropies, most)}'
            f'<div class="document" dir="auto">{tokens}</div></div>'
        )


def show(row: Mapping[str, Any], tokenizer: Any = None) -> DocumentView:
    """Return a view of one document, given as a row of an annotated dataset. A notebook displays the view.

    Args:
        row: row with `input_ids` and `entropy`, as load_dataset returns it.
        tokenizer: a tokenizer of `tokenizers`, or a fast tokenizer of `transformers`. If None, token ids are shown.

    Raises:
        ValueError: if the row has no tokens or labels, or if the tokenizer is of another type.
    """
    if missing := [name for name in (INPUT_IDS, ENTROPY) if name not in row]:
        raise ValueError(f"the row has no {' and no '.join(missing)}; give one of an annotated dataset")
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(inner, Tokenizer | None):
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer; give a tokenizers.Tokenizer")
    expected = row.get(EXPECTED_ENTROPY)
    return DocumentView(
        TokenTexts(inner).of([int(token) for token in row[INPUT_IDS]]),
        labels_or_none(row[ENTROPY]),
        None if expected is None else labels_or_none(expected),
    )


def labels_or_none(labels: Sequence[float | None]) -> list[float | None]:
    """Return the labels, with None instead of NaN for tokens without a label."""
    return [None if nats is None or math.isnan(nats) else float(nats) for nats in labels]


def amount(nats: float) -> str:
    """Return the text for an amount of information, in nats and then in bits."""
    return f"{nats:.2f} nats, {nats / math.log(2):.2f} bits".replace("-", "−")


def _token_html(token: str, shade: str, tooltip: str) -> str:
    """Return a token's HTML. A space before a word is not shaded, because it could end a line as a speck of colour."""
    if token[:1] == " " and token[1:2].strip():
        return f'<span class="t" title="{escape(tooltip)}"> <b class="{shade}">{_marked(token[1:])}</b></span>'
    part = "" if token else " part"
    return f'<span class="t {shade}{part}" title="{escape(tooltip)}">{_marked(token)}</span>'


def _marked(text: str) -> str:
    """Return a text's HTML with marks at line ends, and at the spaces of a token that has only whitespace.

    The marks are not copied when a reader copies the text.
    """
    marks = MARKS if not text.strip() else {"\n": MARKS["\n"]}
    return "".join(marks.get(character) or escape(visible(character, keep="\t")) for character in text)


def _scale_html(entropies: Sequence[float | None], most: float) -> str:
    lowest = min((nats for nats in entropies if nats is not None), default=0)
    below = [f'<i class="n{level}"></i>' for level in range(LEVELS, 0, -1)] if lowest < 0 else []
    above = [f'<i class="p{level}"></i>' for level in range(LEVELS + 1)]
    ends = (amount(-most) if below else "0", amount(most))
    ramp = "".join([*below, *above])
    return (
        f'<div class="scale"><span>{ends[0]}</span><span class="ramp">{ramp}</span><span>{ends[1]}</span>'
        '<span class="t none">no label</span></div>'
    )
