"""What is not UTF-8 is refused where it begins, and the encodings that can be told are named with their conversion."""

import codecs
import re
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.data.streams import MARKS, MalformedError, decoded, require_narrow

WIDE = sorted({"utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"})


def valid(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.lists(st.binary(max_size=6) | st.text(max_size=6).map(str.encode), max_size=5).map(b"\n".join))
@example(b"a\n\xc3\xa4\xe4\n")
@example(b"a\n\nb\xc3")
def test_the_first_byte_that_is_not_utf8_is_found(content: bytes) -> None:
    if valid(content):
        assert decoded(content, line=1) == content.decode()
        return
    with pytest.raises(MalformedError, match=r"^is not UTF-8: see line .*; convert it, as with `iconv") as refusal:
        decoded(content, line=1)
    line = int(re.findall(r"line (\d+)", str(refusal.value))[0])
    lines = content.split(b"\n")
    assert all(map(valid, lines[: line - 1])) and not valid(lines[line - 1])


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("text", ['{"text": "größer"}\n', "Hallo, größer", "[{"])
def test_utf16_and_utf32_are_named_with_the_command_that_converts_them(encoding: str, text: str) -> None:
    content = text.encode(encoding)
    with pytest.raises(MalformedError, match=r"^is UTF-.*, not UTF-8; convert it, as with `iconv -f ") as refusal:
        require_narrow(content)
    command = str(refusal.value).partition("`")[2].partition("`")[0].split()
    assert subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode() == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
@example("\ufeff")
@example("a")
def test_utf8_is_taken_for_nothing_else(text: str) -> None:
    require_narrow(text.encode())
    require_narrow(text.encode("utf-8-sig"))


def test_no_mark_is_hidden_by_one_that_it_begins_with() -> None:
    found = [next(name for mark, name in MARKS.items() if content.startswith(mark)) for content in MARKS]
    assert found == [*MARKS.values()] and codecs.BOM_UTF32_LE.startswith(codecs.BOM_UTF16_LE)
