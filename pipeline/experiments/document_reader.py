"""Reader of annotated documents: a causal language model's losses of their tokens, compared with their labels.

A document is read in the same way as when a causal model labels it. The start token is read first. A document that
exceeds the context is read in windows that overlap by half. With the packed windows of training, the memorised nats
would be underestimated. In packed windows, losses depend on the preceding documents, and the first tokens after a cut
have hardly any context.

T tokens of a document.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from tqdm import tqdm

from pipeline.data.annotated import AnnotatedDataset, as_rows
from pipeline.data.corpus import Corpus
from pipeline.data.tokenizer import id_count, load_tokenizer
from pipeline.data.windows import gather, window_batches
from pipeline.experiments.memorisation import Audit, AuditedDocument, Comparison
from pipeline.labels.calibration import domains_of
from pipeline.labels.retokenize import retokenized
from pipeline.labels.torch_labeller import DeviceError, TorchLabeller, causal_labeller, device_here
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import declared_start, load_causal
from schemas.annotations import ENTROPY, INPUT_IDS
from schemas.rows import ID_COLUMN

DIGEST_BYTES = 12


@dataclass(frozen=True)
class DocumentReader:
    """A causal language model on a device, which reads documents in windows of at most `window` tokens."""

    checkpoint: Checkpoint
    labeller: TorchLabeller
    window: int | None
    """Maximum number of tokens in a window; None if the model has no limit and reads whole documents."""

    @classmethod
    def load(cls, checkpoint: Checkpoint, window: int | None) -> Self:
        """Load a model onto the GPU or, without one, the CPU. `window` can only shorten the model's context.

        Raises:
            ValueError: if the checkpoint does not hold a causal language model, or if its model cannot be used.
        """
        device = device_here()
        model = load_causal(checkpoint.folder, device)
        windows = [size for size in (checkpoint.context, window) if size is not None]
        labeller = causal_labeller(model, declared_start(checkpoint.folder), device)
        return cls(checkpoint, labeller, min(windows, default=None))

    def losses(self, documents: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the losses of each document's wanted tokens in nats, float32 [T], with NaN at other tokens.

        Raises:
            ValueError: if a loss is not finite, or the device has no memory for a window.
        """
        window = self.window or max(1, *map(len, documents))
        cut = {"window": window, "overlap": window // 2, "budget": self.labeller.batch_tokens}
        batches = window_batches(documents, wanted, **cut, border=self.labeller.border)
        try:
            labelled, _ = self.labeller.label(batches)
        except DeviceError as error:
            raise ValueError(f"{error}; set a smaller `window`") from error
        return gather(documents, zip(batches, labelled, strict=True), self.labeller.columns)[ENTROPY]


def audited(dataset: AnnotatedDataset, reader: DocumentReader, by: str | None, limit: int | None) -> Audit:
    """Compare the losses of all documents, or of the first `limit` documents, with their labels.

    Raises:
        ValueError: if the model does not have the dataset's tokens, or no token that it reads has a label.
    """
    move, total = tokenizers_of_move(dataset, reader.checkpoint), min(len(dataset), limit or len(dataset))
    optional = [by, ID_COLUMN if ID_COLUMN in dataset.schema.names else None]
    names = [*dict.fromkeys([INPUT_IDS, ENTROPY, *(name for name in optional if name is not None)])]
    found, read = list[AuditedDocument](), 0
    with tqdm(total=total, desc="reading", unit=" documents", disable=not sys.stderr.isatty()) as bar:
        for rows in dataset.batches(names, stop=total):
            found += _compared(rows, read, reader, move, by)
            read += len(rows)
            bar.update(len(rows))
    labelled = [document for document in found if document.comparison.tokens]
    if not labelled:
        folder, immovable = reader.checkpoint.folder, read - len(found)
        reason = (
            f", and the labels of {immovable:,} documents cannot move to the tokens of {folder}" if immovable else ""
        )
        raise ValueError(f"no token of {dataset.source} has a label{reason}; annotate its documents again")
    return Audit(labelled, len(found) - len(labelled), read - len(found))


def tokenizers_of_move(dataset: AnnotatedDataset, checkpoint: Checkpoint) -> tuple[Tokenizer, Tokenizer] | None:
    """Return the dataset's tokenizer and the model's tokenizer if labels must be transferred, otherwise None.

    Labels are transferred from the tokens of the dataset to the tokens of the model if the two tokenizers differ. The
    tokens are assumed to be the same if the model has no tokenizer, or if the documents came as token ids.

    Raises:
        ValueError: if the tokenizers differ and the dataset holds no copy of its tokenizer, or if token ids that the
            model would read exceed its vocabulary.
    """
    own, theirs, folder = dataset.provenance.tokenizer_sha256, checkpoint.tokenizer_sha256, checkpoint.folder
    moves = None not in (own, theirs) and own != theirs
    if moves and dataset.tokenizer is None:
        raise ValueError(
            f"{dataset.source} has other tokens than {folder} and no tokenizer; annotate with --tokenizer {folder}"
        )
    tokenizer = load_tokenizer(folder) if moves else None
    ids = dataset.vocabulary if tokenizer is None else id_count(tokenizer)
    if ids > checkpoint.vocabulary:
        whose = f"{dataset.source} has" if tokenizer is None else f"the tokenizer of {folder} has"
        raise ValueError(f"{whose} {ids:,} token ids, but {folder} only {checkpoint.vocabulary:,}; name another model")
    if tokenizer is None or dataset.tokenizer is None:
        return None
    return load_tokenizer(dataset.tokenizer), tokenizer


def in_model_tokens(rows: pa.RecordBatch, move: tuple[Tokenizer, Tokenizer] | None) -> tuple[Corpus, Sequence[int]]:
    """Return documents and labels in the model's tokens, and the index of each document's row.

    Documents whose labels cannot be transferred to the model's tokens are left out.
    """
    each = as_rows(rows)
    corpus = Corpus.of([row[INPUT_IDS] for row in each], [row[ENTROPY] for row in each])
    return (corpus, range(len(corpus))) if move is None else retokenized(corpus, *move)


def _compared(
    rows: pa.RecordBatch, first: int, reader: DocumentReader, move: tuple[Tokenizer, Tokenizer] | None, by: str | None
) -> Iterator[AuditedDocument]:
    """Yield the comparison of labels and losses for each row whose labels can be transferred to the model's tokens.

    `first` is the index in the dataset of the first of these rows.
    """
    corpus, kept = in_model_tokens(rows, move)
    assert corpus.labels_N is not None
    documents, labels = corpus.by_document(corpus.tokens_N), corpus.by_document(corpus.labels_N)
    losses = reader.losses(documents, [~np.isnan(labels_T) for labels_T in labels])
    values = domains_of(rows, by)
    names = rows.column(ID_COLUMN).to_pylist() if ID_COLUMN in rows.schema.names else [None] * len(rows)
    for m, ids_T, labels_T, losses_T in zip(kept, documents, labels, losses, strict=True):
        digest = hashlib.blake2b(ids_T.tobytes(), digest_size=DIGEST_BYTES).digest()
        yield AuditedDocument(first + m, digest, Comparison.of(labels_T, losses_T), values[m], names[m])
