"""The report as a person sees it: in headless Chromium, from a file, without a network."""

from __future__ import annotations

import base64
import itertools
import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from interop.proof.model import Skipped, read_report
from interop.proof.report.html import render_html

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Proof

    from interop.peers.programs import Program
    from interop.proof.model import Report


@pytest.fixture
def browser(
    require_program: Callable[[str], Program], tmp_path: Path
) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(require_program("chromium").path)
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,900",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(str(require_program("chromedriver").path))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def open_report(browser: webdriver.Chrome, proof: Proof) -> None:
    browser.get((proof.directory / "report.html").as_uri())


def test_the_matrix_is_drawn_as_the_report_has_it(browser: webdriver.Chrome, proof: Proof) -> None:
    open_report(browser, proof)
    report = json.loads((proof.directory / "report.json").read_bytes())
    assert browser.find_element(By.ID, "verdict").text == "Proved"
    colours: dict[str, set[str]] = {"closed": set(), "opened": set()}
    drawn = {}
    for session, stolen, observed, visible, icon, text, colour in browser.execute_script(DRAWN):
        assert visible
        assert icon > 10
        assert text.split("\n")[0] == observed
        colours[observed].add(colour)
        drawn[session, stolen] = observed
    assert drawn == {
        (cell["session"], cell["stolen"]): cell["observed"] for cell in report["cells"]
    }
    assert len(colours["closed"]) == len(colours["opened"]) == 1
    assert colours["closed"] != colours["opened"]


# Of each cell: whose it is, what it says, and whether and how one sees it. Asked for in one go,
# because there are hundreds.
DRAWN = """
return [...document.querySelectorAll('td.cell')].map(cell => [
  cell.dataset.session, cell.dataset.stolen, cell.dataset.observed, cell.checkVisibility(),
  cell.querySelector('svg').getBoundingClientRect().width, cell.innerText.trim(),
  getComputedStyle(cell).backgroundColor]);
"""


def test_nothing_is_fetched_and_nothing_complains(browser: webdriver.Chrome, proof: Proof) -> None:
    open_report(browser, proof)
    fetched = browser.execute_script("return performance.getEntriesByType('resource').length")
    assert fetched == 0
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_schemes(
    browser: webdriver.Chrome, proof: Proof, scheme: str
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    open_report(browser, proof)
    for selector in (
        "body",
        "header.verdict",
        "td.closed",
        "td.opened",
        "tbody th",
        ".quiet",
        ".sums dt",
    ):
        element = browser.find_element(By.CSS_SELECTOR, selector)
        ink, paper = (
            luminance(browser.execute_script(EFFECTIVE, element, which))
            for which in ("color", "backgroundColor")
        )
        lighter, darker = max(ink, paper), min(ink, paper)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, f"{selector} in {scheme}"


# The colour that an element shows: its own, or of the first ancestor that has one.
EFFECTIVE = """
let [element, which] = arguments;
while (element) {
  const colour = getComputedStyle(element)[which];
  if (colour !== 'rgba(0, 0, 0, 0)') return colour;
  element = element.parentElement;
}
return 'rgb(255, 255, 255)';
"""


def luminance(colour: str) -> float:
    """Return the relative luminance of a CSS rgb colour (WCAG 2.2)."""
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def set_screen(browser: webdriver.Chrome, width: int, height: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True},
    )


@pytest.mark.parametrize("width", [360, 390, 768])
def test_a_narrow_screen_does_not_scroll_sideways(
    browser: webdriver.Chrome, proof: Proof, width: int
) -> None:
    set_screen(browser, width, 780)
    open_report(browser, proof)
    overflow = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0


@pytest.mark.parametrize(("width", "height"), [(360, 780), (1280, 900)])
def test_a_matrix_that_is_too_wide_scrolls_in_its_own_box(
    browser: webdriver.Chrome, proof: Proof, tmp_path: Path, width: int, height: int
) -> None:
    report = read_report((proof.directory / "report.json").read_bytes())
    page = tmp_path / "wide.html"
    page.write_text(render_html(widened(report, 4)), "utf-8")
    set_screen(browser, width, height)
    browser.get(page.as_uri())
    overflow = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0
    tiles = browser.find_elements(By.CSS_SELECTOR, "td.cell .tile")
    assert len(tiles) == 4 * len(report.cells)


@pytest.mark.parametrize(("width", "height"), [(360, 780), (1280, 900)])
def test_a_page_about_a_target_shows_what_it_refused_under_a_heading_of_its_own(
    browser: webdriver.Chrome, proof: Proof, tmp_path: Path, width: int, height: int
) -> None:
    report = read_report((proof.directory / "report.json").read_bytes())
    refused = Skipped(name="target-static-rsa", reason="refused, as it should be", refused=True)
    about = msgspec.structs.replace(report, target="server.example:443", skipped=(refused,))
    page = tmp_path / "target.html"
    page.write_text(render_html(about), "utf-8")
    set_screen(browser, width, height)
    browser.get(page.as_uri())
    text = browser.find_element(By.TAG_NAME, "main").text
    headings = [one.text for one in browser.find_elements(By.TAG_NAME, "h2")]
    place = headings.index("What server.example:443 refused")
    assert headings[place + 1] == "What was not tested"
    _, _, after = text.partition(headings[place])
    shown, _, untested = after.partition(headings[place + 1])
    assert "target-static-rsa: refused, as it should be" in shown
    assert "target-static-rsa" not in untested
    sessions, flights = len(report.sessions), len(report.replays)
    assert f"The client flights of {flights} of the {sessions} sessions" in text
    assert "No flight was replayed at server.example:443." in text
    assert "120 handshakes with server.example:443" in text
    overflow = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0


def widened(report: Report, times: int) -> Report:
    """Give a report with so many times as many sessions."""

    def renamed(name: str, number: int) -> str:
        return f"{name}-again-{number}" if number else name

    replace = msgspec.structs.replace
    return replace(
        report,
        sessions=tuple(
            replace(session, name=renamed(session.name, number))
            for number in range(times)
            for session in report.sessions
        ),
        cells=tuple(
            replace(cell, session=renamed(cell.session, number))
            for number in range(times)
            for cell in report.cells
        ),
    )


def test_on_a_phone_every_cell_says_whose_it_is_and_is_whole(
    browser: webdriver.Chrome, proof: Proof
) -> None:
    set_screen(browser, 360, 780)
    open_report(browser, proof)
    tiles = browser.execute_script(
        "return [...document.querySelectorAll('td.cell .tile')].map(tile => {"
        " const r = tile.getBoundingClientRect();"
        " return [r.x, r.width, r.height, tile.querySelector('.of').checkVisibility()]; })"
    )
    report = json.loads((proof.directory / "report.json").read_bytes())
    assert len(tiles) == len(report["cells"])
    for x, width, height, named in tiles:
        assert x >= 0
        assert x + width <= 360
        assert width >= 44  # a finger's width
        assert height >= 44
        assert named
    smallest = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('main *')]"
        ".filter(e => e.checkVisibility() && !e.closest('.unseen'))"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 11


def press(browser: webdriver.Chrome, *keys: str) -> None:
    ActionChains(browser, duration=0).send_keys(*keys).perform()


def opened_stories(browser: webdriver.Chrome) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('.story:popover-open')].map(e => e.id)"
    )


TABS_AT_ONCE = 50
STRIDE = 13  # no divisor of a row's length, so that stories of every column are opened


def test_each_cell_is_reached_by_keyboard_and_its_story_opened(
    browser: webdriver.Chrome, proof: Proof
) -> None:
    open_report(browser, proof)
    report = json.loads((proof.directory / "report.json").read_bytes())
    expected = {(cell["session"], cell["stolen"]) for cell in report["cells"]}
    browser.execute_script(
        "window.reached = []; document.addEventListener('focusin', event => {"
        " const cell = event.target.closest('[data-session]');"
        " if (event.target.className == 'tile')"
        " reached.push([cell.dataset.session, cell.dataset.stolen]); })"
    )
    for _batch in range(0, len(expected) + 20, TABS_AT_ONCE):
        press(browser, *[Keys.TAB] * TABS_AT_ONCE)
    reached = list(map(tuple, browser.execute_script("return reached")))
    assert set(reached) == expected
    for tile in browser.find_elements(By.CLASS_NAME, "tile")[::STRIDE]:
        browser.execute_script("arguments[0].focus()", tile)
        cell = tile.find_element(By.XPATH, "..")
        key = cell.get_attribute("data-session"), cell.get_attribute("data-stolen")
        outline = tile.value_of_css_property("outline-style")
        assert outline == "solid"  # one sees where one is
        press(browser, Keys.ENTER)
        (story,) = opened_stories(browser)
        assert story == tile.get_attribute("popovertarget")
        text = browser.find_element(By.ID, story).text
        assert key[0] in text
        assert cell.get_attribute("data-observed") in text
        assert "Expected" in text
        assert "RFC " in text or "draft-ietf-tls-" in text
        press(browser, Keys.ESCAPE)
        assert opened_stories(browser) == []
        assert browser.switch_to.active_element == tile


def test_a_story_closes_by_its_button_and_its_link_leads_to_the_capture(
    browser: webdriver.Chrome, proof: Proof
) -> None:
    open_report(browser, proof)
    press(browser, Keys.TAB)  # the matrix, which scrolls by arrow keys where it is too wide
    press(browser, Keys.TAB, Keys.SPACE)
    (story,) = opened_stories(browser)
    link = browser.find_element(By.CSS_SELECTOR, f"#{story} a").get_attribute("href")
    assert link == (proof.directory / "captures/tls12-ecdhe.pcapng").as_uri()
    assert browser.switch_to.active_element.text == "Close"
    press(browser, Keys.ENTER)
    assert opened_stories(browser) == []


def test_colours_follow_the_scheme(browser: webdriver.Chrome, proof: Proof) -> None:
    papers = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        open_report(browser, proof)
        body = browser.find_element(By.TAG_NAME, "body")
        papers.append(luminance(body.value_of_css_property("background-color")))
    light, dark = papers
    assert light > 0.9
    assert dark < 0.05


def test_print_lists_every_story_in_light_colours(browser: webdriver.Chrome, proof: Proof) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    open_report(browser, proof)
    stories = browser.execute_script(
        "return [...document.querySelectorAll('.story')].map(story => {"
        " const r = story.getBoundingClientRect();"
        " return [r.y, r.height, story.checkVisibility()]; })"
    )
    report = json.loads((proof.directory / "report.json").read_bytes())
    assert len(stories) == len(report["cells"])
    for (y, height, visible), (following, _, _) in itertools.pairwise(stories):
        assert visible
        assert y + height <= following + 0.5
    assert not browser.execute_script(
        "return [...document.querySelectorAll('.close')].some(button => button.checkVisibility())"
    )
    body = browser.find_element(By.TAG_NAME, "body")
    assert luminance(body.value_of_css_property("background-color")) > 0.9
    pages = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"]
    assert base64.b64decode(pages).startswith(b"%PDF")


def test_without_its_style_the_page_still_says_everything(
    browser: webdriver.Chrome, proof: Proof
) -> None:
    """As screen readers and browsers without popovers have it: in order, verdict first."""
    page = (proof.directory / "report.html").read_text("utf-8")
    assert page.index('id="verdict"') < page.index('class="matrix') < page.index('class="census"')
    open_report(browser, proof)
    names = browser.execute_script(
        "return [...document.querySelectorAll('td.cell button')].map(e => e.textContent)"
    )
    assert len(set(names)) == len(names)  # each says what it is of
