"""Documents that are always at hand: the English help texts that every CPython ships, shaped like FineWeb rows."""

import platform
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.documents import FINEWEB

SAMPLE_NAME = f"CPython {platform.python_version()} help topics (built-in sample)"


def sample_documents() -> pa.Table:
    """One row a help topic, in the order of their names, with FineWeb's columns."""
    rows = [
        {
            "text": text,
            "id": f"<python:topic:{name}>",
            "dump": f"CPython-{platform.python_version()}",
            "url": f"https://docs.python.org/3/search.html?q={name}",
            "file_path": "pydoc_data/topics.py",
            "language": "en",
            "language_score": 1.0,
        }
        for name, text in sorted(topics.items())
    ]
    return pa.Table.from_pylist(rows, schema=FINEWEB)


def write_sample(file: Path) -> None:
    """Writes the sample documents as a Parquet file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(sample_documents(), file)
