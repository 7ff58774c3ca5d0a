"""Render the page as one HTML file with its style and script inside, and a policy that forbids everything else."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.config import OrderBy
from pipeline.console import counted
from pipeline.records import Crawl
from pipeline.reporting.page.clusters import ClusterView, ExampleView
from pipeline.reporting.page.training import Figure

PACKAGE = "pipeline.reporting.page"


@dataclass(frozen=True)
class Unexplained:
    """The images that no prototype explains, whose losses are outliers."""

    threshold: str
    """Loss above which an image counts as unexplained."""
    images: int
    """Number of unexplained images."""
    examples: Sequence[ExampleView]
    """Unexplained images with the highest loss."""
    clusters: Sequence[int]
    """Cluster of each of the `examples`."""


@dataclass(frozen=True)
class Page:
    """Everything that the page shows."""

    document: Mapping[str, Any]
    """Content of ``run.json``, except where the run is tracked."""
    tracked: Mapping[str, str]
    """The run in MLflow: ``uri`` of the server or database, ``experiment`` and ``run``."""
    configuration: str
    """Configuration of the job, as YAML."""
    order_by: OrderBy
    """Initial order of the clusters."""
    loss: str
    """Name of the loss."""
    private: bool
    """Whether photos, captions and links are left out."""
    clusters: Sequence[ClusterView]
    """Clusters in display order."""
    unexplained: Unexplained
    figures: Sequence[Figure]
    timelapse: str | None
    """Animation of the training as a ``data:`` URI; empty if it is too large, None if there is none."""
    crawls: Sequence[Crawl]


def render(page: Page) -> bytes:
    """Return the page as UTF-8 HTML. It makes no requests, and runs only its own script."""
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    environment = Environment(
        loader=PackageLoader(PACKAGE, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "decimal": _decimal, "noun": counted}
    rejected = Counter[str]()
    for crawl in page.crawls:
        rejected.update(crawl.rejected)
    text = environment.get_template("page.html.jinja").render(
        page=page,
        run=page.document,
        rejected=rejected.most_common(),
        most_rejected=max(rejected.values(), default=1),
        policy=_policy(style, script),
        style=style,
        script=script,
    )
    return text.encode()


def _policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy that allows only this style, this script and pictures as ``data:`` URIs."""
    allowed = {"script-src": _digest(script), "style-src": _digest(style), "img-src": "data:"}
    parts = ["default-src 'none'", *(f"{name} {value}" for name, value in allowed.items())]
    return "; ".join([*parts, "base-uri 'none'", "form-action 'none'"])


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return files(PACKAGE).joinpath(name).read_text(encoding="utf-8")


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _decimal(value: float) -> str:
    return f"{value:,.4f}".replace("-", "−")
