"""The pages in a real browser: they draw, follow the explorer, and say what report.json says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

KINDS = ("merge", "sparsify", "reconfigure", "compare", "stream")
DESK, PHONE = (1280, 900), (390, 800)


def show(browser: Any, run: Path, size: tuple[int, int] = DESK, scheme: str = "light") -> None:
    """Open the page of a run and wait until its charts are drawn."""
    width, height = size
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get_log("browser")  # what earlier pages said
    browser.get((run / "report.html").as_uri())
    for _ in range(200):
        if browser.execute_script("return document.documentElement.dataset.ready") == "yes":
            return
        time.sleep(0.1)
    pytest.fail(f"the charts were not drawn: {browser.get_log('browser')}")


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return found


def move(browser: Any, place: int) -> None:
    browser.execute_script(
        "const s = document.getElementById('at'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'));",
        place,
    )


def shown(browser: Any) -> list[list[str]]:
    """Return the explorer's numbers, row by row."""
    cells: list[list[str]] = browser.execute_script(
        "return [...document.querySelectorAll('#explorer tbody tr')].map("
        "row => [...row.querySelectorAll('td')].map(cell => cell.textContent))"
    )
    return cells


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")])
@pytest.mark.parametrize("kind", KINDS)
def test_every_page_draws_without_a_word_and_without_a_request(
    browser: Any, runs: dict[str, Path], kind: str, size: tuple[int, int], scheme: str
) -> None:
    show(browser, runs[kind], size, scheme)
    assert browser.get_log("browser") == []
    # Only what the page holds itself was loaded.
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [name for name in loaded if not name.startswith("data:")] == []
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= size[0]
    charts, drawn = browser.execute_script(
        "const c = [...document.querySelectorAll('.chart')];"
        "return [c.length, c.filter(e => e.querySelector('svg').getBoundingClientRect().width"
        " > 100).length]"
    )
    assert charts == drawn > 1


@pytest.mark.parametrize("kind", KINDS)
def test_figures_can_be_read_aloud_and_have_their_numbers(
    browser: Any, runs: dict[str, Path], kind: str
) -> None:
    show(browser, runs[kind])
    labels = browser.execute_script(
        "return [...document.querySelectorAll('.chart svg')].map(s => s.getAttribute('aria-label')"
        " || s.closest('[aria-label]')?.getAttribute('aria-label'))"
    )
    assert all(label and len(label) > 20 for label in labels)
    tables = browser.execute_script(
        "return [...document.querySelectorAll('figure:has(.chart)')].map("
        "f => f.querySelectorAll('details tbody td').length)"
    )
    assert all(count > 0 for count in tables)
    unnamed = browser.execute_script("return document.querySelectorAll('img:not([alt])').length")
    assert unnamed == 0


def test_the_first_screen_says_what_the_report_says(browser: Any, runs: dict[str, Path]) -> None:
    show(browser, runs["merge"])
    report = report_of(runs["merge"])
    numbers = browser.execute_script(
        "return [...document.querySelectorAll('.numbers dd')].map(e => e.textContent)"
    )
    rows = {row["name"]: row["test"] for row in report["results"]}
    assert numbers == [f"{100 * rows['crossover'][name]:.2f} %" for name in "ab"]

    def drop(row: str) -> float:
        return 100 * max(rows[name][name] - rows[row][name] for name in "ab")

    said = browser.execute_script("return document.querySelector('.verdict').textContent")
    for row, words in (
        ("straight line", "the straight line"),
        ("joint training", "a new network trained"),
    ):
        gap = drop(row) - drop("crossover")
        assert words in said
        assert f"{abs(gap):.1f} points (worst drop there: {drop(row):.1f})" in said or gap == 0


def test_moving_along_the_path_shows_every_point_of_the_report(
    browser: Any, runs: dict[str, Path]
) -> None:
    show(browser, runs["merge"])
    report = report_of(runs["merge"])
    curve = report["curve"]
    assert len(curve) > 5
    for place, point in enumerate(curve):
        move(browser, place)
        name = browser.execute_script("return document.getElementById('name').textContent")
        assert name.startswith(f"t = {point['t']:.3f}")
        accuracy, distance, predicted, measured = shown(browser)
        assert accuracy == [f"{100 * point['accuracy'][k]:.2f} %" for k in "ab"]
        assert distance == [f"{point['distance'][k]:.4g}" for k in "ab"]
        assert predicted == [f"{point['predicted'][k]:.4g}" for k in "ab"]
        assert measured == [f"{point['measured'][k]:.4g}" for k in "ab"]


def test_charts_follow_the_explorer_and_the_keyboard_moves_it(
    browser: Any, runs: dict[str, Path]
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, runs["merge"])
    bars = (
        "return [...document.querySelectorAll('.mark-rect.role-mark path')].map("
        "p => p.getAttribute('aria-label')).filter(a => a).join('|')"
    )
    slider = browser.find_element(By.ID, "at")
    before, numbers = browser.execute_script(bars), shown(browser)
    slider.send_keys(Keys.HOME)
    time.sleep(0.5)
    assert shown(browser) != numbers
    assert browser.execute_script(bars) != before
    assert slider.get_attribute("aria-valuetext").startswith("t = 0.000")
    slider.send_keys(Keys.END)
    assert slider.get_attribute("aria-valuetext").startswith("t = 1.000")


@pytest.mark.parametrize("kind", ["sparsify", "reconfigure", "stream"])
def test_the_other_explorers_move_as_well(browser: Any, runs: dict[str, Path], kind: str) -> None:
    show(browser, runs[kind])
    report = report_of(runs[kind])
    move(browser, 0)
    first = shown(browser)
    if kind == "stream":
        rows = [row for row in report["rows"] if len(row["matrix"]) > 1]
        assert first[0] == [f"{100 * row['matrix'][0][0]:.2f} %" for row in rows]
        assert first[1] == ["-"] * len(rows)
    else:
        curve = report["curve"] if kind == "sparsify" else report["configurations"][0]["curve"]
        assert first[0] == [f"{100 * curve[0]['select']:.2f} %"]
