"""Labels from Python: a label method and its checkpoint, for texts in memory, batches and tables.

    from pipeline import Labeller

    labeller = Labeller("causal", "HuggingFaceTB/SmolLM2-135M")
    labeller("Some text")                             # shown in colour by a notebook
    labeller(["one text", "another"])[1].entropy      # nats, one number per token
    dataset.map(labeller, batched=True)               # a `datasets.Dataset`, with the columns of annotation
    ray_dataset.map_batches(labeller, batch_format="pyarrow")

Windows, precision and rounding are those of `pipeline.annotate`, so a text has the labels that the command gives it.
Several documents are labelled in one batch, so the last bits of a label may depend on the other documents of the batch.
With `batch_invariant`, a label does not depend on other documents.

Shapes: N tokens of a text, K values per token.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import pyarrow as pa
import torch

from pipeline.annotate.config import Config, Precision
from pipeline.annotate.prepare import prepare_run
from pipeline.data.documents import FileInfo
from pipeline.data.iterators import ROWS_PER_BATCH
from pipeline.data.parquet import halved
from pipeline.data.safe_tokenizers import tokenizer_errors
from pipeline.data.shards import numbers_per_token
from pipeline.data.skipped import too_long_rows, without_long
from pipeline.data.tokenizer import TOKENIZED_ALREADY
from pipeline.engine.annotator import Annotator, load_annotator
from pipeline.engine.plan import Source
from pipeline.labels.torch_labeller import device_here
from pipeline.report.notebook import DocumentView, labels_or_none
from pipeline.report.tokens import TokenTexts
from schemas.annotations import (
    ENTROPY,
    EXPECTED_ENTROPY,
    INPUT_IDS,
    MEAN_ENTROPY,
    NUM_TOKENS,
    Device,
    LabelColumn,
    Method,
    Provenance,
)
from schemas.rows import is_text, is_token_list


@dataclass(frozen=True)
class LabelledText:
    """A text with its tokens and labels. A notebook shows the tokens in the colours of their entropies."""

    text: str
    tokens: list[str]
    """Characters that each token completes, as a string. The string is empty if the token ends within a character. With
    a byte-level tokenizer, the joined strings are the text."""
    offsets: np.ndarray
    """Start and end of each token in `text`, int64 [N, 2], as indices of characters. The end is exclusive."""
    columns: Mapping[str, np.ndarray]
    """Values by column, [N] or [N, K], as annotation writes them: `input_ids`, `entropy` and other label columns. NaN
    stands for a token without a label."""

    @property
    def input_ids(self) -> np.ndarray:
        """Token ids, int32 [N]."""
        return self.columns[INPUT_IDS]

    @property
    def entropy(self) -> np.ndarray:
        """Entropies in nats, float32 [N]."""
        return self.columns[ENTROPY]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    @property
    def view(self) -> DocumentView:
        """View of the text, which notebooks and terminals show in colour."""
        expected = self.columns.get(EXPECTED_ENTROPY)
        return DocumentView(
            self.tokens,
            labels_or_none(self.entropy.tolist()),
            None if expected is None else labels_or_none(expected.tolist()),
        )

    def _repr_html_(self) -> str:
        return self.view._repr_html_()


class LabellerSettings(TypedDict, total=False):
    """Flags of `pipeline.annotate` that labels depend on, except method and checkpoint."""

    tokenizer: str | None
    text_column: str | None
    label_columns: Sequence[LabelColumn] | None
    top_k: int | None
    sampled_ids: int | None
    window: int | None
    overlap: int | None
    start_token: str | None
    calibration: str | Path | None
    dtype: Precision
    batch_invariant: bool
    longest_document: int | None


class Labeller:
    """A label method with its checkpoint. Call it with a text, a list of texts, a batch of columns or an Arrow table.

    A text or a list returns `LabelledText`. A batch or a table is returned with its own columns and those that
    `pipeline.annotate` adds. A process that unpickles a labeller loads the checkpoint when it first uses it.
    """

    def __init__(
        self,
        method: Method = "second-order",
        estimator: str | Sequence[str] = (),
        *,
        device: Device | None = None,
        **settings: Unpack[LabellerSettings],
    ) -> None:
        """Find and check the checkpoint. Its weights are loaded at the first call.

        Args:
            method: label method.
            estimator: one or several checkpoints for the method, as for --estimator of `pipeline.annotate`. By default,
                the checkpoint that comes with the project.
            device: device to label on; None for a GPU if there is one.
            settings: flags of `pipeline.annotate`, by name.

        Raises:
            TypeError: if a setting is not one of `LabellerSettings`.
            ValueError: if a setting contradicts another setting or the checkpoint.
        """
        if unknown := sorted(settings.keys() - LabellerSettings.__annotations__.keys()):
            raise TypeError(
                f"Labeller has no setting {unknown[0]}; it has {', '.join(LabellerSettings.__annotations__)}"
            )
        given: dict[str, Any] = {**settings}
        if given.get("label_columns") is not None:
            given["label_columns"] = tuple(given["label_columns"])
        if given.get("calibration") is not None:
            given["calibration"] = Path(given["calibration"])
        config = Config(
            **given,
            method=method,
            estimator=(estimator,) if isinstance(estimator, str) else tuple(estimator),
            workers=0,
            gpus_per_worker=None if device is None else float(device == "cuda"),
        )
        self._gpus = config.gpus_per_worker
        self._run = prepare_run(config, _in_memory(config), inputs=())

    @property
    def provenance(self) -> Provenance:
        """Provenance of the labels: everything that they depend on. Fields about the source have no meaning here."""
        return self._run.provenance

    @overload
    def __call__(self, texts: str) -> LabelledText: ...
    @overload
    def __call__(self, texts: list[str] | tuple[str, ...]) -> list[LabelledText]: ...
    @overload
    def __call__(self, texts: Mapping[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, texts: pa.Table | pa.RecordBatch) -> pa.Table: ...
    def __call__(self, texts: Any) -> Any:
        """Label a text, a list of texts, a batch of columns by name, or an Arrow table.

        Raises:
            ValueError: if a batch lacks the column of documents, a document is too long or not valid Unicode, or texts
                are given to a labeller of token ids.
        """
        if isinstance(texts, str):
            return self._texts([texts])[0]
        if isinstance(texts, pa.Table | pa.RecordBatch):
            return self._table(texts)
        if isinstance(texts, Mapping):
            return self._columns(texts)
        return self._texts(list(texts))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_annotator"}

    @cached_property
    def _annotator(self) -> Annotator:
        with _one_thread():
            return load_annotator(self._run, device_here(self._gpus))

    def _texts(self, texts: Sequence[str]) -> list[LabelledText]:
        tokenizer = self._annotator.tokenizer
        if tokenizer is None:
            raise ValueError("this labeller reads token ids, not text; give a batch with a column of ids")
        for place, text in enumerate(texts):
            _require_text(text, place)
        arrays = _arrays(self._annotation(pa.array(texts, pa.string())))
        with tokenizer_errors():
            encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        names, found = TokenTexts(tokenizer), list[LabelledText]()
        for place, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            columns = {name: values[place] for name, values in arrays.items() if isinstance(values, list)}
            assert encoding.ids == columns[INPUT_IDS].tolist()
            offsets_N2 = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            found.append(LabelledText(text, names.of(encoding.ids), offsets_N2, columns))
        return found

    def _columns(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a batch unchanged, together with the columns that annotation adds.

        The added columns are as in `_arrays`.
        """
        self._require_names([*batch])
        try:
            documents = pa.array(batch[self._run.column.name])
        except (pa.ArrowInvalid, UnicodeEncodeError) as error:
            raise ValueError(f"column `{self._run.column.name}` cannot be read: {error}") from error
        return {**batch, **_arrays(self._annotation(documents))}

    def _table(self, given: pa.Table | pa.RecordBatch) -> pa.Table:
        """Return the table with the columns that annotation adds."""
        self._require_names(given.schema.names)
        table = given if isinstance(given, pa.Table) else pa.Table.from_batches([given])
        annotation = self._annotation(table.column(self._run.column.name))
        for field in annotation.schema:
            if field.name in table.schema.names:
                table = table.drop_columns(field.name)
            table = table.append_column(field, annotation.column(field.name))
        return table

    def _require_names(self, names: Sequence[str]) -> None:
        """Check the names of a batch's columns.

        Raises:
            ValueError: if the column of documents is missing, or a name belongs to a column that annotation adds.
        """
        name = self._run.column.name
        if name not in names:
            listed = ", ".join(names) or "none"
            raise ValueError(f"the batch has no column `{name}`; it has {listed}; name one with `text_column`")
        if taken := sorted({*names} & {*self._run.schema.names} - {name}):
            raise ValueError(f"the batch has columns that labels are written to: {', '.join(taken)}; rename them")

    def _annotation(self, documents: pa.Array | pa.ChunkedArray) -> pa.Table:
        """Return the columns that annotation writes, for a column of documents."""
        column, kind = self._run.column, documents.type
        if not (pa.types.is_null(kind) or (is_token_list if column.tokenized else is_text)(kind)):
            expected = "lists of token ids" if column.tokenized else "text"
            raise ValueError(f"column `{column.name}` holds {kind}, not {expected}; name another with `text_column`")
        rows = pa.table({column.name: documents}).cast(self._run.source_schema)
        with _one_thread():
            parts = [self._annotator.annotated(self._short(part)) for part in _batches(rows)]
        return pa.concat_tables(parts) if parts else self._run.schema.empty_table()

    def _short(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        column = self._run.column
        if count := too_long_rows(without_long(rows, column.name, column.longest)):
            raise ValueError(
                f"{count} documents have more than {column.longest:,} bytes; cut them, or raise `longest_document`"
            )
        return rows


def _in_memory(config: Config) -> Source:
    """Return a source without files, for documents in memory. Its only column is that of the documents."""
    kind = pa.list_(pa.int32()) if config.tokenizer == TOKENIZED_ALREADY else pa.string()
    schema = pa.schema([(config.column.name, kind)])
    return Source((), (FileInfo(1, (1,), schema, ""),), schema, "")


def _require_text(text: Any, place: int) -> None:
    if not isinstance(text, str):
        raise ValueError(f"text {place} is of the type {type(text).__name__}; give texts, or a batch of columns")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text {place} is not valid Unicode at character {error.start}; replace it") from error


def _batches(rows: pa.Table) -> Iterator[pa.RecordBatch]:
    for batch in rows.combine_chunks().to_batches(max_chunksize=ROWS_PER_BATCH):
        yield from halved(batch)


def _arrays(annotation: pa.Table) -> dict[str, list[np.ndarray] | np.ndarray]:
    """Return the columns of annotation by name, as arrays.

    A column with values for every token is a list with one array per row. Any other column is a single array.
    """
    borders = np.cumsum(annotation.column(NUM_TOKENS).to_numpy())[:-1]
    arrays: dict[str, list[np.ndarray] | np.ndarray] = {}
    for name, column in zip(annotation.schema.names, annotation.columns, strict=True):
        if name in (NUM_TOKENS, MEAN_ENTROPY):
            arrays[name] = column.to_numpy()
        else:
            arrays[name] = np.split(_per_token(name, column.combine_chunks()), borders) if len(annotation) else []
    return arrays


def _per_token(name: str, column: pa.ListArray) -> np.ndarray:
    """Return a column's values for the tokens of all rows: ids as int32, and labels as float32 with NaN for null."""
    if name == INPUT_IDS:
        ids: np.ndarray = column.flatten().to_numpy()
        return ids
    return numbers_per_token(name, column).astype(np.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Context manager that limits torch to one CPU thread, because labels must not depend on the number of cores."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
