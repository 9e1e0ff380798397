"""The page in a real browser: nothing on its console, figures on hover and focus, documents that can do no harm."""

import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from pipeline.messages import UNSAFE
from pipeline.report.page import write_report
from pipeline.report.palette import DARK, LIGHT, level_class
from tests.annotated import write_annotated
from tests.report.labelled_texts import HOSTILE, TEXTS, write_texts
from tests.report.test_page import contents_of, nats_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SECONDS_TO_OPEN, MILLISECONDS_TO_WAIT = 2, 120_000

expect.set_options(timeout=MILLISECONDS_TO_WAIT)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]


@dataclass
class Opened:
    """A page, what it holds, and whatever it complained of or asked the network for."""

    page: Page
    contents: dict[str, Any]
    complaints: list[str] = field(default_factory=list)

    def tokens(self, pane: int = 0) -> Locator:
        return self.page.locator(".document").nth(pane).locator(".t")

    def tip(self) -> Locator:
        return self.page.locator("#tip")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=MILLISECONDS_TO_WAIT)
        yield browser
        browser.close()


def opened(browser: Browser, file: Path, scheme: Literal["light", "dark"] = "light") -> Opened:
    page = browser.new_page(color_scheme=scheme)
    page.set_default_timeout(MILLISECONDS_TO_WAIT)
    found = Opened(page, contents_of(file))
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("request", lambda request: found.complaints.extend([] if request.url == file.as_uri() else [request.url]))
    page.goto(file.as_uri())
    expect(page.locator("#title")).to_have_text(found.contents["title"])
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(str(write_texts(tmp_path_factory.mktemp("dataset"))), tmp_path_factory.mktemp("page"))


@pytest.fixture
def report(browser: Browser, file: Path) -> Iterator[Opened]:
    found = opened(browser, file)
    yield found
    assert not found.complaints
    found.page.close()


def test_a_token_tells_its_figures_on_hover(report: Opened) -> None:
    shown = report.contents["documents"][0]
    entropies, expected = (nats_of(report.contents, labels) for labels in shown["labels"])
    place = next(
        place for place, (one, other) in enumerate(zip(entropies, expected, strict=True)) if place and one and other
    )
    report.tokens().nth(place).hover()
    bits = sum(nats or 0 for nats in entropies[: place + 1]) / 0.6931471805599453
    one, other = entropies[place], expected[place]
    assert one is not None and other is not None
    text = report.contents["texts"][shown["tokens"][place]]
    for told in (f'"{text}"', f"entropy{one:.2f} nats", f"expected entropy{other:.2f} nats", f"so far{bits:.1f} bits"):
        expect(report.tip()).to_contain_text(told.replace("-", "−"))


def test_a_missing_label_is_told_and_looks_other_than_zero(report: Opened) -> None:
    labels = report.contents["documents"][5]["labels"][0]
    report.page.select_option("#picker", "5")
    missing, zero = labels.index(None), labels.index(0)
    report.tokens().nth(missing).hover()
    expect(report.tip()).to_contain_text("no label")
    most = max(report.contents["measures"][0]["scale"][1], -report.contents["measures"][0]["scale"][0])
    classes = report.page.eval_on_selector_all(
        "#panes .t", "tokens => tokens.map(token => (token.querySelector('b') ?? token).classList.value)"
    )
    assert [each.removeprefix("t ").removesuffix(" part") for each in classes] == [
        level_class(nats, most) for nats in nats_of(report.contents, labels)
    ]
    looks = [
        report.tokens()
        .nth(place)
        .evaluate("token => getComputedStyle(token.querySelector('b') ?? token).textDecorationLine")
        for place in (missing, zero)
    ]
    assert looks == ["underline", "none"]


def test_the_keyboard_reaches_every_token(report: Opened) -> None:
    report.tokens().first.focus()
    for key, place in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", None), ("Home", 1)):
        report.page.keyboard.press(key)
        size = report.contents["documents"][0]["size"]
        expect(report.tip()).to_contain_text(f"token {place or size} of {size}")
    report.page.keyboard.press("Escape")
    expect(report.tip()).to_be_hidden()


def test_documents_are_picked_by_steps_by_name_and_by_search(report: Opened) -> None:
    document = report.page.locator(".document")
    report.page.click("#next")
    assert document.text_content() == HOSTILE
    report.page.select_option("#picker", "3")
    assert document.text_content() == TEXTS[3]
    report.page.fill("#search", "ON THE CAT")
    assert document.text_content() == TEXTS[5]
    expect(report.page.locator("#next")).to_be_disabled()
    report.page.fill("#search", "nowhere to be found")
    expect(report.page.locator("#picker")).to_have_text("No document has that.")


def test_a_search_counts_marks_and_goes_through_its_hits(report: Opened) -> None:
    page, marked = report.page, report.page.locator("#panes .hit.now")
    page.fill("#search", "the")
    counts = [len(re.findall("the", text, re.IGNORECASE)) for text in TEXTS]
    matching = [place for place, count in enumerate(counts) if count]
    assert len(matching) > 1
    everywhere = f", {sum(counts)} in {len(matching)} documents"
    first = matching[0]
    expect(page.locator("#hits")).to_have_text(f"1 of {counts[first]}{everywhere}")
    expect(marked.first).to_be_in_viewport()
    assert "the" in "".join(marked.all_text_contents()).lower()
    for _ in range(counts[first]):
        page.press("#search", "Enter")
    expect(page.locator("#hits")).to_have_text(f"1 of {counts[matching[1]]}{everywhere}")
    assert page.locator(".document").text_content() == TEXTS[matching[1]]
    page.press("#search", "Shift+Enter")
    expect(page.locator("#hits")).to_have_text(f"{counts[first]} of {counts[first]}{everywhere}")
    page.fill("#search", "")
    expect(page.locator("#panes .hit")).to_have_count(0)
    expect(page.locator("#steps")).to_be_hidden()


def test_documents_are_ordered_by_their_means_and_lengths(report: Opened) -> None:
    shown, page = report.contents["documents"], report.page
    keys: dict[str, Callable[[int], float]] = {
        "longest": lambda place: -shown[place]["size"],
        "highest entropy": lambda place: -shown[place]["means"][0] if shown[place]["labelled"][0] else math.inf,
        "row": lambda place: place,
    }
    for name, key in keys.items():
        page.select_option("#order", label=name)
        options = page.eval_on_selector_all("#picker option", "options => options.map(({ value }) => Number(value))")
        assert options == sorted(range(len(shown)), key=lambda place: (key(place), place))


def test_the_model_is_named(report: Opened) -> None:
    expect(report.page.locator("#model")).to_have_text(f"Labels by {report.contents['model']}.")
    assert report.contents["model"]


def test_a_document_tells_its_cost_and_its_course(report: Opened) -> None:
    shown = report.contents["documents"][0]
    bits = sum(nats or 0 for nats in nats_of(report.contents, shown["labels"][0])) / math.log(2) / shown["bytes"]
    assert shown["bytes"] == len(TEXTS[0].encode()) and shown["labelled"][0] == shown["size"]
    note = report.page.locator("#note")
    expect(note).to_contain_text(f"entropy: mean {shown['means'][0]:.3f} nats, {bits:.3f} bits per byte")
    assert report.page.locator("#course path.line").count() == 1


def test_nothing_stands_next_to_itself_and_every_sign_has_a_swatch(report: Opened) -> None:
    names = [measure["name"] for measure in report.contents["measures"]]
    for place, name in enumerate(names):
        report.page.select_option("#shade", str(place))
        assert report.page.locator("#beside option").all_text_contents() == ["nothing", *(set_without(names, name))]
    assert report.page.locator("#legend .signs .swatch.p0").evaluate("swatch => swatch.offsetWidth") > 8


def set_without(names: list[str], name: str) -> list[str]:
    return [other for other in names if other != name]


def test_pieces_of_a_character_are_drawn_together(report: Opened) -> None:
    (place,) = (place for place, text in enumerate(TEXTS) if "猫" in text)
    report.page.select_option("#picker", str(place))
    together = report.page.locator("#panes .character")
    assert together.count() and all(len(text) == 1 for text in together.all_text_contents())
    assert together.first.evaluate("one => one.children.length") > 1
    assert together.first.evaluate("one => one.getClientRects().length") == 1


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_the_text_begins_in_the_first_half_of_the_screen(browser: Browser, file: Path, width: int, height: int) -> None:
    report = opened(browser, file)
    report.page.set_viewport_size({"width": width, "height": height})
    report.page.reload()
    top = report.page.locator("#panes .document").bounding_box()
    assert top is not None and top["y"] < height / 2
    assert report.page.evaluate("document.documentElement.scrollWidth") <= width
    report.page.close()


def test_documents_of_markup_and_quotes_are_text(report: Opened) -> None:
    for place, text in enumerate(TEXTS):
        report.page.select_option("#picker", str(place))
        shown = UNSAFE.sub(lambda found: found[0] if found[0] in "\n\t" else f"\\u{ord(found[0]):04x}", text)
        assert (report.page.locator(".document").text_content() or "") == (shown or "This document is empty.")
    assert report.page.title() == report.contents["title"] and not report.page.locator("img").count()


def test_the_unit_and_what_is_beside_change_the_figures(report: Opened) -> None:
    entropy, _, difference = report.contents["measures"]
    expect(report.page.locator("#histogram-told")).to_contain_text(f"mean {entropy['mean']:.3f} nats")
    report.page.click("#bits")
    expect(report.page.locator("#histogram-told")).to_contain_text(
        f"mean {entropy['mean'] / 0.6931471805599453:.3f} bits"
    )
    report.page.select_option("#beside", "2")
    expect(report.page.locator(".document")).to_have_count(2)
    expect(report.page.locator("#panes h3")).to_have_text([entropy["name"], difference["name"]])
    report.tokens(1).nth(1).hover()
    expect(report.page.locator("#panes .on")).to_have_count(2)
    assert report.page.locator("#histogram .bar").count() == len(entropy["histogram"]["counts"])


def test_the_page_follows_the_readers_colour_scheme(browser: Browser, file: Path) -> None:
    for scheme, palette in (("light", LIGHT), ("dark", DARK)):
        report = opened(browser, file, "dark" if scheme == "dark" else "light")
        shown = report.page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        assert shown == [f"rgb{(*bytes.fromhex(colour[1:]),)}" for colour in (palette.paper, palette.text)]
        report.page.close()


def test_two_hundred_long_documents_open_at_once(browser: Browser, tmp_path: Path) -> None:
    """In the processor's time, which other programs do not lengthen as they do the clock's."""
    tokens, labels = [[*range(90)] * 18] * 200, [[*(place / 16 for place in range(90))] * 18] * 200
    file = write_report(str(write_annotated(tmp_path, tokens, labels)), tmp_path / "page")
    assert file.stat().st_size < 5e6
    page = browser.new_page()
    page.set_default_timeout(MILLISECONDS_TO_WAIT)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(file.as_uri())
    expect(page.locator("#panes .t")).to_have_count(1500)
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    assert 0 < metrics["ThreadTime"] < SECONDS_TO_OPEN
    page.close()
