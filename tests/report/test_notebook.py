"""A document as a piece of HTML for notebooks."""

import math
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.data.annotated import find_annotations
from pipeline.data.loader import Reading, labelled_rows
from pipeline.report.notebook import DocumentView, show
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, INPUT_IDS
from tests.report.labelled_texts import HOSTILE, TEXTS, TOKENIZER, write_texts

VIEW = DocumentView(["a", " <b>", "", "€\n", "  "], [1.0, None, -0.5, 0.0, 4.0], [2.0, 0.25, 1.0, 1.0, 1.0])
CLASSES = re.compile(r'class="(t[^"]*)"')


def html(view: DocumentView) -> str:
    return view._repr_html_()


def test_a_token_has_the_colour_of_its_label_and_a_missing_one_is_not_zero() -> None:
    assert CLASSES.findall(html(VIEW).split('class="document"')[1]) == ["t p4", "t", "t n2 part", "t p0", "t p16"]
    assert '<b class="none">&lt;b&gt;</b>' in html(VIEW)


def test_a_tooltip_tells_the_token_both_labels_and_the_bits_so_far() -> None:
    told = list(VIEW.tooltips())
    assert (
        told[0] == "'a'\nentropy 1.00 nats, 1.44 bits\nexpected 2.00 nats, 2.89 bits\n1.4 bits of the document so far"
    )
    assert told[1].startswith("' <b>'\nno label\nexpected 0.25") and told[2].startswith("part of a character")
    assert told[4].endswith(f"{4.5 / math.log(2):.1f} bits of the document so far")


def test_the_piece_holds_no_script_and_no_markup_of_the_documents() -> None:
    ids = TOKENIZER.encode(HOSTILE).ids
    body = html(show({INPUT_IDS: ids, ENTROPY: [1.0] * len(ids)}, TOKENIZER)).split("</style>")[1]
    assert set(re.findall(r"</?([a-z]+)", body)) == {"div", "span", "b", "i"}
    document = body.split('class="document"')[1].partition(">")[2].removesuffix("</div></div>")
    assert unescape(re.sub(r'<[^>"]*("[^"]*"[^>"]*)*>', "", document)) == HOSTILE


def test_rows_of_the_reader_and_of_a_data_frame_look_the_same(tmp_path: Path) -> None:
    dataset = find_annotations(str(write_texts(tmp_path)))
    *_, row = labelled_rows(dataset, (INPUT_IDS, ENTROPY, EXPECTED_ENTROPY), Reading(epochs=1))
    plain = {
        name: [None if isinstance(value, float) and math.isnan(value) else value for value in values.tolist()]
        for name, values in row.items()
    }
    assert None in plain[ENTROPY] and np.isnan(row[ENTROPY]).any()
    assert show(row, TOKENIZER) == show(plain, TOKENIZER)
    assert "".join(show(row, TOKENIZER).tokens) == TEXTS[-1]


def test_tokenizers_of_both_libraries_are_taken_and_none_shows_ids() -> None:
    ids = TOKENIZER.encode("The cat").ids
    row = {INPUT_IDS: ids, ENTROPY: [0.0] * len(ids)}
    assert show(row, PreTrainedTokenizerFast(tokenizer_object=TOKENIZER)) == show(row, TOKENIZER)
    assert show(row).tokens[0] == f"⟨{ids[0]}⟩"


def test_the_colours_end_where_one_label_in_a_hundred_lies_beyond() -> None:
    assert DocumentView(["x"] * 1000, [3.2] * 999 + [90.0]).most == 4
    assert DocumentView(["x"], [None]).most == DocumentView([], []).most == 1


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="2 labels for 1 tokens"):
        DocumentView(["a"], [1.0, 2.0])
    with pytest.raises(ValueError, match="the row has no entropy"):
        show({INPUT_IDS: [1]})
    with pytest.raises(ValueError, match="str is not a fast tokenizer"):
        show({INPUT_IDS: [1], ENTROPY: [1.0]}, "gpt2")


def test_control_characters_and_marks_of_direction_are_seen_and_steer_nothing() -> None:
    shown = DocumentView(["a\u202eb", "\x1b[2J", "\t", "نص"], [1.0] * 4)._repr_html_()
    assert "a\\u202eb" in shown and "\\x1b[2J" in shown and "\t" in shown and "نص" in shown
    assert not {"\u202e", "\x1b"} & {*shown}
