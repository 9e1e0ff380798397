"""Random untrusted files: every reader accepts each file, or refuses it in one line, in bounded time.

python -m tests.fuzz --count 10000               # all kinds: prints a line for each kind, and fails if an input fails
python -m tests.fuzz --count 500 --kinds zst xz --seed 7

Each kind of input in `KINDS` consists of a strategy, which draws inputs, and a function, which uses one input. The
kinds of documents are in `tests/fuzz/formats.py`. All other kinds are in `tests/fuzz/records.py`.
"""

from tests.fuzz.formats import FORMATS
from tests.fuzz.kind import Kind
from tests.fuzz.records import RECORDS

KINDS: tuple[Kind, ...] = (*FORMATS, *RECORDS)
"""All kinds of input."""
