"""Provenance of untrusted datasets: it is read completely, or refused with a one-line error."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.annotations import LIMITS, EnsembleMember, Provenance
from tests.builders import PROVENANCE

WRITTEN = json.loads(json.dumps(asdict(PROVENANCE)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "it is not a JSON object"),
        ("{", "Expecting property name"),
        ("[" * 10**5, "it is nested too deeply"),
        ('{"schema_version": 3}', "it lacks method, checkpoint_sha256, "),
        ('{"schema_version": 9}', "labels of schema version 9, but this version reads 3"),
        *(
            (json.dumps({**WRITTEN, **changed}), told)
            for changed, told in (
                ({"evil": 1}, 'it has "evil", which this version does not write'),
                ({"vocabulary": "x"}, 'vocabulary is "x", not a whole number'),
                ({"vocabulary": True}, "vocabulary is true, not a whole number"),
                ({"vocabulary": 2**33}, "its vocabulary is 8589934592, which no run writes"),
                ({"window": 0}, "its window is 0, which"),
                ({"overlap": 10**6}, "its overlap is 1000000, which"),
                ({"share": float("nan")}, "NaN is not a number"),
                ({"start_token": -1}, "start_token is -1, not a whole number"),
                ({"method": "zzz"}, 'method is "zzz", not one of second-order, exact, causal'),
                ({"method": [1]}, "method is a list of 1, not one of"),
                ({"source": "s"}, 'source is "s", not a list'),
                ({"source": [1]}, "source is 1, not text"),
                ({"columns": [None]}, "columns is null, not text"),
                ({"members": [{"model": "one"}]}, "its members is (EnsembleMember(model='one', "),
                ({"members": [{"model": "one"}, {"start_token": 5}]}, "members lacks model"),
                ({"members": [{"model": "a"}, {"model": "b", "start_token": 2**25}]}, "its members is ("),
                ({"label_columns": ["entropy", "entropy_deviation"]}, "its label_columns is ('entropy', "),
            )
        ),
    ],
)
def test_provenance_that_no_run_writes_is_refused_with_the_reason(text: str, told: str) -> None:
    with pytest.raises(ValueError) as refused:
        Provenance.from_json(text)
    assert told in str(refused.value)


def test_provenance_is_read_back_and_an_older_version_with_fewer_fields_is_read_too() -> None:
    assert Provenance.from_json(PROVENANCE.to_json()) == PROVENANCE
    older = {name: value for name, value in WRITTEN.items() if name not in ("folds", "model", "source_files")}
    assert Provenance.from_json(json.dumps({**older, "share": 1})) == PROVENANCE


def test_an_ensemble_says_how_its_members_labels_were_combined() -> None:
    pair = (EnsembleMember(model="one", start_token=3), EnsembleMember(model="two", start_token=4))
    causal = replace(PROVENANCE, method="causal", model="one + two", members=pair)
    assert Provenance.from_json(causal.to_json()) == causal
    assert causal.labelled_by == "mean probability of one + two" and not causal.is_moved
    other = replace(causal, members=(pair[0], replace(pair[1], tokenizer_sha256="t" * 64)))
    assert other.labelled_by == "mean of moved nats of one + two" and other.is_moved
    both = replace(causal, members=tuple(replace(member, tokenizer_sha256="t" * 64) for member in pair))
    assert both.labelled_by == "mean probability of one + two" and both.is_moved
    exact = replace(causal, method="exact")
    assert exact.labelled_by == "mean of nats of one + two" and exact.limits.startswith(LIMITS["exact"])
    assert "the mean of their labels" in exact.limits and PROVENANCE.limits == LIMITS["exact"]


@given(st.dictionaries(st.sampled_from(sorted(WRITTEN)), JSON, max_size=3))
def test_any_values_are_read_as_declared_or_refused(changed: dict[str, object]) -> None:
    try:
        read = Provenance.from_json(json.dumps({**WRITTEN, **changed}))
    except ValueError:
        return
    assert json.loads(read.to_json()) == {**WRITTEN, **changed}
