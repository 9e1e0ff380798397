"""The README.md of an annotated dataset: what finds its files, what a label means, where each subset came from.

What is generated for a subset stands between two comments, the first with a digest of it. It is written anew as long as
it is what was generated; a part that was edited by hand stays, and so does all that stands outside. In the front matter
only the subset's entries and the size are written over, other keys are added where they are missing.
"""

import logging
import re
from hashlib import sha256
from typing import TYPE_CHECKING

import pyarrow as pa
import yaml
from huggingface_hub import DatasetCard

from pipeline.data.atomic import write_text
from pipeline.publish.readme import EMPTY, marks, parsed, read_readme
from pipeline.publish.section import SubsetInfo, section
from schemas.layout import CARD_FILE
from schemas.rows import features_metadata, read_features

if TYPE_CHECKING:
    from datasets import Features

INTRODUCTION = """# Per-token entropy labels

Every token of these documents stands beside an estimate of how much information it carries, in nats. Labels are rounded
to 1/128 nat; no special tokens were added; all other columns are the source's.
"""
SIZES = {
    1e3: "n<1K",
    1e4: "1K<n<10K",
    1e5: "10K<n<100K",
    1e6: "100K<n<1M",
    1e7: "1M<n<10M",
    1e8: "10M<n<100M",
    1e9: "100M<n<1B",
    1e10: "1B<n<10B",
    1e11: "10B<n<100B",
    1e12: "100B<n<1T",
}

LOG = logging.getLogger(__name__)


def dataset_card(facts: SubsetInfo, existing: str | None, place: str = CARD_FILE) -> str:
    """Markdown with the front matter that `datasets` and the Hub read: a new card, or an existing one with new figures.

    Raises:
        ValueError: if the existing one, which is at `place`, cannot be read or has broken marks of the section, or a
            column's type is none of `datasets`.
    """
    card = parsed(existing or f"{EMPTY}{INTRODUCTION}", place)
    _describe(card, facts)
    body = _with_section(card.text, facts.subset.name, section(facts), place)
    return f"---\n{card.data.to_yaml()}\n---\n{body.lstrip()}"


def folder_card(facts: SubsetInfo) -> str:
    """The card of a folder, brought up to date.

    Raises:
        ValueError: as dataset_card does, or if the one that is there is not UTF-8.
    """
    file = facts.subset.card
    return dataset_card(facts, read_readme(file), str(file))


def write_card(facts: SubsetInfo) -> None:
    """Brings the card of a folder up to date; one that was broken since the run began stays as it is."""
    try:
        write_text(facts.subset.card, folder_card(facts))
    except ValueError as error:
        LOG.warning("the card is not brought up to date, all else is: %s", error)


def _describe(card: DatasetCard, facts: SubsetInfo) -> None:
    """The front matter.

    The digest of the shards stands in the configuration's description because `datasets` (5.2) names its cache after
    the folder's last name and the configuration alone: `a/annotated` would be given out for `b/annotated`.
    """
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs

    name, counts = facts.subset.name, facts.counts
    default = MetadataConfigs.from_dataset_card_data(card.data).get_default_config_name()
    configs = {config["config_name"]: config for config in card.data.get("configs") or []}
    if default is not None:  # a single one is it without saying so
        configs[default] = {**configs[default], "default": True}
    entry: dict[str, object] = {
        "config_name": name,
        "description": f"{facts.provenance.method} labels, shards {facts.shards_sha256 or 'not all written yet'}",
        "data_files": [{"split": "train", "path": f"{facts.subset.in_repository.data.as_posix()}/**/*.parquet"}],
    }
    if default == name or not configs:
        entry["default"] = True
    card.data["configs"] = list({**configs, name: entry}.values())
    info = DatasetInfo(features=_features(facts.schema))
    if counts is not None:
        split = SplitInfo(name="train", num_bytes=counts.arrow_bytes, num_examples=counts.rows)
        info.splits, info.download_size = SplitDict({"train": split}), facts.size
        info.dataset_size = counts.arrow_bytes
    DatasetInfosDict({name: info}).to_dataset_card_data(card.data)
    _add_missing(card, facts)


def _features(schema: pa.Schema) -> "Features | None":
    """What `datasets` knows of the columns; None where YAML cannot say it, and `datasets` reads it from the shards.

    Raises:
        ValueError: if it cannot load a column.
    """
    from datasets import Features

    features = Features({field.name: _feature(field, schema) for field in schema})
    try:
        told = Features._from_yaml_list(yaml.safe_load(yaml.safe_dump(features._to_yaml_list())))
    except (ValueError, TypeError, KeyError, AttributeError):  # as for a column `_type`, by which it marks types
        return None
    return features if told == features else None


def _feature(field: pa.Field, schema: pa.Schema) -> object:
    """What `datasets` makes of a column."""
    from datasets import Features

    known = read_features(schema, "the source")
    metadata = features_metadata({field.name: known[field.name]} if field.name in known else {})
    # Read anew, a field that names an extension type of `datasets` has it.
    stored = pa.ipc.read_schema(pa.schema([field], metadata=metadata).serialize())
    try:
        return Features.from_arrow_schema(stored)[field.name]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "leave it out by naming others with --columns"
        raise ValueError(f"`datasets` cannot load the column {field.name}, {field.type}; {remedy}") from error


def _add_missing(card: DatasetCard, facts: SubsetInfo) -> None:
    infos = card.data["dataset_info"]
    infos = infos if isinstance(infos, list) else [infos]
    names = [config["config_name"] for config in card.data["configs"]]
    others = [name for name in names if not _is_ours(name, card, facts)]
    splits = [split for info in infos for split in info.get("splits") or []]
    known = all("num_examples" in split for split in splits)
    if known and set(others) <= {info.get("config_name", "default") for info in infos}:
        rows = sum(split["num_examples"] for split in splits)
        card.data["size_categories"] = [next((size for most, size in SIZES.items() if rows < most), "n>1T")]
    wanted = {"tags": ["token-entropy"]} if others else _wanted(card, facts)
    for key, value in wanted.items():
        if value and not card.data.get(key):
            card.data[key] = value


def _is_ours(name: str, card: DatasetCard, facts: SubsetInfo) -> bool:
    """False for data that somebody put into the repository, of which nothing is claimed here."""
    return name == facts.subset.name or f"<!-- begin {name} " in card.text


def _wanted(card: DatasetCard, facts: SubsetInfo) -> dict[str, object]:
    return {
        "pretty_name": "Per-token entropy labels",
        "annotations_creators": ["machine-generated"],
        "task_categories": ["text-generation"],
        **(facts.source.license.front_matter() if facts.source.license and not card.data.get("license") else {}),
        "language": list(facts.source.languages),
        "source_datasets": list(facts.source.datasets),
        "tags": ["token-entropy"],
    }


def _with_section(text: str, name: str, content: str, readme: str) -> str:
    """The text with a subset's section, in place of an older one that nobody edited, or else at the end.

    Raises:
        ValueError: if the marks around the older one are not one of each.
    """
    whole = f"<!-- begin {name} {_digest(content)} -->\n{content}\n<!-- end {name} -->"
    place = re.escape(name)
    found = re.search(rf"<!-- begin {place} ([0-9a-f]+) -->\n(.*?)\n<!-- end {place} -->", text, re.DOTALL)
    if marks(text, name) != (["begin", "end"] if found else []):
        remedy = "delete the section, all its marks (`<!-- begin`, `<!-- end`) too, to have it written anew"
        raise ValueError(f"the section on {name} in {readme} is not between one mark of each kind; {remedy}")
    if found is None:
        return f"{text.rstrip()}\n\n{whole}\n"
    if found[1] != _digest(found[2]):
        LOG.warning("the card's section on %s was edited by hand and stays; delete it to have it written anew", name)
        return text
    return text[: found.start()] + whole + text[found.end() :]


def _digest(content: str) -> str:
    return sha256(content.encode()).hexdigest()[:16]
