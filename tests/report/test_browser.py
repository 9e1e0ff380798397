"""The page in a real browser: an empty console, figures on hover and focus, and documents that cannot do harm."""

import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from pipeline.messages import UNSAFE
from pipeline.report.page import write_report
from pipeline.report.palette import DARK, LIGHT, level_class
from schemas.annotations import SHIPPED_MODEL
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
    """An opened page with its contents, the errors on its console, and its requests to the network."""

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
    expect(report.page.locator("#hits")).to_have_text("no hits")
    expect(report.page.locator("#picker option")).to_have_count(len(TEXTS))
    assert document.text_content() == TEXTS[5]
    report.page.click("#previous")
    expect(report.page.locator("#picker")).to_have_value("4")
    expect(report.page.locator("#hits")).to_have_text("no hits")


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
    expect(page.locator("#hits")).to_have_text("")
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


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_text_of_charts_keeps_its_size_at_every_width(report: Opened, width: int) -> None:
    report.page.select_option("#picker", "5")
    report.page.set_viewport_size({"width": width, "height": 844})
    for name in ("course", "histogram", "positions"):
        chart = report.page.locator(f"#{name} svg")
        width_now = f"document.querySelector('#{name} svg').getBoundingClientRect().width"
        drawn_for = f"Number(document.querySelector('#{name} svg').getAttribute('viewBox').split(' ')[2])"
        report.page.wait_for_function(f"Math.abs({width_now} - {drawn_for}) < 1", timeout=10_000)
        sizes = "svg => parseFloat(getComputedStyle(svg.querySelector('text')).fontSize) * svg.getScreenCTM().a"
        assert chart.evaluate(sizes) >= 11
        boxes = chart.locator("text").evaluate_all("texts => texts.map(text => text.getBoundingClientRect())")
        assert all(box["left"] >= 0 and box["right"] <= width for box in boxes)
        assert not [(one, other) for one, other in combinations(boxes, 2) if overlap(one, other)]
    assert report.page.evaluate("document.documentElement.scrollWidth") <= width


def overlap(one: dict[str, float], other: dict[str, float]) -> bool:
    """Return whether two boxes overlap by more than a pixel in width and in height."""
    across = min(one["right"], other["right"]) - max(one["left"], other["left"])
    down = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return across > 1 and down > 1


@pytest.mark.parametrize("width", [390, 1280])
def test_the_search_field_is_as_wide_as_the_page_or_makes_room_for_its_hits(report: Opened, width: int) -> None:
    report.page.set_viewport_size({"width": width, "height": 844})
    edges = "ids => ids.map(id => document.getElementById(id).getBoundingClientRect()).map(box => [box.right, box.top])"
    (search, _), (legend, _) = report.page.evaluate(edges, ["search", "legend"])
    assert search == pytest.approx(legend, abs=1)
    report.page.fill("#search", "nowhere to be found")
    (search, top), (hits, beside) = report.page.evaluate(edges, ["search", "hits"])
    assert hits == pytest.approx(legend, abs=1) and search < hits and abs(beside - top) < 20


def test_every_dot_is_the_mean_of_enough_labels(browser: Browser, tmp_path: Path) -> None:
    """Each place has three labels, one in each of three documents.

    A dot needs at least 10 labels, so the first dot is the mean of the places 1 to 4.
    """
    labels = [[float(place) for place in range(70)]] * 3
    report = opened(browser, write_report(str(write_annotated(tmp_path, [[1] * 70] * 3, labels)), tmp_path / "page"))
    titles = report.page.locator("#positions circle title").all_text_contents()
    assert titles[:2] == ["tokens 1 to 4: 1.50 nats, 12 labels", "tokens 5 to 8: 5.50 nats, 12 labels"]
    counts = [int(title.split(", ")[1].removesuffix(" labels")) for title in titles]
    assert sum(counts) == 210 and min(counts) >= report.contents["least"]
    expect(report.page.locator("#positions-told")).to_contain_text("of at least 10 labels")
    assert report.page.locator("#positions text").first.text_content()
    report.page.close()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    one, other = (write_texts(tmp_path_factory.mktemp("dataset"), seed=seed) for seed in (0, 1))
    return write_report(str(one), tmp_path_factory.mktemp("page"), against=str(other))


def test_on_a_phone_two_texts_stand_together_and_show_the_same_lines(browser: Browser, comparison: Path) -> None:
    report = opened(browser, comparison)
    report.page.set_viewport_size({"width": 390, "height": 600})
    report.page.select_option("#picker", "5")
    one, other = (report.page.locator("#panes .document").nth(place) for place in (0, 1))
    tops = [box["y"] for box in (one.bounding_box(), other.bounding_box()) if box]
    assert 0 < tops[1] - tops[0] < 300
    for moved, follows in ((one, other), (other, one)):
        moved.evaluate("text => { text.scrollTop = text.scrollTop ? 15 : 40 }")
        at = moved.evaluate("text => text.scrollTop")
        assert at
        report.page.wait_for_function(f"text => text.scrollTop === {at}", arg=follows.element_handle())
    assert not report.complaints
    report.page.close()


def test_agreement_is_told_in_the_unit_that_is_chosen(browser: Browser, comparison: Path) -> None:
    report, told = opened(browser, comparison), "#agreement p"
    figures = report.contents["agreement"]
    for unit, nats in (("nats", 1), ("bits", math.log(2))):
        report.page.click(f"#{unit}")
        difference, apart = abs(figures["difference"]) / nats, figures["absolute_difference"] / nats
        expect(report.page.locator(told)).to_contain_text(f"{difference:.3f} {unit} ")
        expect(report.page.locator(told)).to_contain_text(f"{apart:.3f} {unit} apart (mean absolute difference)")
    said = f"squared correlation {figures['squared_correlation']:.3f}, R² {figures['r_squared']:.3f} (of "
    expect(report.page.locator(told)).to_contain_text(said.replace("-", "−"))
    report.page.close()


def test_an_empty_table_says_why_and_is_not_stretched(browser: Browser, tmp_path: Path) -> None:
    for times, other_nats, told in (
        (10, 0.0, ["No token of those that occur 10 times."]),
        (9, 0.0, ["No token occurs 10 times in the sample."] * 2),
    ):
        tokens = [[token] * times for token in range(8)]
        one, other = (
            write_annotated(tmp_path / f"{name}-{times}", tokens, [[nats] * times] * 8)
            for name, nats in (("one", 1.0), ("other", other_nats))
        )
        report = opened(browser, write_report(str(one), tmp_path / f"page-{times}", against=str(other)))
        empty = report.page.locator("#agreement table", has_text="No token")
        expect(empty.locator("td")).to_have_text(told)
        assert empty.first.evaluate("table => table.offsetHeight") < 100
        report.page.close()


def test_flags_are_not_broken(browser: Browser, tmp_path: Path) -> None:
    dataset = write_annotated(tmp_path, [[1]], [[1.0]], model=SHIPPED_MODEL)
    report = opened(browser, write_report(str(dataset), tmp_path / "page"))
    expect(report.page.locator("#model")).to_have_text(f"Labels by {SHIPPED_MODEL}.")
    expect(report.page.locator("#told code")).to_have_text(["--method", "--estimator NAME"])
    assert report.page.locator("#told code").first.evaluate("code => getComputedStyle(code).whiteSpace") == "nowrap"
    report.page.close()


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


@pytest.mark.long
def test_two_hundred_long_documents_open_at_once(browser: Browser, tmp_path: Path) -> None:
    """The time to open the page is measured as processor time, which other programs do not increase."""
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
