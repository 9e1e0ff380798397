"""The page in a real browser: nothing on its console, figures on hover and focus, documents that can do no harm."""

import shutil
from collections.abc import Iterator
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
