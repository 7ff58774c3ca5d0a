"""The page as one HTML file: its template filled in, style and script inside, and a policy that allows nothing else."""

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
    """The images that no prototype explains."""

    fence: str
    """The loss above which they lie."""
    images: int
    shown: Sequence[ExampleView]
    """The worst of them; each has the cluster it was assigned to in `clusters`."""
    clusters: Sequence[int]


@dataclass(frozen=True)
class Page:
    """Everything that the page shows."""

    document: Mapping[str, Any]
    """What ``run.json`` says, without where it was tracked."""
    tracked: Mapping[str, str]
    """Where the run is in MLflow: server or database, experiment, name."""
    configuration: str
    """Of the job, as YAML."""
    order_by: OrderBy
    """What clusters are ordered by until the reader chooses."""
    loss: str
    """Name of the loss."""
    private: bool
    """Whether photos, captions and links are left out."""
    clusters: Sequence[ClusterView]
    """In the order in which they are shown."""
    unexplained: Unexplained
    figures: Sequence[Figure]
    timelapse: str | None
    """The animation of training as a ``data:`` address; empty where it is too large, None where there is none."""
    crawls: Sequence[Crawl]


def render(page: Page) -> bytes:
    """The page as UTF-8 HTML. It loads nothing, sends nothing, and runs no script but its own."""
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    environment = Environment(
        loader=PackageLoader(PACKAGE, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "decimal": _decimal, "noun": counted}
    losses = Counter[str]()
    for crawl in page.crawls:
        losses.update(crawl.rejected)
    text = environment.get_template("page.html.jinja").render(
        page=page,
        run=page.document,
        rejected=losses.most_common(),
        most_rejected=max(losses.values(), default=1),
        policy=_policy(style, script),
        style=style,
        script=script,
    )
    return text.encode()


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy under which only this style, this script and pictures inside the page work."""
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
