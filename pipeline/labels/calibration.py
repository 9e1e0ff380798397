"""Calibration applied to labels.

N tokens of a document.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas.annotations import MOST_NATS, Provenance
from schemas.calibrations import Calibration, Fit, LabelSettings
from schemas.decoding import reading, text_of


def calibrated(
    labels: dict[str, list[np.ndarray]], calibration: Calibration | None, rows: pa.RecordBatch
) -> dict[str, list[np.ndarray]]:
    """Return labels, calibrated by the domains in `rows`, which has a row for each document.

    Columns without a fit are returned unchanged. If `calibration` is None, all columns are returned unchanged.
    """
    if calibration is None:
        return labels
    domains, result = domains_of(rows, calibration.by), dict(labels)
    for column in calibration.columns:
        if column.column in labels:
            documents = zip(column.fits(domains), labels[column.column], strict=True)
            result[column.column] = [apply_fit(fit, labels_N) for fit, labels_N in documents]
    return result


def apply_fit(fit: Fit, labels_N: np.ndarray) -> np.ndarray:
    """Return the calibrated labels, float32 [N]: the values of the fitted function at `labels_N`.

    NaN remains NaN. No value is above MOST_NATS or below -MOST_NATS. Labels outside the knots of an isotonic fit get
    the value of the nearest knot.
    """
    if not fit.labels and (fit.slope, fit.bias) == (1, 0):
        return labels_N  # adding 0 would change the sign of -0.0
    exact_N = labels_N.astype(np.float64)
    exact_N = np.interp(exact_N, fit.labels, fit.reference) if fit.labels else fit.slope * exact_N + fit.bias
    return np.clip(exact_N, -MOST_NATS, MOST_NATS).astype(np.float32)


def domains_of(rows: pa.RecordBatch, by: str | None) -> list[str | None]:
    """Return the domain of each row: the value of the column `by` as text, or None for a null.

    All domains are None if `by` is None.
    """
    if by is None:
        return [None] * len(rows)
    values: list[str | None] = rows.column(by).cast(pa.string()).to_pylist()
    return values


def rows_without_fit(rows: pa.RecordBatch, calibration: Calibration | None) -> int:
    """Return the number of rows whose domain has no fit of its own. The pooled fit is applied to their labels."""
    if calibration is None or calibration.by is None:
        return 0
    own = calibration.fitted_domains
    return sum(domain not in own for domain in domains_of(rows, calibration.by))


def read_calibration(file: Path) -> Calibration:
    """Read a file of `jobs.fit_calibration`.

    Raises:
        ValueError: if the file does not hold a calibration, or was changed after it was written.
    """
    with reading(file, "fit it again with jobs.fit_calibration"):
        return Calibration.from_json(text_of(file))


def labelled_with(provenance: Provenance) -> LabelSettings:
    """Return the settings that a calibration depends on."""
    return LabelSettings(**{name: getattr(provenance, name) for name in LabelSettings.__dataclass_fields__})


def require_applicable(provenance: Provenance, written: pa.Schema) -> None:
    """Raise if a run's calibration cannot be applied to its labels. `written` are the columns that the run writes.

    Raises:
        ValueError: if the calibration was fitted to labels of other settings, or needs a column that the run lacks.
    """
    if (calibration := provenance.calibration) is None:
        return
    fitted, run = vars(calibration.labelled), vars(labelled_with(provenance))
    if differing := [f"{name} {fitted[name]} there, {run[name]} now" for name in run if fitted[name] != run[name]]:
        raise ValueError(
            f"`calibration` was fitted to labels of other settings ({'; '.join(differing)}); fit one to these labels"
        )
    if calibration.by is not None:
        require_domains(written, calibration.by)


def require_domains(schema: pa.Schema, by: str) -> None:
    """Raise if the values of a column cannot be domains.

    Raises:
        ValueError: if there is no such column, or it holds neither text, whole numbers nor booleans.
    """
    if by not in schema.names:
        raise ValueError(f"the dataset has no column `{by}`; pass it on, or name another")
    kind = schema.field(by).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    if not any(test(kind) for test in tests):
        raise ValueError(f"column `{by}` holds {kind}, not text or whole numbers; name another column")
