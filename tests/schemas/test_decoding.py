"""The output of `to_json` is read back. Any other JSON raises a ValueError that names the field."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.annotations import Provenance
from schemas.decoding import decoded, json_object, reading, text_of
from schemas.receipts import BINS, Counts, Quarantined, Receipt
from tests.builders import PROVENANCE

RECEIPT = Receipt(
    unit=3,
    shard="train-00003-of-00015.parquet",
    sha256="d" * 64,
    size=9,
    counts=Counts(rows=2, tokens=9, labelled_tokens=7, nats=1.5, histogram=(7, *[0] * (BINS - 1))),
)
NOTE = Quarantined(unit=0, shard="train-00000-of-00001.parquet", file="a.parquet", start=0, stop=2, reason="broken")


@dataclass(frozen=True)
class Inner:
    number: float


@dataclass(frozen=True)
class Outer:
    count: int
    flag: bool
    kind: Literal["a", "b"]
    names: tuple[str, ...] | None
    place: tuple[int, int]
    inner: Inner
    note: str = "none"


OUTER = Outer(1, True, "a", ("x",), (1, 2), Inner(0.5))


@pytest.mark.parametrize(
    "record", [OUTER, replace(OUTER, names=None, note="some"), replace(OUTER, inner=Inner(-1e300))]
)
def test_records_are_read_back(record: Outer) -> None:
    assert decoded(Outer, json_object(json.dumps(asdict(record)))) == record


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("count", -1, "count is -1, not a whole number >= 0"),
        ("count", 1.0, "count is 1.0, not a whole"),
        ("count", True, "count is true, not a whole"),
        ("count", 2**63, "count is 9223372036854775808, not a whole"),
        ("flag", 1, "flag is 1, not true or false"),
        ("kind", "c", 'kind is "c", not one of a, b'),
        ("kind", ["a"], "kind is .* not one of a, b"),
        ("names", "x", 'names is "x", not a list'),
        ("names", [1], "names is 1, not text"),
        ("place", [1], "place is a list of 1, not a list of 2"),
        ("place", [1, -2], "place is -2, not a whole"),
        ("inner", [], "inner is a list of 0, not an object"),
        ("inner", {"number": "1"}, 'number is "1", not a finite number'),
        ("inner", {"number": True}, "number is true, not a finite"),
        ("inner", {"number": 10**400}, r"number is 10*\.\.\., not a finite"),
        ("inner", {}, "inner lacks number"),
        ("more", 1, 'it has "more", which this version does not write'),
    ],
)
def test_a_value_of_the_wrong_type_is_named(field: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decoded(Outer, {**json.loads(json.dumps(asdict(OUTER))), field: value})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[]", "it is not a JSON object"),
        ("\0" * 300, "Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
    ],
)
def test_anything_but_an_object_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        json_object(text)


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(ValueError, match="number is Infinity, not a finite number"):
        decoded(Inner, json_object('{"number": 1e999}'))


@pytest.mark.parametrize(
    "changed",
    [
        {"unit": 4},
        {"unit": 15, "shard": "train-00015-of-00015.parquet"},
        {"shard": "/etc/passwd"},
        {"shard": "../../train-00003-of-00015.parquet"},
        {"shard": "000/train-00003-of-00015.parquet"},
        {"shard": "train-3-of-15.parquet"},
        {"shard": "train-00003-of-00015.parquet\n"},
        {"shard": "train-00003-of-" + "9" * 5000 + ".parquet"},
        {"sha256": "D" * 64},
        {"sha256": ""},
        {"size": -1},
        {"size": 1.5},
        {"counts": []},
        *({"counts": {**asdict(RECEIPT.counts), name: value}} for name, value in (
            ("rows", -2), ("tokens", 3), ("nats", 1e300), ("histogram", [7]), ("histogram", [1] * BINS), ("nats", None)
        )),
    ],
)  # fmt: skip
def test_an_impossible_receipt_is_refused(changed: dict[str, Any]) -> None:
    assert Receipt.from_json(RECEIPT.to_json()) == RECEIPT
    with pytest.raises(ValueError, match=r"is|has|counts"):
        Receipt.from_json(json.dumps({**json.loads(RECEIPT.to_json()), **changed}))


def test_a_receipt_of_an_older_version_is_read() -> None:
    values = json.loads(RECEIPT.to_json())
    values["counts"] = {"rows": 2, "tokens": 9}
    assert Receipt.from_json(json.dumps(values)).counts == Counts(rows=2, tokens=9)


def test_a_note_names_the_shard_of_its_unit() -> None:
    assert Quarantined.from_json(NOTE.to_json()) == NOTE
    for shard in ("x", "/etc/passwd", "train-00001-of-00002.parquet"):
        with pytest.raises(ValueError, match="shard"):
            Quarantined.from_json(replace(NOTE, shard=shard).to_json())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data(), record=st.sampled_from([PROVENANCE, RECEIPT, NOTE]))
def test_a_changed_value_is_read_with_its_type_or_refused(
    data: st.DataObject, record: Provenance | Receipt | Quarantined
) -> None:
    values = json.loads(record.to_json())
    values[data.draw(st.sampled_from(sorted(values)))] = data.draw(JSON)
    try:
        read = type(record).from_json(json.dumps(values))
    except ValueError:
        return
    assert type(record).from_json(read.to_json()) == read


def test_damage_is_reported_with_the_file_and_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"\xff{}")
    with (
        pytest.raises(ValueError, match=r"a.json is damaged \('utf-8' codec .*\); delete it"),
        reading(file, "delete it"),
    ):
        text_of(file)
    with pytest.raises(ValueError, match=r"is damaged \(it is not a file\); look"), reading(tmp_path, "look"):
        text_of(tmp_path)
