"""A figure's CSV, plot, and what it shows in words."""

from pathlib import Path
from typing import Any

from pipeline.experiments.figures import Figure, Rows
from pipeline.experiments.tables import write_csv

LABELS = {
    "held_out_loss": "held-out loss, nats a token",
    "normalized_loss": "held-out loss, nats a token, with the embedding's int8 bits (dashed: without)",
}


def write_figure(folder: Path, number: int, figure: Figure, rows: Rows) -> str:
    """Writes `figure-N.csv`, `.png` and `.md`, and returns what the last says."""
    lines = [{"trial": trial, **row} for trial, trial_rows in rows.items() for row in trial_rows]
    write_csv(folder / f"figure-{number}.csv", lines)
    write_plot(folder / f"figure-{number}.png", figure, rows)
    report = f"{figure.title}\n\n| reported | seen here | figures |\n|---|---|---|\n" + "".join(
        f"| {claim.text} | {'yes' if claim.seen else 'no'} | {claim.figures} |\n" for claim in figure.claims(rows)
    )
    (folder / f"figure-{number}.md").write_text(report, encoding="utf-8")
    return report


def write_plot(file: Path, figure: Figure, rows: Rows) -> None:
    """Curves over tokens, or bars by layer."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(14, 8) if figure.by_layer else (8, 5), layout="constrained")
    canvas.suptitle(figure.title)
    draw = _draw_layers if figure.by_layer else _draw_curves
    draw(canvas, figure, rows)
    canvas.savefig(file, dpi=110)


def _draw_curves(canvas: Any, figure: Figure, rows: Rows) -> None:
    """What the figure compares; where that counts the embedding's bits, the loss without them too, dashed."""
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
