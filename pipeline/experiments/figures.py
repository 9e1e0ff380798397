"""Five figures of the paper: the models to train for each, the paper's claims, and the files with the results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pipeline.experiments.results import markdown_table, write_csv

Row = Mapping[str, str | float]
Rows = Mapping[str, Sequence[Row]]
"""Rows of results, by the name of the trial. Each row has the results of one evaluation. In a figure with `by_layer`,
each row has the result of rounding the weights or the activations of one layer."""


@dataclass(frozen=True, kw_only=True)
class FigureSizes:
    """Sizes of every model in a figure."""

    context: int = 64
    """Longest window, in tokens."""
    encoder_width: int = 128
    """Hidden size of the encoder."""
    encoder_layers: int = 2
    """Number of blocks of the encoder."""
    encoder_heads: int = 4
    """Number of attention heads of the encoder."""
    decoder_width: int = 128
    """Hidden size of the decoder, or of the language model."""
    decoder_layers: int = 3
    """Number of blocks of the decoder, or of the language model."""
    decoder_heads: int = 4
    """Number of attention heads of the decoder, or of the language model."""


@dataclass(frozen=True)
class FigureTrial:
    """A model to train for a figure. `variant` overrides fields of the model's configuration.

    For a causal model, `variant` can only contain `kind`.
    """

    name: str
    model: Literal["causal", "estimator", "autoencoder"]
    variant: dict[str, Any] = field(default_factory=dict)
    paced_by: "FigureTrial | None" = None
    """Trial whose number of steps is used for this trial. If None, all trials of the figure get equal compute."""

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Claim:
    """A result that the paper reports, and whether the trials of the figure show the same result."""

    text: str
    seen: bool
    figures: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the paper, with models small enough for two CPU cores."""

    title: str
    trials: tuple[FigureTrial, ...]
    sizes: FigureSizes
    vocabulary: int
    steps: int
    """Training steps of a causal transformer of these sizes. Other models get the same compute."""
    shown: str = "held_out_loss"
    """Name of the metric that is plotted."""
    claims: Callable[[Rows], list[Claim]]
    by_layer: bool = False
    """Plot the cost of rounding each layer instead of training curves."""


def last(rows: Rows, trial: str, name: str) -> float:
    """Return the value of a metric in the trial's last evaluation."""
    return float(rows[trial][-1][name])


def below(rows: Rows, one: str, other: str, name: str, text: str) -> Claim:
    """Return the claim that a metric is lower at the end of trial `one` than at the end of trial `other`."""
    ends = last(rows, one, name), last(rows, other, name)
    return Claim(text, ends[0] < ends[1], f"{ends[0]:.3f} against {ends[1]:.3f}")


def _autoencoder_claims(rows: Rows) -> list[Claim]:
    unrolled, repeated, mixer, loss = "transformer-unrolled", "transformer-repeated", "mixer-repeated", "held_out_loss"
    return [
        below(rows, unrolled, repeated, loss, "a transformer regenerates text better from unrolled embeddings"),
        below(rows, mixer, repeated, loss, "a mixer regenerates text better from repeated embeddings"),
    ]


def _compression_claims(rows: Rows) -> list[Claim]:
    """Return the claims of figure 2.

    Only the order of the models' losses is compared with the paper, whose models are trained for far longer.
    """
    loss, text = "normalized_loss", "embedding included, a mixer autoencoder stores text in fewer bits than a causal {}"
    return [
        below(rows, "autoencoder-mixer-repeated", f"causal-{kind}", loss, text.format(kind))
        for kind in ("transformer", "mixer")
    ]


def _introduction_claims(rows: Rows) -> list[Claim]:
    text = "the embedding helps: introduced by {}, the loss without its cost is below that of a causal model with {}"
    return [
        below(rows, name, other, "held_out_loss", text.format(name, alike))
        for other, alike in (("causal-as-many-tokens", "as many tokens"), ("causal", "the same compute"))
        for name in ("token", "embedding", "projection")
    ]


def _scaling_claims(rows: Rows) -> list[Claim]:
    def gap(index: int) -> float:
        return float(rows["estimator"][index]["normalized_loss"]) - float(rows["causal"][index]["normalized_loss"])

    without = "the estimator's loss, without its embedding's cost, is below that of a causal model with {}"
    return [
        below(rows, "estimator", "causal-as-many-tokens", "held_out_loss", without.format("as many tokens")),
        below(rows, "estimator", "causal", "held_out_loss", without.format("the same compute")),
        below(rows, "estimator", "causal", "normalized_loss", "the same with the embedding's cost"),
        Claim(
            "the estimator gains on the causal model",
            gap(-1) < gap(0),
            f"{gap(0):+.3f} at first, {gap(-1):+.3f} at last",
        ),
    ]


def _noise_claims(rows: Rows) -> list[Claim]:
    def total(noise: str, what: str) -> float:
        return sum(
            abs(float(row["loss_change"]))
            for row in rows[noise]
            if row["what"] == what and row["kind"] == "float8_e5m2"
        )

    return [
        Claim(
            f"noise at `{place}` makes the {what} of all layers tolerate float8 (e5m2)",
            total(place, what) < total("none", what),
            f"summed changes {total(place, what):.3f} against {total('none', what):.3f}",
        )
        for place, what in product(("bottleneck", "before-down"), ("embedding", "weights", "activations"))
    ]


AUTOENCODER = FigureSizes(
    context=16, encoder_width=64, encoder_layers=2, encoder_heads=4, decoder_width=64, decoder_layers=2, decoder_heads=4
)
ESTIMATOR = FigureSizes(
    context=64, encoder_width=64, encoder_layers=2, encoder_heads=4, decoder_width=96, decoder_layers=3, decoder_heads=4
)
CAUSAL = FigureTrial("causal", "causal")
NOISY = FigureTrial("estimator", "estimator", {"noise": 0.0625})
PROJECTION = FigureTrial("projection", "estimator", {"introduction": "projection"})


def _autoencoder(kind: str, given: str, name: str, **variant: object) -> FigureTrial:
    return FigureTrial(name, "autoencoder", {"encoder_kind": kind, "decoder_kind": kind, "given": given, **variant})


FIGURES = {
    1: Figure(
        title="Autoencoders: the embedding repeated or unrolled",
        trials=tuple(
            _autoencoder(kind, given, f"{kind}-{given}", bottleneck_width=None)
            for kind, given in product(("transformer", "mixer"), ("repeated", "unrolled"))
        ),
        sizes=AUTOENCODER,
        vocabulary=512,
        steps=5000,
        claims=_autoencoder_claims,
    ),
    2: Figure(
        title="Compressive autoencoders and causal language models",
        trials=(
            *(
                _autoencoder(kind, given, f"autoencoder-{kind}-{given}", bottleneck_width=16, noise=0.0625)
                for kind, given in (("transformer", "unrolled"), ("mixer", "repeated"))
            ),
            *(FigureTrial(f"causal-{kind}", "causal", {"kind": kind}) for kind in ("transformer", "mixer")),
        ),
        sizes=AUTOENCODER,
        vocabulary=512,
        steps=5000,
        shown="normalized_loss",
        claims=_compression_claims,
    ),
    3: Figure(
        title="How the embedding enters the decoder",
        trials=(
            CAUSAL,
            FigureTrial("causal-as-many-tokens", "causal", paced_by=PROJECTION),
            *(FigureTrial(name, "estimator", {"introduction": name}) for name in ("token", "embedding")),
            PROJECTION,
            FigureTrial(
                "logits", "estimator", {"introduction": "projection", "introduced_above": ESTIMATOR.decoder_layers}
            ),
        ),
        sizes=ESTIMATOR,
        vocabulary=1024,
        steps=3000,
        claims=_introduction_claims,
    ),
    4: Figure(
        title="Normalized loss by tokens: an estimator and a causal language model",
        trials=(CAUSAL, FigureTrial("causal-as-many-tokens", "causal", paced_by=NOISY), NOISY),
        sizes=ESTIMATOR,
        vocabulary=1024,
        steps=7000,
        shown="normalized_loss",
        claims=_scaling_claims,
    ),
    5: Figure(
        title="Cost of rounding one layer, by the noise in training",
        trials=(
            _autoencoder("mixer", "repeated", "none", bottleneck_width=16),
            *(
                _autoencoder("mixer", "repeated", place, bottleneck_width=16, noise=0.125, noise_place=place)
                for place in ("bottleneck", "before-down")
            ),
        ),
        sizes=AUTOENCODER,
        vocabulary=512,
        steps=5000,
        claims=_noise_claims,
        by_layer=True,
    ),
}

LABELS = {
    "held_out_loss": "held-out loss, nats per token",
    "normalized_loss": "held-out loss, nats per token, with the embedding's int8 bits (dashed: without)",
}


def write_figure(folder: Path, number: int, figure: Figure, rows: Rows) -> str:
    """Write `figure-N.csv`, `figure-N.png` and `figure-N.md`, and return the text of `figure-N.md`."""
    lines = [{"trial": trial, **row} for trial, trial_rows in rows.items() for row in trial_rows]
    write_csv(folder / f"figure-{number}.csv", lines)
    write_plot(folder / f"figure-{number}.png", figure, rows)
    claims = [[claim.text, "yes" if claim.seen else "no", claim.figures] for claim in figure.claims(rows)]
    report = f"{figure.title}\n\n{markdown_table(['reported', 'seen here', 'figures'], claims)}"
    (folder / f"figure-{number}.md").write_text(report, encoding="utf-8")
    return report


def write_plot(file: Path, figure: Figure, rows: Rows) -> None:
    """Plot the loss against training tokens, or the change of the loss against the rounded layer, to a PNG file."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(14, 8) if figure.by_layer else (8, 5), layout="constrained")
    canvas.suptitle(figure.title)
    draw = _draw_layers if figure.by_layer else _draw_curves
    draw(canvas, figure, rows)
    canvas.savefig(file, dpi=110)


def _draw_curves(canvas: Any, figure: Figure, rows: Rows) -> None:
    """Draw a curve of the figure's metric per trial.

    If the metric includes the bits of the embeddings, a dashed curve shows the loss without these bits.
    """
    panel = canvas.subplots()
    for number, (trial, curve) in enumerate(rows.items()):
        tokens, losses = [row["tokens"] for row in curve], [row[figure.shown] for row in curve]
        panel.plot(tokens, losses, f"C{number}", marker="o", markersize=3, linewidth=1.4, label=trial)
        if figure.shown == "normalized_loss":
            panel.plot(tokens, [row["held_out_loss"] for row in curve], f"C{number}--", linewidth=1)
    panel.set_xlabel("tokens trained on")
    panel.set_xscale("log")
    panel.set_ylabel(LABELS[figure.shown])
    panel.legend()


def _draw_layers(canvas: Any, figure: Figure, rows: Rows) -> None:
    panels = canvas.subplots(2, 1, sharex=False)
    for panel, what in zip(panels, ("weights", "activations"), strict=True):
        for trial, changes in rows.items():
            shown = [row for row in changes if row["what"] in (what, "embedding") and row["kind"] == "float8_e5m2"]
            layers = [str(row["layer"]) for row in shown]
            panel.plot(layers, [row["loss_change"] for row in shown], marker="o", markersize=3, label=f"noise: {trial}")
        panel.tick_params(axis="x", rotation=90, labelsize=6)
        panel.set_ylabel(f"loss change, nats,\n{what} in e5m2")
        panel.legend()
