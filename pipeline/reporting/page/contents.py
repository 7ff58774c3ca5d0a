"""Convert the findings of a run to the content of its page."""

from __future__ import annotations

from pipeline.config import dump_config
from pipeline.masking import mask
from pipeline.reporting.findings import Findings
from pipeline.reporting.page.charts import number
from pipeline.reporting.page.clusters import cluster_views, data_uri, example_views
from pipeline.reporting.page.render import Page, Unexplained
from pipeline.reporting.page.training import training_figures
from pipeline.reporting.pictures.timelapse import LIMIT_BYTES
from pipeline.reporting.run import Run
from pipeline.reporting.tables.manifest import LOSS_NAMES, loss_column


def page_of(run: Run, findings: Findings, tracked: str, timelapse: bytes | None) -> Page:
    """Return the content of the page of a run.

    Args:
        run: the run; its `document` is the content of ``run.json``, except where the run is tracked.
        findings: findings of the kept trial.
        tracked: URI of the tracking server or database, without credentials. The page itself is uploaded there, so it
            gives the name of the MLflow run and not its id, which does not exist yet.
        timelapse: animation of the training as a WebP file; None if there are no snapshots of the training.
    """
    config = run.config
    return Page(
        document=run.document,
        tracked={"uri": tracked, "experiment": run.collection, "run": run.run_id},
        configuration=mask(dump_config(config.model_copy(update={"tracking_uri": None}))),
        order_by=config.reporting.order_by,
        loss=LOSS_NAMES[loss_column(findings.clusters.schema)],
        private=not config.reporting.examples,
        clusters=cluster_views(findings),
        unexplained=Unexplained(
            threshold=number(float(f"{findings.unexplained_above:.4g}")),
            images=findings.unexplained,
            examples=example_views(findings.worst, findings.thumbnails),
            clusters=findings.worst["cluster"].to_pylist(),
        ),
        figures=training_figures(run.results, run.selected),
        timelapse=None if timelapse is None else data_uri(timelapse) if len(timelapse) <= LIMIT_BYTES else "",
        crawls=run.crawls,
    )
