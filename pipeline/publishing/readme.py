"""The README.md that a folder or a repository has before a card is written into it.

Anybody may have written it. It is read before anything is labelled, and one that a card cannot be added to is refused
by its name.
"""

import re
from collections import Counter
from pathlib import Path

import yaml
from huggingface_hub import DatasetCard

MOST_VALUES = 1_000_000  # of front matter, aliases written out
EMPTY = "---\n{}\n---\n"
REMEDY = "mend it, or delete it to have a new one written"
BEGINS = re.compile(r"\s*---[ \t]*\r?\n")
MARK = r"<!--\s*({kind})\s+{name}(?:\s[^\n>]*)?-->"


def read_readme(file: Path | None) -> str | None:
    """The text of a README.md; None where there is none.

    Raises:
        ValueError: if it is not UTF-8.
    """
    if file is None or not file.is_file():
        return None
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason}); {REMEDY}") from error


def parsed(text: str, place: str) -> DatasetCard:
    """The card in a README.md at a place, its front matter as `datasets` must find it.

    Raises:
        ValueError: if the front matter is not YAML, does not end, or describes no configurations and datasets.
    """
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs

    try:
        card = DatasetCard(text if BEGINS.match(text) else f"{EMPTY}{text}", ignore_metadata_errors=True)
        if BEGINS.match(text) and card.text == text:
            raise ValueError("no line of --- ends it")
        values = vars(card.data)
        if _written_out(values, {}) >= MOST_VALUES:
            raise ValueError("its aliases hold one another")
        if repeated := _repeated(text.removesuffix(card.text)):
            raise ValueError(f"it has {', '.join(repeated)} more than once")
        if not isinstance(values.get("dataset_info", {}), dict | list):
            raise ValueError("dataset_info is neither a mapping nor a list")
        MetadataConfigs.from_dataset_card_data(card.data)
        DatasetInfosDict.from_dataset_card_data(card.data)
    except Exception as error:  # YAML, the Hub and `datasets` raise many kinds
        raise ValueError(f"the front matter of {place} cannot be read: {_told(error)}; {REMEDY}") from error
    return card


def marks(text: str, name: str) -> list[str]:
    """The marks around a subset's section, each `begin` or `end`, in their order."""
    return re.findall(MARK.format(kind="begin|end", name=re.escape(name)), text)


def _written_out(value: object, known: dict[int, int]) -> int:
    """Number of values, those behind an alias counted each time; MOST_VALUES at least of one that holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_VALUES
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(value)]


def _repeated(front_matter: str) -> list[str]:
    """Keys that a mapping has twice: of these YAML reads the last, and the others would be lost."""
    nodes, found, seen = list(yaml.compose_all(front_matter, yaml.SafeLoader)), list[str](), set[int]()
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            found += [key for key, times in keys.items() if times > 1]
            nodes += [value for _, value in node.value]
        else:
            nodes += node.value
    return found


def _told(error: Exception) -> str:
    message = f"{type(error).__name__} {error}" if isinstance(error, KeyError | RecursionError) else str(error)
    return " ".join(message.split())
