"""Card of an annotated dataset: a README.md with front matter for `datasets` and the Hub, and a section per subset.

A subset's section is enclosed by two comments. The first comment contains a digest of the section, so that edits by
hand are noticed. When a subset is updated, its section is rewritten unless it was edited, and the text outside the
section is kept. In the front matter, the subset's entries and the size category are overwritten, and missing keys are
added.
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
from pipeline.publish.section import INTRODUCTION, SubsetInfo, section
from schemas.layout import CARD_FILE
from schemas.rows import features_metadata, read_features

if TYPE_CHECKING:
    from datasets import Features

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

BREAKS = re.compile("[\x85\u2028\u2029]")

LOG = logging.getLogger(__name__)


def dataset_card(info: SubsetInfo, existing: str | None, file: str = CARD_FILE) -> str:
    """Return the existing card with this subset updated, or a new card. `file` is the card's name in errors.

    Raises:
        ValueError: if the existing card cannot be read, if the comments around the subset's section are broken, or if
            `datasets` cannot load a column.
    """
    card = parsed(existing or f"{EMPTY}{INTRODUCTION}", file)
    _update_front_matter(card, info)
    body = _with_section(card.text, info.subset.name, section(info), file)
    return f"---\n{_yaml(card)}\n---\n{body.lstrip()}"


def folder_card(info: SubsetInfo) -> str:
    """Return the updated text of the card in the subset's folder, without writing the file.

    Raises:
        ValueError: as `dataset_card`, or if the existing card is not UTF-8.
    """
    file = info.subset.card
    return dataset_card(info, read_readme(file), str(file))


def write_card(info: SubsetInfo) -> None:
    """Update the card in the subset's folder. If the card was broken during the run, keep it and log a warning."""
    try:
        write_text(info.subset.card, folder_card(info))
    except ValueError as error:
        LOG.warning("the card is not updated, everything else is: %s", error)


def _yaml(card: DatasetCard) -> str:
    """Return the front matter as YAML.

    Unicode line breaks are escaped, because PyYAML writes them unescaped but reads them as spaces.
    """
    written: str = card.data.to_yaml()
    if BREAKS.search(written):
        values = card.data.to_dict()  # type: ignore[no-untyped-call]
        written = yaml.safe_dump(values, sort_keys=False).rstrip()
    return written


def _update_front_matter(card: DatasetCard, info: SubsetInfo) -> None:
    """Write the subset's configuration and features into the front matter, and add missing keys.

    The configuration's description contains the digest of the shards, because `datasets` (5.2) names its cache only
    after the configuration and the last component of the folder's path. Without the digest, the cached `a/annotated`
    would be loaded instead of `b/annotated`.
    """
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs

    name, counts = info.subset.name, info.counts
    default = MetadataConfigs.from_dataset_card_data(card.data).get_default_config_name()
    configs = {config["config_name"]: config for config in card.data.get("configs") or []}
    if default is not None:  # a configuration without this flag is only the default while it is the only one
        configs[default] = {**configs[default], "default": True}
    entry: dict[str, object] = {
        "config_name": name,
        "description": f"{info.provenance.method} labels, shards {info.shards_sha256 or 'not all written yet'}",
        "data_files": [{"split": "train", "path": f"{info.subset.in_repository.data.as_posix()}/**/*.parquet"}],
    }
    if default == name or not configs:
        entry["default"] = True
    card.data["configs"] = list({**configs, name: entry}.values())
    dataset_info = DatasetInfo(features=_features(info.schema))
    if counts is not None:
        split = SplitInfo(name="train", num_bytes=counts.arrow_bytes, num_examples=counts.rows)
        dataset_info.splits, dataset_info.download_size = SplitDict({"train": split}), info.size
        dataset_info.dataset_size = counts.arrow_bytes
    DatasetInfosDict({name: dataset_info}).to_dataset_card_data(card.data)
    _add_missing(card, info)


def _features(schema: pa.Schema) -> "Features | None":
    """Return the columns as `datasets` features, or None if YAML cannot express them.

    Without features in the card, `datasets` reads the columns from the shards.

    Raises:
        ValueError: if `datasets` cannot load a column.
    """
    from datasets import Features

    features = Features({field.name: _feature(field, schema) for field in schema})
    try:
        read = Features._from_yaml_list(yaml.safe_load(yaml.safe_dump(features._to_yaml_list())))
    except (ValueError, TypeError, KeyError, AttributeError):  # for example if a column has the reserved name `_type`
        return None
    return features if read == features else None


def _feature(field: pa.Field, schema: pa.Schema) -> object:
    """Return a column as a feature of `datasets`.

    Raises:
        ValueError: if `datasets` cannot load the column.
    """
    from datasets import Features

    known = read_features(schema, "the source")
    metadata = features_metadata({field.name: known[field.name]} if field.name in known else {})
    # A field that names an extension type of `datasets` gets that type when the schema is read back.
    stored = pa.ipc.read_schema(pa.schema([field], metadata=metadata).serialize())
    try:
        return Features.from_arrow_schema(stored)[field.name]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "leave it out by naming others with `columns`"
        raise ValueError(f"`datasets` cannot load the column {field.name}, {field.type}; {remedy}") from error


def _add_missing(card: DatasetCard, info: SubsetInfo) -> None:
    """Write the size category, and add missing keys.

    If the repository also has data without labels, `tags` is the only key that is added. The remaining keys would
    describe the unlabelled data too.
    """
    names = [config["config_name"] for config in card.data["configs"]]
    others = [name for name in names if not _is_ours(name, card, info)]
    _update_size(card, others)
    missing = {"tags": ["token-entropy"]} if others else _defaults(card, info)
    for key, value in missing.items():
        if value and not card.data.get(key):
            card.data[key] = value


def _update_size(card: DatasetCard, others: list[str]) -> None:
    """Write the size category, computed from the number of rows of all data in the repository.

    Nothing is written if the card lacks the number of rows of a configuration. `others` are the names of the
    configurations with unlabelled data.
    """
    infos = card.data["dataset_info"]
    infos = infos if isinstance(infos, list) else [infos]
    splits = [split for info in infos for split in info.get("splits") or []]
    known = all("num_examples" in split for split in splits)
    if known and set(others) <= {info.get("config_name", "default") for info in infos}:
        rows = sum(split["num_examples"] for split in splits)
        card.data["size_categories"] = [next((size for most, size in SIZES.items() if rows < most), "n>1T")]


def _is_ours(name: str, card: DatasetCard, info: SubsetInfo) -> bool:
    """True if the configuration `name` is an annotated subset; False for data without labels in the repository."""
    return name == info.subset.name or f"<!-- begin {name} " in card.text


def _defaults(card: DatasetCard, info: SubsetInfo) -> dict[str, object]:
    origin = info.origin
    return {
        "pretty_name": "Per-token entropy labels",
        "annotations_creators": ["machine-generated"],
        "task_categories": ["text-generation"],
        **(origin.license.front_matter() if origin.license and not card.data.get("license") else {}),
        "language": list(origin.languages),
        "source_datasets": list(origin.datasets),
        "tags": ["token-entropy"],
    }


def _with_section(text: str, name: str, content: str, file: str) -> str:
    """Return the card's text with the section of a subset, which replaces an older section or is added at the end.

    An older section that was edited by hand is kept.

    Raises:
        ValueError: if the older section is not between exactly one begin mark and one end mark.
    """
    whole = f"<!-- begin {name} {_digest(content)} -->\n{content}\n<!-- end {name} -->"
    escaped = re.escape(name)
    older = re.search(rf"<!-- begin {escaped} ([0-9a-f]+) -->\n(.*?)\n<!-- end {escaped} -->", text, re.DOTALL)
    if marks(text, name) != (["begin", "end"] if older else []):
        remedy = "delete the section with all its marks to have it rewritten"
        raise ValueError(
            f"the section on {name} in {file} is not between one `<!-- begin` and one `<!-- end` mark; {remedy}"
        )
    if older is None:
        return f"{text.rstrip()}\n\n{whole}\n"
    if older[1] != _digest(older[2]):
        LOG.warning("the card's section on %s was edited by hand and is kept; delete it to have it rewritten", name)
        return text
    return text[: older.start()] + whole + text[older.end() :]


def _digest(content: str) -> str:
    return sha256(content.encode()).hexdigest()[:16]
