"""Built-in sample of documents: the English help texts that every CPython ships, with the columns of FineWeb."""

import platform
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.rows import FINEWEB

MOST_CHARACTERS = 4000  # of a topic, which is cut after a paragraph: whole topics would triple the time of the demo
SAMPLE_NAME = f"CPython {platform.python_version()} help topics (built-in sample)"


def sample_documents() -> pa.Table:
    """Return the beginning of each help topic, sorted by name, with FineWeb's columns."""
    rows = [
        {
            "text": text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS].rpartition("\n\n")[0],
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
    """Write the sample documents to a Parquet file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(sample_documents(), file)
