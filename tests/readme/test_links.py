"""Every link of every page leads somewhere."""

from pathlib import Path

import pytest

from tests.readme.document import ROOT, Document

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Links into the API reference are not checked here: `make docs` writes the reference and checks them."""

    def leads_nowhere(link: str) -> bool:
        if link.startswith(("https://", "api/")):
            return False
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        return not target.exists() or bool(
            anchor and anchor not in Document(target.read_text(encoding="utf-8")).anchors
        )

    assert [link for link in Document(page.read_text(encoding="utf-8")).links if leads_nowhere(link)] == []
