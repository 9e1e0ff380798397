"""The library `datasets` loads from the Hub and pushes to the Hub in a separate process, as a job does."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub import hub_server
from tests.hub.elsewhere import run

NAME = "user/name"


def parquet(texts: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), sink)
    return bytes(sink.getvalue())


LOAD = """
import json, sys
from datasets import load_dataset
def texts(revision, **how):
    return [row["text"] for row in load_dataset("user/name", split="train", revision=revision, **how)]
print(json.dumps([[texts(revision), texts(revision, streaming=True)] for revision in sys.argv[1:]]))
"""
CARD = b"---\nconfigs:\n- config_name: default\n  data_files: data/train-*.parquet\n---\n"


def test_datasets_loads_and_streams_a_dataset_at_any_commit(tmp_path: Path) -> None:
    with hub_server(page=1) as hub:
        files = {"data/train-0.parquet": parquet(["x", "y"]), "data/other.parquet": parquet(["no"])}
        first = hub.add(NAME, {**files, "README.md": CARD})
        hub.add(NAME, {"data/train-1.parquet": parquet(["z"])})
        assert run(hub, tmp_path, LOAD, "main", first) == [[["x", "y", "z"]] * 2, [["x", "y"]] * 2]
        assert not any(one.authorized for one in hub.requests if one.storage)


PUSH = """
import json
from datasets import Dataset, load_dataset
for texts in (["x", "y"], ["z"]):
    Dataset.from_dict({"text": texts}).push_to_hub("user/pushed", private=True)
print(json.dumps(list(load_dataset("user/pushed", split="train")["text"])))
"""


@pytest.mark.parametrize("xet", [False, True])
def test_datasets_pushes_a_dataset(tmp_path: Path, xet: bool) -> None:
    with hub_server(xet=tmp_path / "store" if xet else None) as hub:
        assert run(hub, tmp_path, PUSH) == ["z"]
        assert hub.repositories["datasets", "user/pushed"].private
        assert any(one.path.startswith("/v1/xorbs/") for one in hub.requests) == xet
