"""The datasets of the Hub that documents came from: their licence and languages, as their cards tell them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from huggingface_hub import HfApi, parse_hf_uri

from pipeline.data.files import HUB
from pipeline.data.remote import reaching
from pipeline.messages import in_markdown

PAGES = "https://huggingface.co/datasets"


@dataclass(frozen=True)
class License:
    """Identifiers of one or several licences and, where one is `other`, its name and the place of its text."""

    ids: tuple[str, ...]
    name: str | None = None
    link: str | None = None

    @classmethod
    def of(cls, card: Mapping[str, object], dataset: str) -> "License | None":
        """The licence that a dataset's card tells, with an absolute URL of its text; None where it tells none."""
        ids = tuple(_listed(card.get("license")))
        name, link = (next(iter(_listed(card.get(key))), None) for key in ("license_name", "license_link"))
        in_dataset = link is not None and "://" not in link
        return cls(ids, name, f"{PAGES}/{dataset}/blob/main/{link}" if in_dataset else link) if ids else None

    @property
    def says_which(self) -> bool:
        """False for an `other` without a text to compare: two of these may be two licences."""
        return "other" not in self.ids or self.link is not None

    def front_matter(self) -> dict[str, object]:
        """The same as a card has it: a list only where there are several, as the Hub wants it."""
        told: dict[str, object] = {"license": list(self.ids) if len(self.ids) > 1 else self.ids[0]}
        return told | {key: value for key, value in (("license_name", self.name), ("license_link", self.link)) if value}

    @property
    def in_markdown(self) -> str:
        """The names, and the place of the text, as words of a card."""
        named = " and ".join(self.name or id if id == "other" else id for id in self.ids)
        return in_markdown(f"{named} ({self.link})" if self.link else named)


@dataclass(frozen=True)
class SourceFacts:
    """Of all inputs together."""

    datasets: tuple[str, ...] = ()
    """Names on the Hub."""
    license: License | None = None
    """Where all of them have the same."""
    languages: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Where the documents come from, for a card."""
        if not self.datasets:
            return (
                "The documents come from files outside the Hub, whose licence is not known here and holds for this too."
            )
        named = ", ".join(f"[{in_markdown(name)}]({PAGES}/{quote(name)})" for name in self.datasets)
        licence = f"whose licence is {self.license.in_markdown}" if self.license else "whose licences their cards tell"
        return f"The documents are those of {named}, {licence} and holds for this dataset too."


def source_facts(inputs: Sequence[str]) -> SourceFacts:
    """What the cards of those inputs say that are datasets of the Hub.

    Raises:
        ConnectionError: if the Hub cannot be reached.
    """
    names = tuple(dict.fromkeys(parse_hf_uri(url).id for url in filter(_on_hub, inputs)))
    cards = [_card(name) for name in names]
    licenses = set(map(License.of, cards, names))
    languages = [language for card in cards for language in _listed(card.get("language"))]
    first = next(iter(licenses), None)
    same = len(licenses) == 1 and all(map(_on_hub, inputs)) and (len(names) == 1 or (first and first.says_which))
    return SourceFacts(names, first if same else None, tuple(dict.fromkeys(languages)))


def _on_hub(url: str) -> bool:
    return url.startswith(HUB)


def _card(name: str) -> dict[str, object]:
    with reaching(f"{HUB}{name}"):
        data = HfApi().dataset_info(name).card_data
    return dict(data.to_dict()) if data is not None else {}  # type: ignore[no-untyped-call]


def _listed(value: object) -> list[str]:
    return [value] if isinstance(value, str) else [str(each) for each in value] if isinstance(value, list) else []
