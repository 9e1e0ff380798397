"""Agreement of two annotated datasets: the labels of the same tokens, paired, and figures of how they agree.

S tokens of the reference's document, T tokens of the other dataset's document, N tokens of all documents.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np
from tokenizers import Tokenizer

from pipeline.data.annotated import AnnotatedDataset, as_rows
from pipeline.data.tokenizer import load_tokenizer
from pipeline.labels.calibration import domains_of, require_domains
from pipeline.labels.retokenize import encode_with_ends, move_nats
from schemas.annotations import INPUT_IDS
from schemas.calibrations import LabelInNats

Nats = Mapping[str, np.ndarray]
"""Labels of a document by column, float32 [T]."""


class Pair(NamedTuple):
    """Document with its labels and the reference's labels, both of the tokens `ids_T`."""

    ids_T: np.ndarray
    labels: Nats
    reference: Nats
    domain: str | None
    """Value of the column that documents are grouped by, or None."""


class Paired(NamedTuple):
    """Documents that a dataset and the reference share, and counts of the reference's documents without a partner.

    The partner of a document is the same document in the other dataset.
    """

    pairs: list[Pair]
    columns: tuple[LabelInNats, ...]
    """Columns of labels that both datasets have."""
    absent: int
    """Number of the reference's documents that the other dataset lacks."""
    immovable: int
    """Number of the reference's documents whose labels cannot be transferred to the other dataset's tokens."""

    @property
    def left_out(self) -> str:
        """Counts of the reference's documents without a partner, as text; empty if all documents have a partner."""
        absent = f", {self.absent:,} of the reference are not among the labels" if self.absent else ""
        return absent + (f", {self.immovable:,} of the reference cannot move to the tokens" if self.immovable else "")


def paired(labels: AnnotatedDataset, reference: AnnotatedDataset, by: str | None) -> Paired:
    """Pair the documents of a reference with the same documents in another annotated dataset.

    If the tokenizers differ, the reference's documents and labels are first transferred to the tokens of `labels`. Two
    documents with equal tokens are then taken for the same document. Empty documents are left out. The reference is
    held in memory.

    Raises:
        ValueError: if `labels` lack the column `by`, if the datasets share no document, or if labels must be
            transferred and a tokenizer is missing.
    """
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
    """Return the reference's labels by document, and the number of documents whose labels cannot be transferred.

    The reference's labels are transferred to the tokens of `labels`. The key of a document is the bytes of its token
    ids after the transfer.
    """
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
    """Transfer a document from the tokens of `tokenizer` to the tokens of `own`, and return its new ids and labels.

    Return None if `tokenizer` encodes the decoded text to other ids than `ids_S`. The bytes of each token are then
    unknown.
    """
    text = tokenizer.decode(ids_S.tolist(), skip_special_tokens=False)
    (before,), (after,) = (encode_with_ends(each, [text]) for each in (tokenizer, own))
    if not np.array_equal(ids_S, before.ids_T):
        return None
    return after.ids_T, {name: move_nats(nats_S, before.ends_T, after.ends_T) for name, nats_S in nats.items()}


def joined(pairs: Sequence[Pair], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and the reference's labels of all tokens that have both, float64 [N] each."""
    labels_N, reference_N = (
        np.concatenate([np.empty(0), *(nats[column] for nats in side)])
        for side in ([pair.labels for pair in pairs], [pair.reference for pair in pairs])
    )
    both_N = ~np.isnan(labels_N) & ~np.isnan(reference_N)
    return labels_N[both_N], reference_N[both_N]


HEADER = f"{'tokens':>12}{'R²':>8}{'slope':>8}{'bias':>8}{'difference':>12}{'absolute':>10}"
LEGEND = (
    "R²: of the label as an estimate of the reference; slope and bias in nats: regression of the reference on it;",
    "difference: mean of label - reference; absolute: mean of its absolute value",
)


class LabelAgreement(NamedTuple):
    """Agreement of labels with a reference, over the tokens of some documents.

    `str` gives the figures as a row below `HEADER`.
    """

    tokens: int
    r_squared: float
    """1 - mean squared error / variance of the reference: 1 if all labels equal the reference's, 0 if they fit no
    better than the reference's mean. NaN if the reference is constant."""
    slope: float
    """Slope of the least-squares line from label to reference label. It is below 1 if labels are spread too widely."""
    bias: float
    """Intercept, in nats, of the least-squares line from label to reference label."""
    mean_difference: float
    """Mean of label minus reference in nats."""
    mean_absolute_error: float

    def __str__(self) -> str:
        scale = f"{self.tokens:>12,}{self.r_squared:>8.3f}{self.slope:>8.3f}{self.bias:>8.3f}"
        return f"{scale}{self.mean_difference:>12.3f}{self.mean_absolute_error:>10.3f}"


def agreement(pairs: Sequence[Pair], column: str) -> LabelAgreement | None:
    """Return the agreement of a column of labels with the same column of the reference.

    Return None if all labels are equal, or if fewer than two tokens have a label in both datasets.
    """
    labels_N, reference_N = joined(pairs, column)
    if len(labels_N) < 2 or np.ptp(labels_N) == 0:
        return None
    difference_N = labels_N - reference_N
    means = float(difference_N.mean()), float(np.abs(difference_N).mean())
    variance = float(reference_N.var())
    explained = 1 - float(np.square(difference_N).mean()) / variance if variance > 0 else float("nan")
    return LabelAgreement(len(labels_N), explained, *regression(labels_N, reference_N), *means)


def regression(labels_N: np.ndarray, reference_N: np.ndarray) -> tuple[float, float]:
    """Return slope and bias of the least-squares line from labels to the reference's labels."""
    centred_N, means = labels_N - labels_N.mean(), (labels_N.mean(), reference_N.mean())
    slope = float(centred_N @ (reference_N - means[1]) / (centred_N @ centred_N))
    return slope, float(means[1] - slope * means[0])
