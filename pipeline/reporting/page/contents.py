"""From what a run found to what its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.clustering.trial import TrialResult
from pipeline.config import JobConfig, dump_config
from pipeline.records import Crawl
from pipeline.reporting.findings import Findings
from pipeline.reporting.page.charts import number
from pipeline.reporting.page.clusters import cluster_views, data_uri, example_views
from pipeline.reporting.page.render import Page, Unexplained
from pipeline.reporting.page.training import training_figures
from pipeline.reporting.pictures.timelapse import LIMIT_BYTES
from pipeline.reporting.tables.manifest import LOSS_NAMES, loss_column
from pipeline.reporting.tracking.server import without_credentials


def page_of(
    findings: Findings,
    document: Mapping[str, Any],
    config: JobConfig,
    tracked: str,
    crawls: Sequence[Crawl],
    results: Sequence[TrialResult],
    selected: TrialResult,
    timelapse: bytes | None,
) -> Page:
    """The page of a run.

    Args:
        findings: of the kept trial.
        document: what ``run.json`` says, without where it was tracked.
        config: of the job.
        tracked: the tracking server or database, without credentials. The page is one of the files that are recorded
            there, so it names the run and cannot know its id.
        crawls: what was clustered.
        results: of all trials.
        selected: the kept one.
        timelapse: its training as an animated WebP file; None where nothing is known of it.
    """
    return Page(
        document=document,
        tracked={"uri": tracked, "experiment": config.collection, "run": document["run_id"]},
        configuration=without_credentials(dump_config(config.model_copy(update={"tracking_uri": None}))),
        order_by=config.reporting.order_by,
        loss=LOSS_NAMES[loss_column(findings.clusters.schema)],
        private=not config.reporting.examples,
        clusters=cluster_views(findings),
        unexplained=Unexplained(
            fence=number(float(f"{findings.fence:.4g}")),
            images=findings.unexplained,
            shown=example_views(findings.worst, findings.thumbnails),
            clusters=findings.worst["cluster"].to_pylist(),
        ),
        figures=training_figures(results, selected),
        timelapse=None if timelapse is None else data_uri(timelapse) if len(timelapse) <= LIMIT_BYTES else "",
        crawls=crawls,
    )
