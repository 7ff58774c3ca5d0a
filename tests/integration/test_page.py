"""Tests of the page in headless Chromium: opening it from disk, clicking, searching and following links."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.reporting.page.render import Page, render
from tests.support.browser import chromium
from tests.support.made_page import made_page

CAPTIONS = ["sunset over the Tiber", "<b>bold</b> & brave", "morning"]


@dataclass
class Reader:
    """A page in a browser window, with its console messages, errors and requests."""

    window: Any
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def cards(self) -> list[str]:
        """Return the numbers of the clusters that the mosaic shows, in order."""
        return list(
            self.window.eval_on_selector_all("#mosaic li:not([hidden])", "all => all.map(e => e.dataset.cluster)")
        )

    def sections(self) -> list[str]:
        """Return the numbers of the clusters whose sections are shown, in order."""
        return list(self.window.eval_on_selector_all("article:not([hidden])", "all => all.map(e => e.dataset.cluster)"))

    def until(self, condition: str) -> None:
        """Wait until the expression `condition` is true; Playwright's own function needs a page that allows eval."""
        deadline = time.monotonic() + 30
        while not self.window.evaluate(condition):
            assert time.monotonic() < deadline, condition
            time.sleep(0.05)

    def status(self) -> str:
        """Return the text that counts the clusters and images shown."""
        return str(self.window.text_content("#shown"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def opened(browser: Any, page: Page, folder: Path, **window: Any) -> Reader:
    """Write `page` to a file and open it in a new window with the options `window`."""
    file = folder / "report.html"
    file.write_bytes(render(page))
    reader = Reader(browser.new_page(**window))
    reader.window.on("console", lambda message: reader.faults.append(message.text))
    reader.window.on("pageerror", lambda error: reader.faults.append(str(error)))
    reader.window.on("request", lambda request: reader.requests.append(request.url))
    reader.window.goto(file.as_uri())
    return reader


@pytest.fixture
def reader(browser: Any, tmp_path: Path) -> Iterator[Reader]:
    """A page of 5 clusters; the higher a cluster's number, the better and the smaller it is."""
    found = opened(browser, made_page(captions=CAPTIONS), tmp_path)
    yield found
    assert found.faults == []
    assert [url for url in found.requests if not url.startswith(("file:", "data:"))] == []
    found.window.close()


def test_clusters_are_sorted_by_quality_and_on_request_by_size(reader: Reader) -> None:
    assert reader.cards() == reader.sections() == ["4", "3", "2", "1", "0"]
    reader.window.select_option("#order", "size")
    assert reader.cards() == reader.sections() == ["0", "1", "2", "3", "4"]


def test_all_images_are_counted(reader: Reader) -> None:
    assert reader.status() == "5 of 5 clusters, 200 of 200 images (100.0 %)"
    assert reader.window.get_attribute("#shown", "aria-live") == "polite"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("#3", ["3"]), ("tag2", ["2"]), ("#tag1", ["1"]), ("#rome tiber", ["4", "3", "2", "1", "0"]), ("#99", [])],
)
def test_a_search_finds_numbers_hashtags_and_captions(reader: Reader, words: str, expected: list[str]) -> None:
    reader.window.fill("#search", words)
    assert reader.cards() == reader.sections() == expected
    assert reader.status().startswith(f"{len(expected)} of 5 clusters, ")
    assert reader.window.is_visible("#nothing") == (expected == [])


def test_clusters_are_filtered_by_quality_and_size_until_reset(reader: Reader) -> None:
    reader.window.fill("#quality", "0.5")
    some = reader.cards()
    assert some[0] == "4"
    assert 0 < len(some) < 5
    reader.window.fill("#quality", "0")
    reader.window.fill("#size", "50")
    assert reader.cards() == ["0"]
    reader.window.click("button[type=reset]")
    reader.until("document.querySelectorAll('#mosaic li:not([hidden])').length === 5")
    assert reader.status() == "5 of 5 clusters, 200 of 200 images (100.0 %)"


def test_a_click_on_a_prototype_leads_to_its_cluster(reader: Reader) -> None:
    reader.window.click("#mosaic li[data-cluster='1'] a")
    assert reader.window.url.endswith("#cluster-1")
    reader.until("document.activeElement.id === 'cluster-1'")
    reader.until("Math.abs(document.getElementById('cluster-1').getBoundingClientRect().top) < innerHeight / 2")


def test_a_link_to_a_filtered_cluster_resets_the_filters(reader: Reader) -> None:
    reader.window.fill("#search", "#3")
    reader.window.evaluate("location.hash = '#cluster-0'")
    reader.until("!document.getElementById('cluster-0').hidden")
    assert reader.window.input_value("#search") == ""


def test_groups_of_examples_are_selected_with_a_click_or_an_arrow_key(reader: Reader) -> None:
    groups = "#cluster-4 .group"
    visible = f"Array.from(document.querySelectorAll('{groups}')).map(e => e.checkVisibility())"
    assert reader.window.evaluate(visible) == [True, False, False]
    reader.window.click("label[for=examples-4-farthest]")
    assert reader.window.evaluate(visible) == [False, False, True]
    reader.window.focus("#examples-4-farthest")
    reader.window.keyboard.press("ArrowLeft")
    assert reader.window.evaluate(visible) == [False, True, False]


def test_search_and_clusters_are_reachable_by_keyboard_with_visible_focus(reader: Reader) -> None:
    reached = []
    for _ in range(12):
        reader.window.keyboard.press("Tab")
        reached.append(
            reader.window.evaluate("document.activeElement.id || document.activeElement.getAttribute('href')")
        )
        outline = reader.window.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
    assert reached[0] == "#clusters"
    assert {"search", "order", "quality", "size"} <= set(reached)
    assert "#cluster-4" in reached


def test_captions_are_escaped_and_photos_link_to_their_source(reader: Reader) -> None:
    photos = reader.window.eval_on_selector_all("#cluster-0 img.photo", "all => all.map(e => e.alt)")
    assert "Photo: <b>bold</b> & brave" in photos
    link = reader.window.locator("#cluster-0 .group a").first
    assert link.get_attribute("href") == "https://example.org/photo"


def test_every_picture_is_drawn(reader: Reader) -> None:
    reader.window.evaluate("document.querySelectorAll('img').forEach(e => e.loading = 'eager')")
    broken = "Promise.all(Array.from(document.images).map(e => e.decode().then(() => 0, () => 1)))"
    assert sum(reader.window.evaluate(broken)) == 0


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_nothing_is_wider_than_the_window(browser: Any, tmp_path: Path, width: int) -> None:
    page = made_page(collection="a" + "very" * 20, captions=["x" * 500])
    reader = opened(browser, page, tmp_path, viewport={"width": width, "height": 800})
    assert reader.window.evaluate("document.documentElement.scrollWidth") <= width
    assert reader.window.screenshot()
    reader.window.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(browser: Any, tmp_path: Path, scheme: str) -> None:
    reader = opened(browser, made_page(), tmp_path, color_scheme=scheme)
    for selector in ("body", ".fine", ".lede", ".tags li", "figcaption", ".eyebrow"):
        assert reader.window.evaluate(CONTRAST, selector) >= 4.5, selector
    reader.window.close()


CONTRAST = """selector => {
  const element = document.querySelector(selector);
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => channels(color).slice(0, 3)
    .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = element;
  while (behind.parentElement && channels(getComputedStyle(behind).backgroundColor)[3] === 0) {
    behind = behind.parentElement;
  }
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(light);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


def test_without_scripts_all_clusters_are_shown(browser: Any, tmp_path: Path) -> None:
    reader = opened(browser, made_page(), tmp_path, java_script_enabled=False)
    assert reader.window.locator("article.cluster").count() == 5
    assert not reader.window.locator(".tools").is_visible()
    reader.window.close()


def test_the_page_works_in_the_artifact_view_of_mlflow(browser: Any, tmp_path: Path) -> None:
    """MLflow shows the page in a sandboxed frame with scripts, but without an origin, storage or new windows."""
    (tmp_path / "report.html").write_bytes(render(made_page()))
    (tmp_path / "viewer.html").write_text('<iframe sandbox="allow-scripts" src="report.html" width=900 height=700>')
    window = browser.new_page()
    window.goto((tmp_path / "viewer.html").as_uri())
    frame = window.frame_locator("iframe")
    frame.locator("#search").fill("#2")
    assert frame.locator("#shown").text_content().startswith("1 of 5 clusters")
    window.close()


def test_a_large_page_opens_quickly(browser: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    reader = opened(browser, made_page(k=40, images=15_000), tmp_path)
    loaded = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1000"
    # About two seconds on an idle machine; this machine may be busy.
    assert reader.window.evaluate(loaded) < 10
    assert time.monotonic() - started < 120
    assert len(reader.cards()) == 40
    reader.window.close()
