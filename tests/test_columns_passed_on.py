"""Columns that annotation copies from the source to the annotated dataset.

`load_dataset` must read the copies like the originals, streamed or not.
"""

import datetime
import io
import json
from base64 import b64decode, b64encode
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    Features,
    Image,
    LargeList,
    List,
    Translation,
    TranslationVariableLanguages,
    Value,
    load_dataset,
)
from PIL import Image as Pictures

from schemas.layout import LEDGER_FOLDER
from schemas.receipts import PLAN_FILE, RECEIPTS
from tests.conftest import RunCommand

ANNOTATE = ("pipeline.annotate", "--workers", 0)
TEXTS = ["A short document.", None, "Another."]
OURS = {
    "input_ids": List(Value("int32")),
    "entropy": List(Value("float32")),
    "expected_entropy": List(Value("float32")),
    "num_tokens": Value("int32"),
    "mean_entropy": Value("float32"),
}


def picture() -> dict[str, object]:
    stored = io.BytesIO()
    Pictures.new("RGB", (2, 2), "red").save(stored, "png")
    return {"bytes": stored.getvalue(), "path": None}


def featured() -> pa.Table:
    """Return a table as `datasets` writes it, with a column of each kind of feature."""
    features = Features(
        text=Value("string"),
        kind=ClassLabel(names=["ham", "spam"]),
        image=Image(),
        shape=Array2D((2, 2), "float32"),
        inside={"kinds": List(ClassLabel(names=["a", "b"])), "shapes": List(Array2D((None, 2), "int32"))},
        both=Translation(languages=["en", "fr"]),
        several=TranslationVariableLanguages(languages=["de", "en"]),
        large=LargeList(Value("large_string")),
    )
    columns: dict[str, list[Any]] = {
        "kind": [1, 0, None],
        "image": [picture()] * 2 + [None],
        "shape": [[[1, 2], [3, 4]], None, [[0, 0], [0, 0]]],
        "inside": [{"kinds": [1], "shapes": [[[1, 2]]]}, None, {"kinds": None, "shapes": []}],
        "both": [{"en": "a", "fr": "b"}] * 3,
        "several": [{"en": "a", "de": "b"}] * 3,
        "large": [["a"], None, []],
    }
    made = Dataset.from_dict({"text": TEXTS, **columns}, features=features)
    return made.with_format("arrow")[:].cast(features.arrow_schema)


def plain() -> pa.Table:
    """Return a table with a column of each Arrow type that `datasets` loads, except the types of `featured`'s table.

    Some columns have unusual names.
    """
    struct = pa.struct([pa.field("a", pa.int8(), nullable=False), ("_type", pa.list_(pa.string()))])
    columns = {
        "date": pa.array([datetime.date(2026, 1, 1), None, None]),
        "time": pa.array([1, None, 2], pa.timestamp("us", "Europe/Berlin")),
        "money": pa.array([Decimal("1.25"), None, None]),
        "span": pa.array([1, None, 2], pa.duration("ms")),
        "half": pa.array([1.5, None, 2], pa.float16()),
        "large": pa.array([2**64 - 1, None, 2], pa.uint64()),
        "three": pa.array([[1, 2, 3], None, [4, 5, 6]], pa.list_(pa.int16(), 3)),
        "word": pa.array(["a", None, "a"]).dictionary_encode(),
        "bytes": pa.array([b"\xff", None, b""], pa.large_binary()),
        "nothing": pa.nulls(3),
        "structs": pa.array([[{"a": 1, "_type": ["x"]}, None], None, []], pa.list_(struct)),
        "_type": pa.array(["x", "y", None]),
        "a.b": pa.array([1, 2, 3]),
        "a": pa.array([{"b": 1}, {"b": None}, None]),
        "": pa.array([1, 2, 3]),
        "dtype, line\nbreak": pa.array([1, 2, 3]),
        "list": pa.array([{"struct": [{"dtype": "x"}]}, None, None]),
        "__index_level_0__": pa.array([3, 4, 5]),
    }
    return pa.table({"text": TEXTS, **columns}).replace_schema_metadata({"pandas": '{"columns": []}'})


def lines() -> list[dict[str, Any]]:
    """Return an export of Elasticsearch with nested values, some of which have different fields."""
    return [
        {"_id": 1, "_type": "doc", "_source": {"_type": "x", "tags": ["a"], "deep": {"n": 1}}, "text": TEXTS[0]},
        {"_id": 2, "_type": "doc", "_source": None, "text": None, "mixed": 1, "keys": {"a": 1}, "list": [1, "a"]},
        {"_id": 3, "_type": "doc", "text": TEXTS[2], "mixed": "a", "keys": {"b": [1]}, "n": 0.5, "empty": {}},
    ]


def loaded(source: Any, folder: Path) -> tuple[Features, list[dict[str, Any]]]:
    """Load a dataset whole and as a stream, compare the two results, and return the features and rows."""
    how = source if isinstance(source, dict) else {"path": str(source)}
    whole = load_dataset(**how, split="train", cache_dir=str(folder / "cache"))
    streamed = load_dataset(**how, split="train", streaming=True)
    if streamed.features is not None:
        assert streamed.features == whole.features
    assert repr([*streamed]).count("input_ids") == repr([*whole]).count("input_ids")
    rows = [{**row, "image": row["image"] and row["image"].tobytes()} if "image" in row else row for row in whole]
    return whole.features, rows


@pytest.mark.parametrize("kind", ["featured", "plain", "lines"])
def test_what_load_dataset_knows_of_the_source_it_knows_of_the_dataset(
    run_command: RunCommand, tmp_path: Path, kind: str
) -> None:
    if kind == "lines":
        file = tmp_path / "in.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in lines()), encoding="utf-8")
    else:
        file = tmp_path / "in.parquet"
        pq.write_table(featured() if kind == "featured" else plain(), file)
    out = tmp_path / "out"
    assert run_command(*ANNOTATE, "--input", file, "--output", out, "--rows-per-unit", 2) == 0
    source = {"path": "json" if kind == "lines" else "parquet", "data_files": str(file)}
    features, rows = loaded(source, tmp_path / "source")
    found, found_rows = loaded(out, tmp_path / "annotated")
    assert found == Features({name: feature for name, feature in features.items() if name != "text"} | OURS)
    passed = [{name: value for name, value in row.items() if name not in OURS} for row in found_rows]
    assert passed == [{name: value for name, value in row.items() if name != "text"} for row in rows]
    schemas = {pq.read_schema(shard).serialize().to_pybytes() for shard in (out / "data").rglob("*.parquet")}
    assert len(list((out / "data").rglob("*.parquet"))) == 2 and len(schemas) == 1


def test_names_of_classes_of_columns_that_are_left_out_are_too(run_command: RunCommand, tmp_path: Path) -> None:
    pq.write_table(featured(), tmp_path / "in.parquet")
    out = tmp_path / "out"
    chosen = ("--columns", "large", "kind", "--keep-text")
    assert run_command(*ANNOTATE, "--input", tmp_path / "in.parquet", "--output", out, *chosen) == 0
    (shard,) = (out / "data").rglob("*.parquet")
    described = json.loads(pq.read_schema(shard).metadata[b"huggingface"])
    assert described["info"]["features"].keys() == {"text", "kind", "large"}
    assert loaded(out, tmp_path)[0]["kind"] == ClassLabel(names=["ham", "spam"])


def test_token_ids_beside_the_text_are_not_replaced(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"text": ["a"], "id": [1], "input_ids": [[7]], "num_tokens": [1]}), tmp_path / "in.parquet")
    command = (*ANNOTATE, "--input", tmp_path / "in.parquet", "--output", tmp_path / "out")
    assert run_command(*command) == 1
    assert "input_ids, num_tokens; rename them, or name those to pass on with --columns" in capsys.readouterr().err
    assert run_command(*command, "--columns", "id") == 0
    assert run_command(*command[:-1], tmp_path / "ids", "--columns", "id", "--tokenizer", "none") == 0
    assert loaded(tmp_path / "ids", tmp_path)[1][0]["input_ids"] == [7]


@pytest.mark.parametrize("begun", ["with other types", "before plans had columns"])
def test_a_run_whose_columns_had_other_types_is_not_resumed(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: str
) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines()), encoding="utf-8")
    command = (*ANNOTATE, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out")
    assert run_command(*command, "--columns", "_id", "_source") == 0
    assert run_command(*command, "--columns", "_id", "_source") == 0
    (file,) = (tmp_path / "out" / LEDGER_FOLDER).rglob(PLAN_FILE)
    plan = json.loads(file.read_text(encoding="utf-8"))
    schema = pa.ipc.read_schema(pa.py_buffer(b64decode(plan.pop("schema"))))
    assert schema.field("_source").type.num_fields == 3
    if begun == "with other types":
        other = schema.set(schema.get_field_index("_source"), pa.field("_source", pa.string()))
        plan["schema"] = b64encode(other.serialize()).decode()
    file.write_text(json.dumps(plan), encoding="utf-8")
    capsys.readouterr()
    assert run_command(*command, "--columns", "_id", "_source") == 1
    said = capsys.readouterr().err
    assert "another version, which wrote column `_source` with another type; complete it with that version" in said


def test_a_run_of_flat_columns_begun_before_plans_had_them_is_resumed(run_command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines()), encoding="utf-8")
    command = (*ANNOTATE, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out", "--columns", "_id", "_type")
    assert run_command(*command) == 0
    (file,) = (tmp_path / "out" / LEDGER_FOLDER).rglob(PLAN_FILE)
    file.write_text(
        json.dumps(
            {key: value for key, value in json.loads(file.read_text(encoding="utf-8")).items() if key != "schema"}
        ),
        encoding="utf-8",
    )
    for receipt in (file.parent / RECEIPTS).iterdir():
        receipt.unlink()
    assert run_command(*command) == 0 and len(loaded(tmp_path / "out", tmp_path)[1]) == 3
