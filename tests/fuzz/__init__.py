"""Files of strangers, made by chance: every reader takes each of them, or refuses it in one line, in bounded time.

python -m tests.fuzz --count 10000               # of every kind; prints a line a kind, and fails where an input does
python -m tests.fuzz --count 500 --kinds zst xz --seed 7

A kind is a strategy of inputs and what is done with one, in `KINDS`; `tests/fuzz/formats.py` has those of documents,
`tests/fuzz/records.py` all others.
"""

from tests.fuzz.formats import FORMATS
from tests.fuzz.kind import Kind
from tests.fuzz.records import RECORDS

KINDS: tuple[Kind, ...] = (*FORMATS, *RECORDS)
"""All of them."""
