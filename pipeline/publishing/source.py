"""What the Hub says of the datasets that documents came from: their licence and languages."""

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import HfApi, parse_hf_uri

from pipeline.data.locations import HUB
from pipeline.data.reaching import reaching


@dataclass(frozen=True)
class SourceFacts:
    """Of all inputs together."""

    datasets: tuple[str, ...] = ()
    """Names on the Hub."""
    license: str | None = None
    """Where all of them have the same."""
    languages: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Where the documents come from, for a card."""
        if not self.datasets:
            return (
                "The documents come from files outside the Hub, whose licence is not known here and holds for this too."
            )
        named = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in self.datasets)
        licence = f"whose licence is {self.license}" if self.license else "whose licences their cards tell"
        return f"The documents are those of {named}, {licence} and holds for this dataset too."


def source_facts(inputs: Sequence[str]) -> SourceFacts:
    """What the cards of those inputs say that are datasets of the Hub.

    Raises:
        ConnectionError: if the Hub cannot be reached.
    """
    names = tuple(dict.fromkeys(parse_hf_uri(url).id for url in filter(_on_hub, inputs)))
    cards = [_card(name) for name in names]
    licenses = {str(card["license"]) for card in cards if card.get("license")}
    languages = [language for card in cards for language in _listed(card.get("language"))]
    same = len(licenses) == 1 and all(card.get("license") for card in cards) and all(map(_on_hub, inputs))
    return SourceFacts(names, licenses.pop() if same else None, tuple(dict.fromkeys(languages)))


def _on_hub(url: str) -> bool:
    return url.startswith(HUB)


def _card(name: str) -> dict[str, object]:
    with reaching(f"{HUB}{name}"):
        data = HfApi().dataset_info(name).card_data
    return dict(data.to_dict()) if data is not None else {}  # type: ignore[no-untyped-call]


def _listed(value: object) -> list[str]:
    return [value] if isinstance(value, str) else [str(each) for each in value] if isinstance(value, list) else []
