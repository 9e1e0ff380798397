"""Random untrusted files: every reader accepts each file, or refuses it in one line, in bounded time.

python -m tests.fuzz --count 10000               # all kinds: prints a line for each kind, and fails if an input fails
python -m tests.fuzz --count 500 --kinds zst xz --seed 7

A kind of input in `KINDS` has a strategy that draws inputs and a function that uses one. The kinds of documents are in
`tests/fuzz/formats.py`, all other kinds in `tests/fuzz/records.py`.
"""

from tests.fuzz.formats import FORMATS
from tests.fuzz.kind import Kind
from tests.fuzz.records import RECORDS

KINDS: tuple[Kind, ...] = (*FORMATS, *RECORDS)
"""All kinds of input."""
