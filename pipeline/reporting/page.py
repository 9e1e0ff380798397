"""The page of an annotated dataset: one file of HTML that fetches nothing, its figures as JSON inside.

Documents are strangers' text. They are in the page as JSON that no `<` can leave, they become text nodes, never markup,
and the page's policy lets no script run but its own.
"""

import base64
import hashlib
import json
from pathlib import Path
from string import Template

from pipeline.data.annotated import find_annotations
from pipeline.data.atomic import write_text
from pipeline.data.tokenizer import load_tokenizer
from pipeline.reporting.contents import page_contents
from pipeline.reporting.extent import Extent
from pipeline.reporting.figures import Values
from pipeline.reporting.palette import palette_css
from pipeline.reporting.sampling import LabelledSource
from pipeline.reporting.view import ASSETS

PAGE_FILE = "report.html"
SCRIPTS = ("document.js", "charts.js", "page.js")
USUAL = Extent()


def write_report(
    dataset: str, folder: Path, *, against: str | None = None, by: str | None = None, extent: Extent = USUAL
) -> Path:
    """Writes `report.html` into the folder, where it may replace an earlier one of the dataset; returns its path.

    `dataset` is what find_annotations takes. With `against`, the same documents' labels in another dataset stand beside
    its own. Documents are counted by the values of the source's column `by`, or of the first that has few.

    Raises:
        ValueError: as find_annotations and page_contents do, if the datasets' documents are not the same, or if the
            folder has a `report.html` that shows something else.
        ConnectionError: if the Hub cannot be reached.
    """
    found, page = find_annotations(dataset), folder / PAGE_FILE
    digest = hashlib.sha256(found.place.encode()).hexdigest()  # a path of this machine is in no page
    if page.exists() and f'<meta name="annotated-dataset" content="{digest}">' not in page.read_text(
        errors="replace", encoding="utf-8"
    ):
        raise ValueError(f"{page} is there already and shows something else than {dataset}; choose another folder")
    source = LabelledSource.of(found, None if against is None else find_annotations(against))
    tokenizer = None if found.tokenizer is None else load_tokenizer(found.tokenizer)
    write_text(page, page_html(page_contents(source, tokenizer, extent, by), digest))
    return page


def page_html(contents: Values, dataset: str) -> str:
    """A whole page of what page_contents gives, marked with the dataset's digest."""
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return Template((ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        style=palette_css()
        + "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("tokens.css", "page.css")),
        dataset=dataset,
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        contents=_harmless(json.dumps(contents, ensure_ascii=False, allow_nan=False, separators=(",", ":"))),
    )


def _harmless(values: str) -> str:
    """JSON that ends no element and begins none, and means the same."""
    return values.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
