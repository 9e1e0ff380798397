"""Card of a dataset: its front matter as `datasets` and the Hub parse it, its figures, and changes made by hand."""

import json
import re
from dataclasses import replace

import pyarrow as pa
import pytest
import yaml
from datasets import Array2D, ClassLabel, Features, Value
from huggingface_hub import DatasetCard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.columns import plain_schema
from pipeline.publish.card import dataset_card
from pipeline.publish.origin import License, Origin
from pipeline.publish.section import SubsetInfo
from schemas.annotations import annotated_schema
from schemas.layout import Subset
from schemas.receipts import Counts
from tests.builders import PROVENANCE

COUNTS = Counts(
    rows=1200,
    tokens=5000,
    labelled_tokens=4000,
    text_bytes=20_000,
    arrow_bytes=9,
    nats=8000.0,
    histogram=(100, 3000, 900),
)
SOURCE = Origin(("owner/source",), License(("odc-by",)), ("en",))


def subset_info(name: str = "exact", **changed: object) -> SubsetInfo:
    provenance = replace(PROVENANCE, method="exact")
    schema = annotated_schema(pa.schema([("id", pa.string()), ("text", pa.string())]), provenance)
    given = {"subset": Subset(name), "path": "user/name", "provenance": provenance, "schema": schema, "origin": SOURCE}
    return SubsetInfo(**{**given, "counts": COUNTS, "shards_sha256": "5" * 64, "size": 7, **changed})  # type: ignore[arg-type]


def front_matter(card: str) -> dict[str, object]:
    read = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(read, dict)
    return read


def test_the_front_matter_has_what_the_hub_shows() -> None:
    data = front_matter(dataset_card(subset_info(), None))
    assert data["configs"] == [
        {
            "config_name": "exact",
            "data_files": [{"split": "train", "path": "data/exact/**/*.parquet"}],
            "default": True,
            "description": f"exact labels, shards {'5' * 64}",
        }
    ]
    info = data["dataset_info"]
    assert isinstance(info, dict) and info["splits"] == [{"name": "train", "num_bytes": 9, "num_examples": 1200}]
    assert [feature["name"] for feature in info["features"]][:2] == ["id", "input_ids"]
    assert data["annotations_creators"] == ["machine-generated"] and data["size_categories"] == ["1K<n<10K"]
    assert data["license"] == "odc-by" and data["source_datasets"] == ["owner/source"] and data["language"] == ["en"]
    assert data["tags"] == ["token-entropy"]


def test_the_front_matter_has_the_features_of_columns() -> None:
    """The card of a dataset with a column called `_type` has no features: `datasets` reads them from the shards.

    In the features of a card, `datasets` would take `_type` for the key that names a type, not for a column.
    """
    known = Features(text=Value("string"), kind=ClassLabel(names=["no", "yes"]), shape=Array2D((2, 2), "int8"))
    for features, written in ((known, True), (known | {"_type": Value("string")}, False)):
        source = plain_schema(Features(features).arrow_schema, "a.parquet")
        schema = annotated_schema(source, replace(PROVENANCE, method="exact"))
        card = dataset_card(subset_info(schema=schema), None)
        info = front_matter(card)["dataset_info"]
        assert isinstance(info, dict) and info["splits"] and ("features" in info) == written
        if written:
            read = Features._from_yaml_list(info["features"])
            assert {name: read[name] for name in ("kind", "shape")} == {name: known[name] for name in ("kind", "shape")}


def test_a_column_that_datasets_cannot_load_is_named() -> None:
    unknown = {"info": {"features": {"id": {"_type": "Smell"}}}}
    for source in (
        pa.schema([("id", pa.map_(pa.string(), pa.string()))]),
        pa.schema([("id", pa.int64())], metadata={"huggingface": json.dumps(unknown)}),
    ):
        schema = annotated_schema(source, replace(PROVENANCE, method="exact"))
        with pytest.raises(
            ValueError, match=r"`datasets` cannot load the column id, .*; leave it out by naming others"
        ):
            dataset_card(subset_info(schema=schema), None)


def test_the_body_says_what_a_label_is_and_how_to_use_it() -> None:
    card = dataset_card(subset_info(), None)
    assert "1,200 documents, 5,000 tokens, 4,000 of them labelled" in card
    assert "The mean label is 2.000 nats (2.885 bits), or 0.721 bits per byte of text; the median is 0.32 nats." in card
    assert re.search(r"below 0 █ +2\.5%\n +0\.0 █{40} +75\.0%\n +0\.5 █{12} +22\.5%", card)
    assert 'load_dataset("user/name", "exact", split="train")' in card
    assert "--labels hf://datasets/user/name/data/exact --objective flood" in card
    assert "checkpoint_sha256 | cccc" in card and "negative where" in card and "| `entropy` | list of float |" in card


def test_bins_too_thin_for_a_bar_are_one_line_at_the_end() -> None:
    labels = (0, 6000, 4000, 1, 0, 2, 1)
    card = dataset_card(subset_info(counts=replace(COUNTS, histogram=labels)), None)
    assert re.search(r"0\.5 █{27} +40\.0%\n +above +0\.0%\n", card)


def test_a_dataset_that_is_still_being_written_has_no_figures() -> None:
    card = dataset_card(subset_info(counts=None, shards_sha256="", size=0), None)
    assert "This subset is still being written." in card and "splits" not in str(front_matter(card))
    assert "1,200 documents" in dataset_card(subset_info(), card)


def test_a_card_stays_the_same_when_it_is_written_again() -> None:
    card = dataset_card(subset_info(), None)
    assert dataset_card(subset_info(), card) == card


def test_two_subsets_share_a_card_and_the_first_is_the_default() -> None:
    card = dataset_card(subset_info("second-order"), dataset_card(subset_info(), None))
    card = dataset_card(subset_info(), card)
    configs = front_matter(card)["configs"]
    assert isinstance(configs, list)
    assert {config["config_name"]: config.get("default", False) for config in configs} == {
        "exact": True,
        "second-order": False,
    }
    assert card.count("## exact\n") == card.count("## second-order\n") == 1
    assert front_matter(card)["size_categories"] == ["1K<n<10K"]


def test_changes_by_hand_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    card = dataset_card(subset_info(), None)
    edited = DatasetCard(card.replace("# Per-token entropy labels", "# My labels").replace("Every token", "Each token"))
    edited.data["license"], edited.data["pretty_name"], edited.data["mine"] = "mit", "Mine", [1]
    again = dataset_card(subset_info(counts=replace(COUNTS, rows=12)), str(edited))
    data = front_matter(again)
    assert (data["license"], data["pretty_name"], data["mine"]) == ("mit", "Mine", [1])
    assert "# My labels" in again and "Each token" in again and "12 documents, 5,000" in again and not caplog.text


def test_a_licence_chosen_by_hand_is_not_mixed_with_that_of_the_source(caplog: pytest.LogCaptureFixture) -> None:
    source = Origin(("owner/source",), License(("other",), "terms", "https://owner.example/terms"))
    assert front_matter(dataset_card(subset_info(origin=source), None))["license_name"] == "terms"
    kept = front_matter(dataset_card(subset_info(origin=source), "---\nlicense: mit\n---\n# Mine\n"))
    assert kept["license"] == "mit" and "license_name" not in kept and "license_link" not in kept


def test_a_section_edited_by_hand_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    edited = dataset_card(subset_info(), None).replace("1,200 documents", "Twelve hundred documents")
    again = dataset_card(subset_info(counts=replace(COUNTS, rows=12)), edited)
    assert "Twelve hundred documents" in again and "12 documents" not in again.replace("Twelve", "")
    assert "section on exact was edited by hand" in caplog.text
    assert front_matter(again)["size_categories"] == ["n<1K"]


def test_a_card_that_somebody_else_wrote_is_added_to() -> None:
    card = dataset_card(
        subset_info(), "---\nlicense: mit\nconfigs:\n- config_name: old\n  data_files: old/*\n---\n# Old\ntext"
    )
    configs = front_matter(card)["configs"]
    assert isinstance(configs, list) and configs[0] == {"config_name": "old", "data_files": "old/*", "default": True}
    assert configs[1]["config_name"] == "exact" and "default" not in configs[1]
    again = front_matter(dataset_card(subset_info(), card))
    assert again["configs"] == configs and "size_categories" not in again and again["tags"] == ["token-entropy"]
    assert not {"pretty_name", "annotations_creators", "source_datasets"} & again.keys()
    assert "# Old\ntext" in card and "## exact" in card


@pytest.mark.parametrize(
    ("labels", "said"),
    [((), "undefined"), ((5,), "below 0"), ((0, 0, 4), "0.75 nats"), ((0,) * 33 + (9,), "above 16.0 nats")],
)
def test_any_histogram_has_a_median(labels: tuple[int, ...], said: str) -> None:
    assert f"the median is {said}." in dataset_card(subset_info(counts=replace(COUNTS, histogram=labels)), None)


TEXTS = st.text(min_size=1, max_size=40) | st.text("<>!-`|*_[]()&;\\\n #~a\u202e\x1b", min_size=1, max_size=40)
BREAK = "\x85"  # a line break of Unicode
EVIL = "mit](http://evil)\n\n# Evil\n<!-- end exact -->\n| <img src=x onerror=alert(1)>\n---\n\u202e"


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS, TEXTS)
@example(*[EVIL] * 5)
@example(*[BREAK] * 5)
def test_untrusted_text_is_a_value_in_the_front_matter_and_plain_words_in_the_body(
    column: str, source: str, licence: str, language: str, dataset: str
) -> None:
    provenance = replace(PROVENANCE, method="exact", source=(source,), model=source, text_column=column)
    columns = pa.schema([*({"a": pa.string(), column: pa.string()}.items()), ("entropy", pa.list_(pa.float32()))])
    outside = Origin((dataset,), License((licence,), licence, licence), (language,))
    said = subset_info(provenance=provenance, schema=columns, origin=outside)
    card = dataset_card(said, None)
    block, body = re.split(r"^---\n", card, maxsplit=2, flags=re.MULTILINE)[1:]
    data = yaml.safe_load(block)
    assert (data["license"], data["license_name"], data["license_link"]) == (licence, licence, licence)
    assert data["language"] == [language] and data["source_datasets"] == [dataset]
    assert [feature["name"] for feature in data["dataset_info"]["features"]] == [*columns.names]
    assert body.count("<") == len(re.findall("<!-- (?:begin|end) exact ", body)) == 2
    headings = ["# Per-token entropy labels", "## exact", "### Limits", "### Source and model"]
    assert re.findall("^#.*", body, re.MULTILINE) == headings
    assert not {"\x1b", "\u202e"} & {*body}
    again = dataset_card(replace(said, counts=replace(COUNTS, rows=7)), card)
    assert "1,200 documents" not in again and dataset_card(said, again) == card


def test_only_the_first_of_many_columns_are_named() -> None:
    card = dataset_card(subset_info(schema=pa.schema([(f"c{number}", pa.int8()) for number in range(5000)])), None)
    assert "`c98`, `c99` and 4,900 more." in card and "`c100`" not in card


def test_a_name_of_any_length_leaves_the_body_short() -> None:
    card = dataset_card(subset_info(schema=pa.schema([("c" * 10**6, pa.int8())])), None)
    assert len(card.split("---\n")[2]) < 5000 and "c" * 300 + "…" in card
