"""The instructions of docker/Dockerfile, read by a parser that understands no more than this one file needs."""

import re
from typing import NamedTuple

from tests.checkers import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"


class Instruction(NamedTuple):
    """An instruction, such as `RUN --mount=type=cache,target=/x command`: its keyword, its flags and the rest."""

    keyword: str
    flags: tuple[str, ...]
    rest: str


def instructions(keyword: str | None = None) -> list[Instruction]:
    """Return the instructions with this keyword in the order of the file, or all instructions if the keyword is None.

    An instruction over several lines is joined to one line, and comments are left out.
    """
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    found = [parsed(line) for line in lines]
    return [one for one in found if keyword in (None, one.keyword)]


def parsed(line: str) -> Instruction:
    keyword, _, rest = line.partition(" ")
    flags = []
    while match := re.match(r"(--\S+)\s+", rest):
        flags.append(match.group(1))
        rest = rest[match.end() :]
    return Instruction(keyword, tuple(flags), rest)
