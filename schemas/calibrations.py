"""Calibration of labels: the functions that map a labeller's labels to the scale of a reference's labels.

A calibration is fitted once (`jobs.fit_calibration`), written as JSON, and frozen into the provenance of the labels
that it was applied to.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from schemas.decoding import decoded, json_object

CalibrationKind = Literal["linear", "isotonic"]
LabelInNats = Literal["entropy", "expected_entropy"]

MOST_KNOTS = 100
MOST_FITS = 256  # domains with a fit of their own; the provenance in every shard lists them
LARGEST_VALUE = 1e6  # limit for a knot, a slope and a bias


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Non-decreasing function that maps a label to the reference's mean label.

    Every fit has a least-squares line, given by `slope` and `bias`. An isotonic fit also has knots, and applies them
    instead of the line.
    """

    tokens: int
    """Number of tokens that the function was fitted to."""
    slope: float
    bias: float
    """Nats that are added to `slope` times the label. An isotonic calibration applies the knots, not the line."""
    labels: tuple[float, ...] = ()
    """Labels at the knots of an isotonic fit, in increasing order."""
    reference: tuple[float, ...] = ()
    """Values of the function at the knots. The function is linear between knots and constant outside."""

    def require_possible(self, kind: CalibrationKind) -> None:
        """Raise if a calibration of the kind `kind` cannot contain this fit.

        Raises:
            ValueError: naming the first field with a wrong value.
        """
        numbers = (self.slope, self.bias, *self.labels, *self.reference)
        right = {
            "tokens": self.tokens > 0,
            "slope": self.slope > 0,
            "bias": max(map(abs, numbers)) <= LARGEST_VALUE,
            "labels": len(self.labels) == len(self.reference) <= MOST_KNOTS
            and (kind == "isotonic") == bool(self.labels)
            and all(low < high for low, high in zip(self.labels, self.labels[1:], strict=False)),
            "reference": all(low <= high for low, high in zip(self.reference, self.reference[1:], strict=False)),
        }
        if wrong := [name for name, fine in right.items() if not fine]:
            raise ValueError(f"the {wrong[0]} of a fit are not those of a {kind} calibration")


@dataclass(frozen=True, kw_only=True)
class DomainFit:
    """Fit for the documents of one domain. A domain is one value of the column `by` of the calibration."""

    domain: str
    fit: Fit


@dataclass(frozen=True, kw_only=True)
class ColumnFit:
    """Fits for a column of labels."""

    column: LabelInNats
    pooled: Fit
    """Fit to all domains together, for documents whose domain has no fit of its own."""
    domains: tuple[DomainFit, ...] = ()

    def fits(self, domains: Sequence[str | None]) -> list[Fit]:
        """Return a fit for each element of `domains`.

        A domain with a fit of its own gets this fit. Any other domain, and None, gets the pooled fit.
        """
        own: dict[str | None, Fit] = {each.domain: each.fit for each in self.domains}
        return [own.get(domain, self.pooled) for domain in domains]


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Settings that made the labels to calibrate. A calibration is valid only for labels of the same settings."""

    method: str
    checkpoint_sha256: str
    tokenizer_sha256: str | None
    window: int
    overlap: int
    start_token: int | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fits for the label columns of one labeller, by domain, against the labels of a reference."""

    kind: CalibrationKind
    by: str | None
    """Column of the source whose values are the domains; None for one fit for all documents."""
    columns: tuple[ColumnFit, ...]
    labelled: LabelSettings
    reference: str
    """Name of the model that made the reference's labels."""
    reference_sha256: str
    """Digest of the reference's shards."""

    def __str__(self) -> str:
        """Description in a line, with the digest of all fits."""
        domains = f" by `{self.by}`" if self.by else ""
        lines = "; ".join(_described(column) for column in self.columns)
        return f"{self.kind}{domains} against {self.reference} ({lines}; sha256 {self.sha256[:12]})"

    @property
    def sha256(self) -> str:
        """Digest of the content."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def calibrated(self) -> tuple[str, ...]:
        """Names of the label columns that are calibrated."""
        return tuple(column.column for column in self.columns)

    @property
    def fitted_domains(self) -> frozenset[str]:
        """Domains that have a fit of their own."""
        return frozenset(each.domain for column in self.columns for each in column.domains)

    def require_possible(self) -> None:
        """Raise if this calibration cannot be the result of a fit.

        Raises:
            ValueError: if the columns lack `entropy` or repeat a column; if a domain is repeated or there are too many
                domains; or if a fit is invalid. The message names the fault.
        """
        names = self.calibrated
        if "entropy" not in names or len(set(names)) < len(names):
            raise ValueError(f"a calibration fits {', '.join(names) or 'nothing'}, not entropy and others once each")
        for column in self.columns:
            domains = [each.domain for each in column.domains]
            if len(set(domains)) < len(domains) or len(domains) > (MOST_FITS if self.by else 0):
                raise ValueError(f"a calibration has {len(domains)} domains, which no run writes")
            for fit in (column.pooled, *(each.fit for each in column.domains)):
                fit.require_possible(self.kind)

    def to_json(self) -> str:
        return json.dumps({"calibration": asdict(self), "sha256": self.sha256}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Parse the output of `to_json`.

        Raises:
            ValueError: if `text` is not a calibration, or was changed after it was written.
        """
        written = decoded(_Written, json_object(text))
        written.calibration.require_possible()
        if written.calibration.sha256 != written.sha256:
            raise ValueError("its sha256 is not that of its content")
        return written.calibration


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A calibration's JSON."""

    calibration: Calibration
    sha256: str


def _described(column: ColumnFit) -> str:
    fit = column.pooled
    domains = f", {len(column.domains)} domains" if column.domains else ""
    return f"{column.column}: slope {fit.slope:.3f}, bias {fit.bias:.3f} nats{domains}"
