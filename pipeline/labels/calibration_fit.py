"""Fit of a calibration: functions that map the labels of an annotated dataset to the labels of a reference dataset.

N tokens of all documents.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.data.annotated import AnnotatedDataset
from pipeline.data.corpus import fold_of
from pipeline.labels.agreement import Pair, joined, regression
from pipeline.labels.calibration import apply_fit
from schemas.calibrations import (
    MOST_FITS,
    MOST_KNOTS,
    Calibration,
    CalibrationKind,
    ColumnFit,
    DomainFit,
    Fit,
    LabelInNats,
)

HELD_OUT_FOLDS = 1000


def is_held_out(pair: Pair, share: float) -> bool:
    """True if a document belongs to the held-out share. Only the tokens of the document decide this."""
    return fold_of(pair.ids_T, HELD_OUT_FOLDS) < share * HELD_OUT_FOLDS


def digest_of(dataset: AnnotatedDataset) -> str:
    """Return a dataset's digest, computed from the digests of its shards in order."""
    return hashlib.sha256("".join(info.sha256 for info in dataset.infos).encode()).hexdigest()


def column_fit(pairs: Sequence[Pair], column: LabelInNats, kind: CalibrationKind, fewest_tokens: int) -> ColumnFit:
    """Return the fits for a column: a fit to all pairs, and a fit to each domain of at least `fewest_tokens` tokens.

    A domain has no fit of its own if its labels do not rise with the labels of the reference.

    Raises:
        ValueError: if the labels of all pairs together do not rise with the labels of the reference, or if more than
            MOST_FITS domains have a fit.
    """
    labels_N, reference_N = joined(pairs, column)
    pooled = fit_of(labels_N, reference_N, kind)
    if pooled is None:
        raise ValueError(
            f"`{column}` does not rise with the reference's in {len(labels_N):,} labelled tokens; label more documents"
        )
    by_domain = defaultdict[str, list[Pair]](list)
    for pair in pairs:
        if pair.domain is not None:
            by_domain[pair.domain].append(pair)
    domains = list[DomainFit]()
    for domain, members in sorted(by_domain.items()):
        own_N, wanted_N = joined(members, column)
        fit = fit_of(own_N, wanted_N, kind) if len(own_N) >= fewest_tokens else None
        if fit is not None:
            domains.append(DomainFit(domain=domain, fit=fit))
    if len(domains) > MOST_FITS:
        raise ValueError(
            f"{len(domains):,} domains have enough tokens, more than {MOST_FITS}; raise --fewest-tokens, or name a "
            "column of fewer values"
        )
    return ColumnFit(column=column, pooled=pooled, domains=tuple(domains))


def fit_of(labels_N: np.ndarray, reference_N: np.ndarray, kind: CalibrationKind) -> Fit | None:
    """Fit a function that maps labels to the reference's labels of the same tokens, by least squares.

    `kind` chooses a line or isotonic regression. Return None if all labels are equal, if there are fewer than two, or
    if the least-squares line does not rise.
    """
    if len(labels_N) < 2 or np.ptp(labels_N) == 0:
        return None
    slope, bias = regression(labels_N, reference_N)
    if slope <= 0:
        return None
    knots = isotonic_knots(labels_N, reference_N) if kind == "isotonic" else ((), ())
    return Fit(tokens=len(labels_N), slope=slope, bias=bias, labels=knots[0], reference=knots[1])


def isotonic_knots(labels_N: np.ndarray, reference_N: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the labels and the values at the knots of isotonic regression, at most MOST_KNOTS of each.

    If the regression has more knots, quantiles of the labels replace them. The function is linear between knots.
    """
    fitted = require_scikit_learn()().fit(labels_N, reference_N)
    at, values = fitted.X_thresholds_, fitted.y_thresholds_
    if len(at) > MOST_KNOTS:
        chosen = np.unique(np.quantile(labels_N, np.linspace(0, 1, MOST_KNOTS)))
        at, values = chosen, np.interp(chosen, at, values)
    return tuple(map(float, at)), tuple(map(float, values))


def require_scikit_learn() -> type:
    """Return scikit-learn's isotonic regression.

    Raises:
        ValueError: if scikit-learn is not installed.
    """
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError as error:
        raise ValueError(
            "isotonic calibration needs scikit-learn: pip install 'token-entropy[calibration]', or choose --kind linear"
        ) from error
    isotonic: type = IsotonicRegression
    return isotonic


def calibrated_pairs(pairs: Sequence[Pair], column: str, calibration: Calibration) -> Iterator[Pair]:
    """Yield the pairs with calibrated labels of one column.

    A document's labels in other columns are left out. The labels of the reference are unchanged.
    """
    (fitted,) = (each for each in calibration.columns if each.column == column)
    for pair, fit in zip(pairs, fitted.fits([pair.domain for pair in pairs]), strict=True):
        yield pair._replace(labels={column: apply_fit(fit, pair.labels[column])})
