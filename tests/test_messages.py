"""Untrusted text steers no terminal, forges no line of a log and becomes no markup; letters stay as they are."""

import io
import logging
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import messages
from pipeline.messages import (
    MOST_IN_LINE,
    MOST_IN_MARKDOWN,
    LineFormatter,
    in_markdown,
    name_in_markdown,
    one_line,
    say,
    visible,
)

ANY = st.text(st.characters(exclude_categories=()), max_size=60)
STEERING = "\x1b]0;title\x07\x1b[2J\x9b1A\r\n\u202egnp.exe\u2066\u2028\udcff"
REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def is_harmless(text: str) -> bool:
    """Return True if a text has no controls, line ends, surrogates or characters that set a direction.

    The kind of each character is taken from Unicode's tables.
    """
    kinds = {unicodedata.category(character) for character in text}
    return not kinds & {"Cc", "Cs", "Zl", "Zp"} and not REORDERING & set(map(unicodedata.bidirectional, text))


@settings(max_examples=300, deadline=None)
@given(ANY)
@example(STEERING)
def test_any_text_is_shown_without_a_character_that_steers(text: str) -> None:
    assert is_harmless(visible(text)) and is_harmless(one_line(text)) and is_harmless(in_markdown(text))
    assert is_harmless(name_in_markdown(text))
    text.encode("utf-8", "surrogatepass")
    visible(text).encode("utf-8")  # raises nothing


@pytest.mark.parametrize(
    "text", ["naïve façade", "日本語の列", "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "نص عربي", "טקסט בעברית", "می‌خواهم", "e\u0301"]
)
def test_letters_of_every_script_stay(text: str) -> None:
    assert visible(text) == one_line(text) == in_markdown(text) == text


def test_what_is_escaped_is_shown_as_python_writes_it() -> None:
    assert visible("a\x1b[2J\n\u202eb\udcff") == "a\\x1b[2J\\n\\u202eb\\udcff"
    assert visible("a\nb\tc", keep="\n") == "a\nb\\tc"


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY, max_size=3))
def test_what_is_said_is_as_many_lines_as_were_given(lines: list[str]) -> None:
    stream = io.StringIO()
    say(*lines, file=stream)
    assert stream.getvalue().count("\n") == len(lines)
    assert is_harmless(stream.getvalue().replace("\n", ""))


def test_a_long_line_keeps_its_beginning_and_what_to_do() -> None:
    line = one_line(f"no column {'c' * 10**6}; name another")
    assert len(line) < MOST_IN_LINE + 9 and line.startswith("no column ccc") and line.endswith("ccc; name another")


def test_a_log_has_a_line_a_record_and_no_credential() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("of its own")
    logger.addHandler(handler)
    logger.warning("column %s of %s", "a\nERROR forged\x1b[2J", "https://user:hunter@host/x")
    secret = "".join(["hunt", "er"])  # a traceback quotes the line that raises
    try:
        raise KeyError(f"\x1b[2J https://user:{secret}@host/x")
    except KeyError:
        logger.exception("it failed")
    first, second, *traceback = stream.getvalue().splitlines()
    assert first == "WARNING column a\\nERROR forged\\x1b[2J of https://***@host/x" and second == "ERROR it failed"
    assert traceback[0].startswith("Traceback") and "\x1b" not in stream.getvalue()
    assert secret not in stream.getvalue()


class Markup(HTMLParser):
    """Parser that collects a document's texts, tags and comments."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.found: list[str] = []
        self.feed(text)
        self.close()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)

    def handle_comment(self, data: str) -> None:
        self.found.append(data)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("<>!-`|*_[]()&;\\\n #$~a", max_size=60))
@example("<!-- end exact -->\n<img src=x onerror=alert(1)>")
@example("mit](http://evil)\n\n# Evil")
@example("a" * 10**6)
def test_any_text_in_markdown_is_words_of_one_line(text: str) -> None:
    for shown in (in_markdown(text), name_in_markdown(text)):
        assert "<" not in shown and "\n" not in shown and len(shown) < 13 * MOST_IN_MARKDOWN
        assert not Markup(shown).found
    words = "".join(Markup(in_markdown(text)).texts)
    bare = "".join(character for character in in_markdown(text) if character in "`*_[]|~$")
    assert in_markdown(text).count("\\") >= len(bare)
    assert words.replace("\\\\", "").count("\\") >= len(bare)


def test_a_setting_is_shown_as_its_flag_and_a_column_of_that_name_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "FLAGS", {"limit": "--limit", "split": "--split"})
    assert one_line("`limit` is 0; see `split` or `other`") == "--limit is 0; see --split or `other`"
    assert one_line("a.parquet has no column `split`") == "a.parquet has no column `split`"


def test_a_name_is_code_where_code_can_hold_it() -> None:
    assert name_in_markdown("my_column") == "`my_column`" and name_in_markdown("größe 2") == "`größe 2`"
    assert name_in_markdown("a`b|<i>") == "a\\`b\\|&lt;i&gt;"
