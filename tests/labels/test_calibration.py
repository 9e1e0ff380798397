"""Calibrated labels equal those of a loop over tokens. Damaged or unsuitable calibrations are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.labels.calibration import (
    apply_fit,
    calibrated,
    read_calibration,
    require_applicable,
    require_domains,
    rows_without_fit,
)
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, MOST_NATS, Provenance
from schemas.calibrations import MOST_KNOTS, Calibration, ColumnFit, DomainFit, Fit
from tests.builders import PROVENANCE
from tests.labels.calibrations import LINEAR, calibration

SHOT = Fit(tokens=9, slope=1.0, bias=0.0, labels=(-1.0, 0.5, 4.0), reference=(0.25, 0.25, 3.0))
NATS = st.floats(-MOST_NATS, MOST_NATS, width=32) | st.just(float("nan"))


def by_hand(fit: Fit, label: float) -> float:
    """Return a calibrated label, found by a search among the knots."""
    if np.isnan(label):
        return label
    if not fit.labels:
        return max(-MOST_NATS, min(MOST_NATS, fit.slope * label + fit.bias))
    if label <= fit.labels[0]:
        return fit.reference[0]
    for left in range(len(fit.labels) - 1):
        start, stop = fit.labels[left], fit.labels[left + 1]
        if label <= stop:
            low, high = fit.reference[left], fit.reference[left + 1]
            return low + (high - low) * (label - start) / (stop - start)
    return fit.reference[-1]


@given(labels=st.lists(NATS, max_size=20), slope=st.floats(1e-3, 1e6), bias=st.floats(-1e6, 1e6))
def test_labels_equal_those_of_a_loop_and_stay_within_bounds(labels: list[float], slope: float, bias: float) -> None:
    for fit in (SHOT, Fit(tokens=2, slope=slope, bias=bias)):
        found_N = apply_fit(fit, np.array(labels, np.float32))
        assert found_N.dtype == np.float32
        np.testing.assert_allclose(found_N, [by_hand(fit, label) for label in labels], rtol=1e-6, atol=1e-6)
        assert not np.any(np.abs(found_N) > MOST_NATS)


@given(labels=st.lists(NATS, max_size=20))
def test_the_identity_changes_no_bit(labels: list[float]) -> None:
    labels_N = np.array([*labels, -0.0], np.float32)
    found_N = apply_fit(Fit(tokens=1, slope=1.0, bias=0.0), labels_N)
    assert found_N.tobytes() == labels_N.tobytes()


def test_each_document_gets_the_fit_of_its_domain() -> None:
    fits = {"en": Fit(tokens=9, slope=2.0, bias=1.0), "7": Fit(tokens=9, slope=0.5, bias=0.0)}
    fitted = calibration(by="language", pooled=LINEAR, domains=fits)
    documents = [[1.0, np.nan], [2.0], [4.0], [], [8.0]]
    labels = {name: [np.array(each, np.float32) for each in documents] for name in (ENTROPY, EXPECTED_ENTROPY)}
    rows = pa.record_batch({"language": pa.array(["en", "7", None, "en", "unseen"])})
    found = calibrated(labels, fitted, rows)
    pooled = [LINEAR.slope * 4 + LINEAR.bias, LINEAR.slope * 8 + LINEAR.bias]
    expected = [[3.0, np.nan], [1.0], [pooled[0]], [], [pooled[1]]]
    for found_N, expected_N in zip(found[ENTROPY], expected, strict=True):
        np.testing.assert_array_equal(found_N, np.array(expected_N, np.float32))
    assert found[EXPECTED_ENTROPY] is labels[EXPECTED_ENTROPY]
    assert rows_without_fit(rows, fitted) == 2
    assert calibrated(labels, None, rows) is labels and rows_without_fit(rows, None) == 0
    assert rows_without_fit(rows, calibration(pooled=LINEAR)) == 0


def test_domains_are_text_whole_numbers_or_booleans() -> None:
    fitted = calibration(by="kind", pooled=LINEAR, domains={"7": Fit(tokens=9, slope=2.0, bias=0.0)})
    labels = {ENTROPY: [np.ones(1, np.float32)] * 2}
    for values in (pa.array([7, None]), pa.array(["7", "8"]).dictionary_encode(), pa.array(["7", ""])):
        rows = pa.record_batch({"kind": values})
        require_domains(rows.schema, "kind")
        found = [float(each[0]) for each in calibrated(labels, fitted, rows)[ENTROPY]]
        assert found == [2.0, LINEAR.slope + LINEAR.bias]
    for kind in (pa.float64(), pa.list_(pa.string())):
        with pytest.raises(ValueError, match=r"column `kind` holds .*; name another column"):
            require_domains(pa.schema([("kind", kind)]), "kind")
    with pytest.raises(ValueError, match="no column `kind`; pass it on"):
        require_domains(pa.schema([]), "kind")


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    domains = {"en": Fit(tokens=9, slope=2.0, bias=1e-9), "": Fit(tokens=1, slope=0.1, bias=-3.0)}
    for written in (
        calibration(by="language", pooled=LINEAR, domains=domains),
        calibration(pooled=SHOT, kind="isotonic"),
    ):
        file = tmp_path / f"{written.kind}.json"
        file.write_text(written.to_json(), encoding="utf-8")
        assert read_calibration(file) == written
        provenance = replace(PROVENANCE, calibration=written)
        assert Provenance.from_json(provenance.to_json()) == provenance
    values = json.loads(PROVENANCE.to_json())
    del values["calibration"]  # as an older version writes it
    assert Provenance.from_values(values) == PROVENANCE


def test_what_is_not_a_calibration_or_was_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    sound = calibration(pooled=LINEAR).to_json()
    wrong = {
        "": "is damaged",
        "[]": "not a JSON object",
        "{}": "lacks calibration",
        sound.replace('"slope": 0.5', '"slope": 0.6'): "its sha256 is not that of its content",
        sound.replace('"slope": 0.5', '"slope": 1e999'): "not a finite number",
        sound.replace('"slope": 0.5', '"slope": -0.5'): "the slope of a fit",
        sound.replace('"linear"', '"cubic"'): "not one of linear, isotonic",
        sound.replace('"linear"', '"isotonic"'): "the labels of a fit",
    }
    assert len(wrong) == 8
    for text, message in wrong.items():
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message) as error:
            read_calibration(file)
        assert "fit it again with jobs.fit_calibration" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="it is not a file"):
        read_calibration(tmp_path)


@pytest.mark.parametrize(
    "fit",
    [
        replace(SHOT, labels=(0.0, 0.0, 1.0)),
        replace(SHOT, reference=(0.0, 2.0, 1.0)),
        replace(SHOT, reference=(0.0, 2.0)),
        replace(SHOT, reference=(0.0, 2.0, 2e6)),
        replace(SHOT, tokens=0),
        replace(SHOT, labels=tuple(map(float, range(MOST_KNOTS + 1))), reference=(1.0,) * (MOST_KNOTS + 1)),
    ],
)
def test_a_shard_with_an_impossible_fit_is_refused(fit: Fit) -> None:
    forged = replace(PROVENANCE, calibration=calibration(pooled=fit, kind="isotonic"))
    with pytest.raises(ValueError, match="of a fit are not those of a isotonic calibration"):
        Provenance.from_json(forged.to_json())


def test_a_calibration_names_each_column_and_each_domain_once() -> None:
    column = ColumnFit(column="entropy", pooled=LINEAR, domains=(DomainFit(domain="a", fit=LINEAR),))
    for columns in ((), (column, column), (replace(column, column="expected_entropy"),)):
        with pytest.raises(ValueError, match="not entropy and others once each"):
            replace(calibration(by="a", pooled=LINEAR), columns=columns).require_possible()
    for by, domains in ((None, column.domains), ("a", column.domains * 2)):
        wrong = replace(calibration(by=by, pooled=LINEAR), columns=(replace(column, domains=domains),))
        with pytest.raises(ValueError, match="domains, which no run writes"):
            wrong.require_possible()


def test_a_calibration_of_other_labels_or_by_a_missing_column_is_refused() -> None:
    schema = pa.schema([("language", pa.string())])
    require_applicable(PROVENANCE, schema)
    fitted = calibration(by="language", pooled=LINEAR)
    require_applicable(replace(PROVENANCE, calibration=fitted), schema)
    with pytest.raises(ValueError, match="no column `language`"):
        require_applicable(replace(PROVENANCE, calibration=fitted), pa.schema([]))
    others: dict[str, Any] = {"window": 9, "checkpoint_sha256": "d" * 64, "tokenizer_sha256": None, "method": "causal"}
    for name, value in others.items():
        other: Calibration = replace(fitted, labelled=replace(fitted.labelled, **{name: value}))
        with pytest.raises(ValueError, match=rf"labels of other settings \({name} {value} there, .*; fit one to these"):
            require_applicable(replace(PROVENANCE, calibration=other), schema)
