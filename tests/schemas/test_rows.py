"""Features of the library `datasets`, which describe the types of columns.

The project copies the features of a column without importing `datasets`, and `datasets` can read them back.
"""

import json
from typing import Any

import datasets
import pyarrow as pa
import pytest
from datasets import Array2D, ClassLabel, Features, Image, List, Sequence, Value

from schemas.rows import FEATURES_KEY, features_metadata, read_features, same_feature

FEATURES = Features(
    text=Value("string"),
    kind=ClassLabel(names=["ham", "spam"]),
    image=Image(),
    _type=List({"_type": ClassLabel(names=["a"]), "shape": Array2D((2, 2), "float32")}),
)


def test_features_of_the_remaining_columns_are_read_back() -> None:
    whole = FEATURES.arrow_schema
    features = read_features(whole, "a.parquet")
    assert Features.from_dict(features) == FEATURES
    part = pa.schema([whole.field("_type"), whole.field("kind")], metadata=whole.metadata)
    kept = read_features(part, "a.parquet")
    again = Features.from_arrow_schema(part.with_metadata(features_metadata(kept)))
    assert again == Features({name: FEATURES[name] for name in ("_type", "kind")})
    assert not features_metadata({}) and read_features(part.remove_metadata(), "a.parquet") == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"info": {"features": [1]}}', '{"info": 5}', "\xff"])
def test_metadata_that_cannot_be_read_is_refused(text: str) -> None:
    schema = pa.schema([("text", pa.string())], metadata={FEATURES_KEY: text.encode("latin-1")})
    with pytest.raises(ValueError, match=r"`huggingface` of a\.parquet cannot be read \(.*\); write the file"):
        read_features(schema, "a.parquet")


@pytest.mark.parametrize("text", ["{}", '{"info": null}', '{"info": {"features": null}}', '{"info": {}}'])
def test_metadata_without_features_is_empty(text: str) -> None:
    schema = pa.schema([("text", pa.string())], metadata={FEATURES_KEY: text})
    assert read_features(schema, "a.parquet") == {}


OLD_LIST = {"feature": {"dtype": "string", "id": None, "_type": "Value"}, "length": -1, "id": None, "_type": "Sequence"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (OLD_LIST, Features(x=List(Value("string"))).to_dict()["x"], True),
        ([{"dtype": "string", "_type": "Value"}], OLD_LIST, True),
        (Features(x=ClassLabel(names=["a", "b"])), Features(x=ClassLabel(names=["b", "a"])), False),
        (Features(x=Value("int64")), Features(x=ClassLabel(names=["a"])), False),
        (Features(x=Image()), Features(x=Image(decode=False)), False),
        (Features(x=List(Value("int8"), length=2)), Features(x=List(Value("int8"))), False),
        (Features(x={"a": Value("int8"), "_type": Value("int8")}), Features(x={"a": Value("int8")}), False),
    ],
)
def test_features_are_compared_by_meaning(one: Any, other: Any, same: bool) -> None:
    described = [part.to_dict()["x"] if isinstance(part, Features) else part for part in (one, other)]
    assert same_feature(*described) == same == same_feature(*reversed(described))
    read = [Features.from_dict(json.loads(json.dumps({"x": part}))) for part in described]
    assert (read[0] == read[1]) == same


def test_a_struct_in_an_old_list_is_not_a_list_of_structs() -> None:
    """`Sequence` of a struct is a struct of lists, but `List` of a struct is not."""
    struct = {"a": {"dtype": "int8", "_type": "Value"}}
    assert isinstance(Sequence({"a": Value("int8")}), dict) and datasets.List is List
    assert not same_feature({"feature": struct, "_type": "Sequence"}, {"feature": struct, "_type": "List"})
