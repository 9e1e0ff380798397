"""The contents of the page, read back from its HTML: the dataset's numbers, and documents that cannot do harm."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.annotated import find_annotations
from pipeline.report.page import CUT, write_report
from pipeline.report.sampling import SampleSize
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, INPUT_IDS, SHIPPED_MODEL
from tests.annotated import write_annotated
from tests.labelled import LABELS, TOKENS
from tests.report.labelled_texts import HOSTILE, TEXTS, write_texts

CONTENTS = re.compile(r'<script type="application/json" id="contents">(.*?)</script>', re.DOTALL)


def contents_of(page: Path) -> dict[str, Any]:
    """Return the values that the page's script reads."""
    (found,) = CONTENTS.findall(page.read_text(encoding="utf-8"))
    contents: dict[str, Any] = json.loads(found)
    return contents


def nats_of(contents: dict[str, Any], labels: Sequence[int | None]) -> list[float | None]:
    return [None if label is None else label * contents["rounding"] for label in labels]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("dataset"), shards=2)


def test_documents_and_labels_on_the_page_are_the_datasets(dataset: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=f"{dataset}/data/*/*.parquet", split="train", cache_dir=str(tmp_path))
    contents = contents_of(write_report(str(dataset), tmp_path))
    assert contents["series"] == ["entropy", "expected entropy"]
    for row, shown, text in zip(rows, contents["documents"], TEXTS, strict=True):
        assert [nats_of(contents, labels) for labels in shown["labels"]] == [row[ENTROPY], row[EXPECTED_ENTROPY]]
        assert "".join(contents["texts"][token] for token in shown["tokens"]) == text
        assert shown["size"] == len(row[INPUT_IDS])
    assert [shown["row"] for shown in contents["documents"]] == [*range(len(TEXTS))]


def test_figures_on_the_page_are_those_of_all_labels(dataset: Path, tmp_path: Path) -> None:
    contents = contents_of(write_report(str(dataset), tmp_path))
    entropy, expected, difference = contents["measures"]
    labels = find_annotations(str(dataset)).corpus().given_labels
    assert entropy["mean"] == pytest.approx(labels.mean()) and entropy["labelled"] == len(labels)
    for measure in (entropy, expected, difference):
        assert sum(measure["histogram"]["counts"]) == measure["labelled"] == sum(measure["positions"]["counts"])
    assert difference["name"] == "entropy − expected entropy" and difference["series"] == [0, 1]
    assert entropy["scale"] == expected["scale"] and entropy["scale"][0] < 0
    assert all(count >= contents["least"] for _, count, _ in entropy["highest"] + entropy["lowest"])


def test_no_token_is_both_among_the_highest_and_the_lowest(tmp_path: Path) -> None:
    tokens = [[token] * 10 for token in range(30)]
    for known in (0, 1, 2, 3, 24, 25, 30):
        labels = [[float(row % known)] * 10 if row < known else [float("nan")] * 10 for row in range(30)]
        dataset = write_annotated(tmp_path / f"{known}", tokens, labels)
        (measure,) = contents_of(write_report(str(dataset), tmp_path / f"page-{known}"))["measures"]
        highest, lowest = ([mean for _, _, mean in measure[end]] for end in ("highest", "lowest"))
        assert measure["ranked"] == known and len(highest) + len(lowest) == min(known, 24)
        assert highest == sorted(range(known), reverse=True)[: min(12, -(-known // 2))]
        assert lowest == [*range(min(12, known // 2))]


def test_tokens_of_a_difference_are_divided_by_its_sign(tmp_path: Path) -> None:
    tokens, ours = [[token] * 10 for token in range(6)], [[float(mean)] * 10 for mean in (5, 4, 3, 2, 0, -1)]
    one = write_annotated(tmp_path / "one", tokens, ours)
    other = write_annotated(tmp_path / "other", tokens, [[0.0] * 10] * 6)
    *_, difference = contents_of(write_report(str(one), tmp_path / "page", against=str(other)))["measures"]
    assert [mean for _, _, mean in difference["highest"]] == [5, 4, 3, 2]
    assert [mean for _, _, mean in difference["lowest"]] == [-1] and difference["ranked"] == 6


def test_the_shipped_model_is_named_and_its_limits_are_told(tmp_path: Path) -> None:
    for model, limits in ((SHIPPED_MODEL, 1), ("user/name", 0)):
        dataset = write_annotated(tmp_path / str(limits), [[1]], [[1.0]], model=model)
        contents = contents_of(write_report(str(dataset), tmp_path / "pages" / str(limits)))
        assert contents["model"] == model
        assert sum("--method causal --estimator NAME" in text for text in contents["told"]) == limits


def test_documents_are_counted_by_the_first_column_with_few_values_or_by_the_one_named(
    dataset: Path, tmp_path: Path
) -> None:
    groups = contents_of(write_report(str(dataset), tmp_path))["groups"]
    assert groups["column"] == "dump" and not groups["more"]
    assert [(name, documents) for name, documents, *_ in groups["rows"]] == [("a", 3), (HOSTILE, 3)]
    named = contents_of(write_report(str(dataset), tmp_path, by="id"))["groups"]
    assert [name for name, *_ in named["rows"]] == [f"id-{row}" for row in range(len(TEXTS))]
    with pytest.raises(ValueError, match="has no column dumb; it has id, dump"):
        write_report(str(dataset), tmp_path, by="dumb")


def test_a_document_cannot_leave_its_place_in_the_page(dataset: Path, tmp_path: Path) -> None:
    page = write_report(str(dataset), tmp_path).read_text(encoding="utf-8")
    (inside,) = CONTENTS.findall(page)
    assert page.count("</script>") == 2 and not {*inside} & {*"<>&"}
    assert json.dumps(HOSTILE)[1:9].replace("<", "\\u003c") in inside and '"$x"' in inside


def test_the_page_names_nothing_to_fetch(dataset: Path, tmp_path: Path) -> None:
    page = CONTENTS.sub("", write_report(str(dataset), tmp_path).read_text(encoding="utf-8"))
    assert not re.search(r"\b(src|href)=|url\(|@import|fetch\(", page)
    assert [*re.findall(r"https?://[^\"]*", page)] == ["http://www.w3.org/2000/svg"]


def test_a_sample_is_drawn_and_the_page_says_of_how_many(tmp_path: Path) -> None:
    write_annotated(
        tmp_path, [[row % 90] * 3 for row in range(1000)], [[row, 1.0, 2.0] for row in range(1000)], shards=4
    )
    size = SampleSize(documents=40, sample=100, tokens=2, seed=3)
    contents = contents_of(write_report(str(tmp_path), tmp_path / "page", size=size))
    assert contents["told"][1] == (
        "Shown: 40 of 1,000 documents, at most the first 2 tokens of each. "
        "The figures below are of 100 documents with 300 tokens, drawn from the whole dataset with seed 3."
    )
    rows = [shown["row"] for shown in contents["documents"]]
    assert len(rows) == 40 and {row // 250 for row in rows} == {0, 1, 2, 3}
    for shown in contents["documents"]:
        assert nats_of(contents, shown["labels"][0]) == [shown["row"], 1.0] and shown["size"] == 3
    assert contents["measures"][0]["labelled"] == 300


def test_more_documents_than_tokens_fit_are_shown_by_their_first_ones() -> None:
    assert SampleSize().tokens_each(10**6) == 1 and SampleSize(tokens=7).tokens_each(10**6) == 7


@pytest.mark.parametrize(
    ("documents", "shown", "told"),
    [
        (
            1,
            20_000,
            "Shown: 1 of 1 document, at most the first 20,000 tokens of each. The figures below are of 1 document ",
        ),
        (30, 10_000, "Shown: 30 of 30 documents, at most the first 10,000 tokens of each. "),
        (15, 20_000, "Shown: 15 of 15 documents, at most the first 20,000 tokens of each. "),
    ],
)
def test_fewer_documents_are_shown_at_greater_length(tmp_path: Path, documents: int, shown: int, told: str) -> None:
    size = 20_001
    write_annotated(tmp_path, [[1] * size] * documents, [[2.0] * size] * documents)
    contents = contents_of(write_report(str(tmp_path), tmp_path / "page"))
    assert contents["told"][1].startswith(told)
    assert {len(document["tokens"]) for document in contents["documents"]} == {shown}


def test_a_long_token_is_cut_short_on_the_page_which_says_so(tmp_path: Path) -> None:
    dataset = write_texts(tmp_path / "set")
    assert CUT not in contents_of(write_report(str(dataset), tmp_path))["told"]
    file = dataset / "tokenizer" / "second-order" / "tokenizer.json"
    tokenizer = file.read_text(encoding="utf-8").replace('": "</script>"', f'": "{"x" * 10**6}"')
    assert len(tokenizer) > 10**6
    file.write_text(tokenizer, encoding="utf-8")
    contents = contents_of(write_report(str(dataset), tmp_path))
    assert CUT in contents["told"] and "x" * 1000 + "…" in contents["texts"]
    assert len((tmp_path / "report.html").read_text(encoding="utf-8")) < 200_000


def test_two_datasets_stand_side_by_side_with_their_difference(tmp_path: Path) -> None:
    one, other = (
        write_annotated(tmp_path / name, [[1, 2, 3], [4]], labels)
        for name, labels in (("one", [[1.0, 2.0, 3.0], [4.0]]), ("other", [[0.5, 2.5, float("nan")], [0.0]]))
    )
    contents = contents_of(write_report(str(one), tmp_path / "page", against=str(other)))
    assert [measure["name"] for measure in contents["measures"]] == [
        *("one/exact", "other/exact", "one/exact − other/exact")
    ]
    assert contents["beside"] == 1
    assert [nats_of(contents, labels) for labels in contents["documents"][0]["labels"]] == [[1, 2, 3], [0.5, 2.5, None]]
    assert contents["measures"][2]["mean"] == pytest.approx((0.5 - 0.5 + 4) / 3)


def test_documents_without_a_tokenizer_are_shown_by_their_ids(tmp_path: Path) -> None:
    rows = [[token % 90 for token in tokens] for tokens in TOKENS]
    contents = contents_of(write_report(str(write_annotated(tmp_path / "fitting", rows, LABELS)), tmp_path / "page"))
    shown = contents["documents"][2]
    assert [contents["texts"][token] for token in shown["tokens"]] == [f"⟨{token}⟩" for token in rows[2]]


def test_labels_that_are_all_missing_make_a_page_too(tmp_path: Path) -> None:
    write_annotated(tmp_path, [[1, 2], []], [[float("nan")] * 2, []])
    (measure,) = contents_of(write_report(str(tmp_path), tmp_path / "page"))["measures"]
    assert measure["mean"] is None and measure["labelled"] == 0 and measure["scale"] == [0, 1]


def test_a_dataset_without_documents_is_refused(tmp_path: Path) -> None:
    write_annotated(tmp_path, [], [])
    with pytest.raises(ValueError, match="has no document to show"):
        write_report(str(tmp_path), tmp_path / "page")


@pytest.mark.parametrize(("settings", "told"), [({"sample": 0}, "sample to show"), ({"seed": -1}, "seed must be")])
def test_a_sample_size_out_of_range_is_refused(settings: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SampleSize(**settings)
