"""Handmade calibrations of the labels that `tests.builders.PROVENANCE` describes."""

from collections.abc import Mapping

from pipeline.labels.calibration import labelled_with
from schemas.calibrations import Calibration, CalibrationKind, ColumnFit, DomainFit, Fit
from tests.builders import PROVENANCE

LINEAR = Fit(tokens=100, slope=0.5, bias=0.25)
NO_DOMAINS: Mapping[str, Fit] = {}


def calibration(
    *, pooled: Fit, by: str | None = None, domains: Mapping[str, Fit] = NO_DOMAINS, kind: CalibrationKind = "linear"
) -> Calibration:
    """Return a calibration of `entropy`."""
    own = tuple(DomainFit(domain=domain, fit=fit) for domain, fit in domains.items())
    return Calibration(
        kind=kind,
        by=by,
        columns=(ColumnFit(column="entropy", pooled=pooled, domains=own),),
        labelled=labelled_with(PROVENANCE),
        reference="a-larger-model",
        reference_sha256="r" * 64,
    )
