from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from pipeline.config import Method
from pipeline.reporting.page.render import render
from pipeline.reporting.pictures.timelapse import LIMIT_BYTES
from tests.support.made_page import made_page

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><style>*{display:none}</style>",
    "{{ run.collection }} {% for x in y %}",
    "\u202eright to left",
    "' onmouseover='alert(1)",
]
LINKS = [
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    'https://example.org/"onclick="alert(1)',
    "https://user:secret@example.org/",
    "file:///etc/passwd",
    "//example.org/x",
]


class Elements(HTMLParser):
    """Parser that collects all elements of a page with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def html() -> str:
    return render(made_page()).decode()


@pytest.fixture(scope="module")
def hostile() -> Elements:
    return Elements(render(made_page(collection="rome", captions=HOSTILE, links=LINKS)).decode())


def test_nothing_is_loaded_from_anywhere(html: str) -> None:
    elements = Elements(html)
    assert {name for name, _ in elements.found} & {
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "audio",
        "video",
    } == set()
    sources = [attributes.get("src") for _, attributes in elements.found if "src" in attributes]
    assert sources
    assert all(source and source.startswith("data:image/webp;base64,") for source in sources)
    assert "url(" not in html
    assert "@import" not in html


def test_the_policy_allows_only_the_page_s_own_style_and_script(html: str) -> None:
    (policy,) = [m["content"] for m in Elements(html).of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy


def test_text_of_a_crawl_creates_no_elements_and_no_handlers(hostile: Elements) -> None:
    assert len(hostile.of("script")) == len(hostile.of("style")) == 1
    attributes = {name for _, attributes in hostile.found for name in attributes}
    assert {name for name in attributes if name.startswith("on")} == set()
    assert "style" not in attributes
    captions = {image["alt"] for image in hostile.of("img") if image.get("class") == "photo"}
    assert f"Photo: {HOSTILE[0]}" in captions
    assert "Photo: right to left" in captions


def test_only_links_to_the_web_are_links(hostile: Elements, html: str) -> None:
    escaped = 'https://example.org/"onclick="alert(1)'
    assert {link["href"] for link in hostile.of("a") if not (link["href"] or "").startswith("#")} == {escaped}
    outside = [link for link in Elements(html).of("a") if not (link["href"] or "").startswith("#")]
    assert {link["href"] for link in outside} == {"https://example.org/photo"}
    assert {link["rel"] for link in outside} == {"noopener noreferrer nofollow"}


def test_every_cluster_has_an_anchor_and_is_linked(html: str) -> None:
    elements = Elements(html)
    ids = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    assert {f"cluster-{cluster}" for cluster in range(5)} <= ids
    inside = [(link["href"] or "")[1:] for link in elements.of("a") if (link["href"] or "").startswith("#")]
    assert set(inside) <= ids
    assert len(ids) == len([a for _, a in elements.found if "id" in a])


def test_counts_and_shares_add_up(html: str) -> None:
    cards = [attributes for attributes in Elements(html).of("li") if "data-size" in attributes]
    assert sum(int(card["data-size"] or 0) for card in cards) == 200
    shares = re.findall(r'class="fine share">(\d+)\.(\d) %', html)
    assert sum(10 * int(whole) + int(tenth) for whole, tenth in shares) == 1000


@pytest.mark.parametrize(("by", "key"), [("quality", "data-quality"), ("size", "data-size")])
def test_clusters_are_in_the_requested_order(by: str, key: str) -> None:
    cards = [a for a in Elements(render(made_page(order_by=by)).decode()).of("li") if "data-size" in a]
    values = [float(card[key] or 0) for card in cards]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("method", "loss"), [("dti-gmm", "negative log-likelihood"), ("dti-kmeans", "squared error")])
def test_the_loss_has_its_own_name_everywhere(method: Method, loss: str) -> None:
    html = render(made_page(method=method)).decode()
    assert "distance" not in html.lower()
    assert f"<dt>mean {loss}</dt>" in html
    assert f"<h4>{loss.capitalize()}</h4>" in html
    assert f'<span class="fine">{loss}</span>' in html
    assert f'aria-label="{loss.capitalize()} of the images of cluster 0: median ' in html
    assert f"a {loss} above " in html


def test_every_picture_has_a_description_and_every_field_a_label(html: str) -> None:
    elements = Elements(html)
    assert all(image["alt"] for image in elements.of("img"))
    assert all(chart["aria-label"] for chart in elements.of("svg"))
    labels = {label.get("for") for label in elements.of("label")}
    radios = [field["id"] for field in elements.of("input") if field["type"] == "radio"]
    assert radios
    assert set(radios) <= labels
    assert {"header", "main", "nav"} <= {name for name, _ in elements.found}
    assert [name for name, _ in elements.found].count("h1") == 1


def test_without_examples_there_is_no_photo_caption_or_link() -> None:
    html = render(made_page(captions=["secret words"], examples=False)).decode()
    elements = Elements(html)
    assert "secret words" not in html
    assert "example.org" not in html
    assert {image["class"] for image in elements.of("img")} == {"prototype", "mean", "deviation", "prototypes"}


def test_without_examples_a_mean_of_few_photos_is_not_shown_either() -> None:
    html = render(made_page(k=2, images=4, examples=False)).decode()
    assert {image["class"] for image in Elements(html).of("img")} == {"prototype", "prototypes"}
    assert "#tag0" not in html
    assert "Date of post" not in html


@pytest.mark.parametrize(
    ("k", "images"), [(40, 15_000), (200, 20_000), pytest.param(1000, 20_000, marks=pytest.mark.slow)]
)
def test_even_pages_of_noise_stay_small(k: int, images: int) -> None:
    captions = ["<&>" * 100]
    page = made_page(k, images, captions=captions, timelapse=bytes(LIMIT_BYTES))
    assert len(render(page)) < 15e6


def test_an_animation_of_training_that_is_too_large_is_not_embedded() -> None:
    def page_with_timelapse(n_bytes: int) -> str:
        return render(made_page(timelapse=bytes(n_bytes))).decode()

    embedded, linked = page_with_timelapse(LIMIT_BYTES), page_with_timelapse(LIMIT_BYTES + 1)
    assert base64.b64encode(bytes(LIMIT_BYTES)).decode() in embedded
    assert "/w/rome/runs/run-1/training.webp" not in embedded
    assert "/w/rome/runs/run-1/training.webp" in linked
    assert len(embedded) - len(linked) > LIMIT_BYTES


def test_the_animation_is_hidden_until_it_is_opened(html: str) -> None:
    (details,) = re.findall(r'<details class="timelapse">.*?</details>', html, re.DOTALL)
    assert Elements(details).of("img")[0]["loading"] == "lazy"
    assert "open" not in Elements(details).of("details")[0]


def test_the_same_findings_give_the_same_bytes() -> None:
    assert render(made_page()) == render(made_page())
