"""Uploads and reads by Xet, in processes of their own because hf_xet remembers what it learns about a storage."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hub import Hub, hub_server
from tests.hub.elsewhere import run
from tests.hub.xet import GROUPED_LZ4, LZ4, UNCOMPRESSED, chunks_of, ungrouped

NAME = "user/name"


@pytest.fixture
def xet_hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_server(xet=tmp_path / "store") as hub:
        yield hub


UPLOAD = """
import json, sys
from huggingface_hub import CommitOperationAdd, HfApi
additions = [CommitOperationAdd(f"data/{path.split('/')[-1]}", path) for path in sys.argv[1:]]
api = HfApi()
api.create_repo("user/name", repo_type="dataset", exist_ok=True)
api.preupload_lfs_files("user/name", additions, repo_type="dataset")
print(json.dumps(api.create_commit("user/name", additions, commit_message="xet", repo_type="dataset").oid))
"""
READ = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, HfFileSystem
folder = Path(HfApi().snapshot_download("user/name", repo_type="dataset", revision=sys.argv[1], local_dir=sys.argv[2]))
with HfFileSystem().open(f"datasets/user/name@{sys.argv[1]}/data/a.parquet") as stream:
    stream.seek(1000)
    part = stream.read(10).hex()
print(json.dumps([sorted(path.name for path in folder.glob("data/*")), part]))
"""


@pytest.mark.parametrize("xet_again", [True, False])
def test_files_that_were_uploaded_by_xet_are_read_by_it_and_without_it(
    xet_hub: Hub, tmp_path: Path, xet_again: bool
) -> None:
    """The files hold text that compresses well, numbers whose bytes Xet groups by fours, and noise.

    Together they have every kind of chunk.
    """
    numbers = pa.array(range(40_000), pa.float32()).buffers()[1].to_pybytes()
    contents = {"a.parquet": os.urandom(300_000), "b.parquet": b"hello " * 60_000, "c.parquet": numbers * 2}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    oid = run(xet_hub, tmp_path, UPLOAD, *(str(tmp_path / name) for name in contents))
    assert xet_hub.files(NAME, oid) == {".gitattributes": xet_hub.files(NAME)[".gitattributes"]} | {
        f"data/{name}": content for name, content in contents.items()
    }
    assert not any(one.method == "PUT" for one in xet_hub.requests)
    xet_hub.requests.clear()
    script = READ if xet_again else f"import os; os.environ['HF_HUB_DISABLE_XET'] = '1'\n{READ}"
    names, part = run(xet_hub, tmp_path / "home", script, oid, str(tmp_path / "got"))
    assert names == list(contents) and bytes.fromhex(part) == contents["a.parquet"][1000:1010]
    assert {name: (tmp_path / "got" / "data" / name).read_bytes() for name in contents} == contents
    assert any("/v1/reconstructions/" in one.path for one in xet_hub.requests) == xet_again
    xorbs = [path.read_bytes() for path in (tmp_path / "store").iterdir()]
    schemes = {chunk.scheme for xorb in xorbs for chunk in chunks_of(xorb)}
    assert schemes == {UNCOMPRESSED, LZ4, GROUPED_LZ4}


def test_processes_upload_by_xet_at_once(xet_hub: Hub, tmp_path: Path) -> None:
    environment = {**os.environ, **xet_hub.environment, "HF_HOME": str(tmp_path)}
    xet_hub.add(NAME, {})
    started = []
    for index in range(3):
        (tmp_path / f"{index}.parquet").write_bytes(os.urandom(100_000))
        command = [sys.executable, "-c", UPLOAD, str(tmp_path / f"{index}.parquet")]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    assert [one.wait() for one in started] == [0, 0, 0]
    assert len(xet_hub.files(NAME)) == 3 and len(xet_hub.commits(NAME)) == 4


def test_a_file_of_parts_of_another_is_put_together_from_any_byte_to_any_other(xet_hub: Hub, tmp_path: Path) -> None:
    # The bytes have a seed, because they decide where chunks end. A chunk may have 128 KiB.
    noise, more = (random.Random(seed).randbytes(size) for seed, size in ((0, 2_000_000), (1, 300_000)))
    (tmp_path / "a.parquet").write_bytes(noise)
    (tmp_path / "b.parquet").write_bytes(noise[:1_000_000] + more + noise[1_000_000:])
    for name in ("a.parquet", "b.parquet"):
        run(xet_hub, tmp_path, UPLOAD, str(tmp_path / name))
    content = xet_hub.files(NAME)["data/b.parquet"]
    assert content == (tmp_path / "b.parquet").read_bytes()
    assert sum(path.stat().st_size for path in (tmp_path / "store").iterdir()) < len(noise) + len(more) + 500_000
    assert xet_hub.store is not None
    file = xet_hub.store.by_sha256[hashlib.sha256(content).hexdigest()]
    assert len(file.segments) > 1
    end = len(content) - 1
    for first, last in ((0, end), (0, 9), (1_010_000, 1_010_009), (123, 2_290_000), (end, end)):
        asked = {"Authorization": "Bearer xet-read", "Range": f"bytes={first}-{last}"}
        told = httpx2.get(f"{xet_hub.storage}/v1/reconstructions/{file.hash}", headers=asked).json()
        assert assembled(told)[told["offset_into_first_range"] :][: last - first + 1] == content[first : last + 1]


def assembled(told: Any) -> bytes:
    """Return the bytes of all terms of a reconstruction, joined to one file.

    Each term is fetched from the range of a block that the reconstruction names.
    """
    pieces = []
    for term in told["terms"]:
        found = next(one for one in told["fetch_info"][term["hash"]] if one["range"] == term["range"])
        asked = {"Range": f"bytes={found['url_range']['start']}-{found['url_range']['end']}"}
        part = httpx2.get(found["url"], headers=asked).content
        chunks = list(chunks_of(part))
        assert len(chunks) == term["range"]["end"] - term["range"]["start"]
        pieces.append(b"".join(chunk.content(part) for chunk in chunks))
        assert len(pieces[-1]) == term["unpacked_length"]
    return b"".join(pieces)


@given(st.binary(max_size=40))
def test_bytes_grouped_by_fours_are_put_back(content: bytes) -> None:
    assert ungrouped(b"".join(content[remainder::4] for remainder in range(4))) == content


def test_a_token_that_may_not_write_uploads_nothing_by_xet(xet_hub: Hub, tmp_path: Path) -> None:
    xet_hub.add(NAME, {})
    (tmp_path / "a.parquet").write_bytes(b"a" * 1000)
    environment = {**os.environ, **xet_hub.environment, "HF_HOME": str(tmp_path), "HF_TOKEN": xet_hub.reader}
    command = [sys.executable, "-c", UPLOAD, str(tmp_path / "a.parquet")]
    ran = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert ran.returncode == 1 and "403 Forbidden" in ran.stderr
    assert not (tmp_path / "store").exists()
