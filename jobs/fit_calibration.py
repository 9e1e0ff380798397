"""Fit a calibration: functions that map labels to the scale of a better labeller's labels, which are the reference.

The job needs two annotated datasets that share documents: one with the labels to calibrate, and one with the
reference's labels of a sample. If their tokenizers differ, the reference's labels are first transferred to the tokens
of the labels to calibrate. Documents with equal tokens are then paired. Some documents are held out of the fit. For
these documents, the agreement with the reference is printed before and after calibration.
`pipeline.annotate --calibration FILE` applies the calibration.
"""

from dataclasses import dataclass
from pathlib import Path

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.data.annotated import AnnotatedDataset, find_annotations
from pipeline.data.atomic import write_text
from pipeline.labels.agreement import HEADER, LEGEND, Pair, Paired, agreement, paired
from pipeline.labels.calibration import labelled_with
from pipeline.labels.calibration_fit import (
    calibrated_pairs,
    column_fit,
    digest_of,
    is_held_out,
    require_scikit_learn,
)
from pipeline.messages import say
from pipeline.progress import stage
from schemas.calibrations import Calibration, CalibrationKind


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the fit: two datasets, the form of the functions, and output."""

    labels: str
    """Annotated dataset with the labels to calibrate: a folder, or hf://datasets/USER/NAME. No calibration may have
    been applied to these labels."""
    reference: str
    """Annotated dataset of the better labeller, the reference: a folder, or hf://datasets/USER/NAME. It must share
    documents with --labels, and a few hundred shared documents suffice."""
    output: Path
    """File to write the calibration to, as JSON."""
    by: str | None = None
    """Column of --labels, for example a language or a site. Each of its values gets a fit of its own. By default, one
    fit serves all documents."""
    kind: CalibrationKind = "linear"
    """Form of a fit. linear: slope and bias, by least squares. isotonic: a non-decreasing function with at most 100
    knots, constant outside them."""
    fewest_tokens: int = 5000
    """Smallest number of labelled tokens for which a value of --by gets a fit of its own. Other documents get the
    pooled fit, which is the fit to all documents."""
    held_out: float = 0.2
    """Share of the documents to hold out. The calibration is measured on these documents, and is not fitted to them."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "fewest_tokens")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"--held-out must be at least 0 and below 1, not {self.held_out}")
        if self.output.exists():
            raise ValueError(f"--output {self.output} is there already; delete it or choose another file")


def fit_calibration(config: Config) -> None:
    """Fit a calibration to two annotated datasets of the same documents, and write it as JSON."""
    if config.kind == "isotonic":
        require_scikit_learn()
    with stage("finding the datasets"):
        labels, reference = find_annotations(config.labels), find_annotations(config.reference)
    if labels.provenance.calibration is not None:
        raise ValueError(f"{labels.source} is calibrated already; name labels that are not")
    with stage("pairing the documents"):
        found = paired(labels, reference, config.by)
    held_out = [pair for pair in found.pairs if is_held_out(pair, config.held_out)]
    fitted = [pair for pair in found.pairs if not is_held_out(pair, config.held_out)]
    with stage("fitting"):
        calibration = calibration_of(fitted, found, labels, reference, config)
    print_documents(found, len(fitted), calibration)
    print_agreement(held_out, calibration)
    write_text(config.output, calibration.to_json())
    say("", f"python -m pipeline.annotate --calibration {config.output} applies it")


def calibration_of(
    pairs: list[Pair], found: Paired, labels: AnnotatedDataset, reference: AnnotatedDataset, config: Config
) -> Calibration:
    """Return the calibration that is fitted to `pairs`."""
    return Calibration(
        kind=config.kind,
        by=config.by,
        columns=tuple(column_fit(pairs, name, config.kind, config.fewest_tokens) for name in found.columns),
        labelled=labelled_with(labels.provenance),
        reference=reference.provenance.model,
        reference_sha256=digest_of(reference),
    )


def print_documents(found: Paired, fitted: int, calibration: Calibration) -> None:
    """Print the number of documents, the number of domains, and the fits.

    `fitted` is the number of documents that were used for the fits.
    """
    say(f"documents      {fitted:,} for the fit, {len(found.pairs) - fitted:,} held out{found.left_out}")
    if calibration.by is not None:
        own, domains = calibration.fitted_domains, {pair.domain for pair in found.pairs}
        say(f"domains        {len(own):,} with a fit of their own, {len(domains - own):,} with the pooled fit")
    say(f"calibration    {calibration}")


def print_agreement(pairs: list[Pair], calibration: Calibration) -> None:
    """Print the agreement of each column with the reference, before and after calibration."""
    say("", f"{'held-out documents':28}{HEADER}")
    for column in calibration.calibrated:
        for when, those in (("before", pairs), ("after", [*calibrated_pairs(pairs, column, calibration)])):
            found = agreement(those, column)
            say(f"{f'{column}, {when}':28}{found or '  no labels that differ'}")
    say(*LEGEND)


if __name__ == "__main__":
    run(fit_calibration, "jobs.fit_calibration", resumes=False)
