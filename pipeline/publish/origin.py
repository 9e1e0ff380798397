"""Origin of documents: names, licence and languages of Hub datasets, as stated in their cards."""

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
    """One or several licences by identifier. The identifier `other` may come with a name and a link to its text."""

    ids: tuple[str, ...]
    name: str | None = None
    link: str | None = None

    @classmethod
    def of(cls, card: Mapping[str, object], dataset: str) -> "License | None":
        """Return the licence in a dataset's card, or None if the card has none. A relative link becomes a URL."""
        ids = tuple(_listed(card.get("license")))
        name, link = (next(iter(_listed(card.get(key))), None) for key in ("license_name", "license_link"))
        in_dataset = link is not None and "://" not in link
        return cls(ids, name, f"{PAGES}/{dataset}/blob/main/{link}" if in_dataset else link) if ids else None

    @property
    def is_definite(self) -> bool:
        """True unless a licence is `other` without a link. Without a link, `other` can stand for any licence."""
        return "other" not in self.ids or self.link is not None

    def front_matter(self) -> dict[str, object]:
        """Return the licence's entries in the front matter of a card.

        As the Hub requires, `license` is a list if there are several licences, and otherwise a string.
        """
        license: dict[str, object] = {"license": list(self.ids) if len(self.ids) > 1 else self.ids[0]}
        named = {"license_name": self.name, "license_link": self.link}
        return license | {key: value for key, value in named.items() if value}

    @property
    def in_markdown(self) -> str:
        """Names of the licences and the link, as Markdown."""
        named = " and ".join(self.name or id if id == "other" else id for id in self.ids)
        return in_markdown(f"{named} ({self.link})" if self.link else named)


@dataclass(frozen=True)
class Origin:
    """Hub datasets among the inputs of a run, with their common licence and all their languages."""

    datasets: tuple[str, ...] = ()
    """Names of the datasets on the Hub."""
    license: License | None = None
    """Licence of all inputs; None if licences differ or a licence is unknown."""
    languages: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Sentences on the origin and the licence, for a card."""
        if not self.datasets:
            licence = "Their licence, unknown here, applies to this dataset too."
            return f"The documents come from files outside the Hub. {licence}"
        named = ", ".join(f"[{in_markdown(name)}]({PAGES}/{quote(name)})" for name in self.datasets)
        own = self.license
        licence = f"The licence, {own.in_markdown}, applies" if own else "The licences in their cards apply"
        return f"The documents come from {named}. {licence} to this dataset too."


def origin_of(inputs: Sequence[str]) -> Origin:
    """Return the origin of a run's documents, read from the cards of the inputs that are datasets on the Hub.

    Raises:
        ConnectionError: if the Hub cannot be reached.
    """
    names = tuple(dict.fromkeys(parse_hf_uri(url).id for url in filter(_on_hub, inputs)))
    cards = [_card(name) for name in names]
    licenses = set(map(License.of, cards, names))
    languages = [language for card in cards for language in _listed(card.get("language"))]
    first = next(iter(licenses), None)
    same = len(licenses) == 1 and all(map(_on_hub, inputs)) and (len(names) == 1 or (first and first.is_definite))
    return Origin(names, first if same else None, tuple(dict.fromkeys(languages)))


def _on_hub(url: str) -> bool:
    return url.startswith(HUB)


def _card(name: str) -> dict[str, object]:
    with reaching(f"{HUB}{name}"):
        data = HfApi().dataset_info(name).card_data
    return dict(data.to_dict()) if data is not None else {}  # type: ignore[no-untyped-call]


def _listed(value: object) -> list[str]:
    return [value] if isinstance(value, str) else [str(each) for each in value] if isinstance(value, list) else []
