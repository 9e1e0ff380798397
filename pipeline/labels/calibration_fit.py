"""Fit of a calibration: pairs of labels of the same tokens from two annotated datasets, and functions between them.

S tokens of the reference's document, T tokens of the document whose labels are calibrated, N tokens of all documents.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np
from tokenizers import Tokenizer

from pipeline.data.annotated import AnnotatedDataset, as_rows
from pipeline.data.corpus import fold_of
from pipeline.data.tokenizer import load_tokenizer
from pipeline.labels.calibration import apply_fit, domains_of, require_domains
from pipeline.labels.retokenize import encode_with_ends, move_nats
from schemas.annotations import INPUT_IDS
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
Nats = Mapping[str, np.ndarray]
"""Labels of a document by column, float32 [T]."""


class Pair(NamedTuple):
    """Document with the labels to calibrate and the reference's labels, both of the tokens `ids_T`."""

    ids_T: np.ndarray
    labels: Nats
    reference: Nats
    domain: str | None


class Paired(NamedTuple):
    """Documents that two datasets share, and the numbers of the reference's documents that have no partner."""

    pairs: list[Pair]
    columns: tuple[LabelInNats, ...]
    """Columns of labels that both datasets have."""
    absent: int
    """Documents of the reference that the other dataset lacks."""
    immovable: int
    """Documents of the reference whose labels cannot be moved to the other dataset's tokens."""


def paired(labels: AnnotatedDataset, reference: AnnotatedDataset, by: str | None) -> Paired:
    """Pair the documents of a reference with the same documents in the dataset whose labels are to be calibrated.

    Documents are the same if their tokens are, in the tokens of `labels`. The reference's labels are moved to these
    tokens. Empty documents are left out. The reference is held in memory.

    Raises:
        ValueError: if `labels` are calibrated already or lack the column `by`, if the datasets share no document, or if
            labels would have to be moved without a tokenizer.
    """
    if labels.provenance.calibration is not None:
        raise ValueError(f"{labels.source} is calibrated already; name labels that are not")
    if by is not None:
        require_domains(labels.schema, by)
    shared = {*labels.schema.names} & {*reference.schema.names}
    columns = tuple(name for name in get_args(LabelInNats) if name in shared)
    waiting, immovable = _by_tokens(labels, reference, columns)
    pairs = list[Pair]()
    names = tuple(dict.fromkeys((INPUT_IDS, *columns, *([by] if by else []))))
    for batch in labels.batches(names):
        if not waiting:
            break
        for row, domain in zip(as_rows(batch), domains_of(batch, by), strict=True):
            found = waiting.pop(row[INPUT_IDS].tobytes(), None)
            if found is not None:
                pairs.append(Pair(row[INPUT_IDS], {name: row[name] for name in columns}, found, domain))
    if not pairs:
        raise ValueError(f"{labels.source} has no document of {reference.source}; label the same documents twice")
    return Paired(pairs, columns, len(waiting), immovable)


def _by_tokens(
    labels: AnnotatedDataset, reference: AnnotatedDataset, columns: Sequence[str]
) -> tuple[dict[bytes, Nats], int]:
    """Return the reference's labels by the bytes of the token ids, and the number of documents that cannot move."""
    moves = labels.provenance.tokenizer_sha256 != reference.provenance.tokenizer_sha256
    if moves and (labels.tokenizer is None or reference.tokenizer is None):
        raise ValueError(
            f"{labels.source} and {reference.source} have different tokens, and one has no tokenizer; label with the "
            "same --tokenizer"
        )
    own = load_tokenizer(labels.tokenizer) if moves and labels.tokenizer else None
    other = load_tokenizer(reference.tokenizer) if moves and reference.tokenizer else None
    found, immovable = dict[bytes, Nats](), 0
    for batch in reference.batches((INPUT_IDS, *columns)):
        for row in as_rows(batch):
            ids_S, nats = row[INPUT_IDS], {name: row[name] for name in columns}
            if not len(ids_S):
                continue
            moved = (ids_S, nats) if own is None or other is None else _moved(ids_S, nats, other, own)
            if moved is None:
                immovable += 1
            else:
                found.setdefault(moved[0].tobytes(), moved[1])
    return found, immovable


def _moved(ids_S: np.ndarray, nats: Nats, tokenizer: Tokenizer, own: Tokenizer) -> tuple[np.ndarray, Nats] | None:
    """Return a document's tokens and labels in the tokens of `own`, or None if the bytes of its tokens are unknown."""
    text = tokenizer.decode(ids_S.tolist(), skip_special_tokens=False)
    (before,), (after,) = (encode_with_ends(each, [text]) for each in (tokenizer, own))
    if not np.array_equal(ids_S, before.ids_T):
        return None
    return after.ids_T, {name: move_nats(nats_S, before.ends_T, after.ends_T) for name, nats_S in nats.items()}


def is_held_out(pair: Pair, share: float) -> bool:
    """True for a share of all documents, which depends only on the tokens of each document."""
    return fold_of(pair.ids_T, HELD_OUT_FOLDS) < share * HELD_OUT_FOLDS


def digest_of(dataset: AnnotatedDataset) -> str:
    """Return the digest of a dataset: of the digests of its shards, in order."""
    return hashlib.sha256("".join(info.sha256 for info in dataset.infos).encode()).hexdigest()


def column_fit(pairs: Sequence[Pair], column: LabelInNats, kind: CalibrationKind, fewest_tokens: int) -> ColumnFit:
    """Return the fits for a column: one to all pairs, and one to each domain that has enough tokens.

    A domain whose labels do not rise with the reference's has no fit.

    Raises:
        ValueError: if the labels do not rise with the reference's, or too many domains have a fit.
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


def joined(pairs: Sequence[Pair], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the two labels of every token that has both, each float64 [N]."""
    labels_N, reference_N = (
        np.concatenate([np.empty(0), *(nats[column] for nats in side)])
        for side in ([pair.labels for pair in pairs], [pair.reference for pair in pairs])
    )
    both_N = ~np.isnan(labels_N) & ~np.isnan(reference_N)
    return labels_N[both_N], reference_N[both_N]


def fit_of(labels_N: np.ndarray, reference_N: np.ndarray, kind: CalibrationKind) -> Fit | None:
    """Return the function of a label that is nearest to the reference by least squares.

    Return None if the labels are all equal or the line of least squares does not rise.
    """
    if len(labels_N) < 2 or np.ptp(labels_N) == 0:
        return None
    slope, bias = line(labels_N, reference_N)
    if slope <= 0:
        return None
    knots = isotonic_knots(labels_N, reference_N) if kind == "isotonic" else ((), ())
    return Fit(tokens=len(labels_N), slope=slope, bias=bias, labels=knots[0], reference=knots[1])


def line(labels_N: np.ndarray, reference_N: np.ndarray) -> tuple[float, float]:
    """Return slope and bias of the regression of the reference on the label, by least squares."""
    centred_N, means = labels_N - labels_N.mean(), (labels_N.mean(), reference_N.mean())
    slope = float(centred_N @ (reference_N - means[1]) / (centred_N @ centred_N))
    return slope, float(means[1] - slope * means[0])


def isotonic_knots(labels_N: np.ndarray, reference_N: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return labels and values at the knots of isotonic regression, at most MOST_KNOTS.

    If there are more, the function is taken at quantiles of the labels, and is linear between them.
    """
    regression = require_scikit_learn()().fit(labels_N, reference_N)
    at, values = regression.X_thresholds_, regression.y_thresholds_
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
    regression: type = IsotonicRegression
    return regression


class ScaleAgreement(NamedTuple):
    """ScaleAgreement of labels with a reference, over the tokens of some documents."""

    tokens: int
    slope: float
    """Slope of the regression of the reference on the label: 1 if the mean reference of a label is the label."""
    bias: float
    """Bias of the same regression in nats."""
    mean_difference: float
    """Mean of label minus reference in nats."""
    mean_absolute_error: float


def agreement(pairs: Sequence[Pair], column: str, calibration: Calibration | None) -> ScaleAgreement | None:
    """Return the agreement of a column, calibrated if `calibration` is given, with the reference.

    Return None if the labels are all equal.
    """
    labels_N, reference_N = joined([*_calibrated(pairs, column, calibration)], column)
    if len(labels_N) < 2 or np.ptp(labels_N) == 0:
        return None
    difference_N = labels_N - reference_N
    means = float(difference_N.mean()), float(np.abs(difference_N).mean())
    return ScaleAgreement(len(labels_N), *line(labels_N, reference_N), *means)


def _calibrated(pairs: Sequence[Pair], column: str, calibration: Calibration | None) -> Iterator[Pair]:
    if calibration is None:
        yield from pairs
        return
    (fitted,) = (each for each in calibration.columns if each.column == column)
    for pair, fit in zip(pairs, fitted.fits([pair.domain for pair in pairs]), strict=True):
        yield pair._replace(labels={column: apply_fit(fit, pair.labels[column])})
