"""The report as a person sees it: in headless Chromium, from a file, without a network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Proof

    from interop.peers.programs import Program


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
    for cell in browser.find_elements(By.CSS_SELECTOR, "td.cell"):
        assert cell.is_displayed()
        icon = cell.find_element(By.TAG_NAME, "svg")
        assert icon.size["width"] > 10
        observed = cell.get_attribute("data-observed")
        assert cell.text.startswith(observed)
        colours[observed].add(cell.value_of_css_property("background-color"))
        drawn[cell.get_attribute("data-session"), cell.get_attribute("data-stolen")] = observed
    assert drawn == {
        (cell["session"], cell["stolen"]): cell["observed"] for cell in report["cells"]
    }
    assert len(colours["closed"]) == len(colours["opened"]) == 1
    assert colours["closed"] != colours["opened"]


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
    for selector in ("body", "header.verdict", "td.closed", "td.opened", "tbody th"):
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


def test_a_narrow_screen_scrolls_the_matrix_and_not_the_page(
    browser: webdriver.Chrome, proof: Proof
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    )
    open_report(browser, proof)
    overflow = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0
