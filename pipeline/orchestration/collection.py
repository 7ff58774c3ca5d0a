"""Run the stages for one collection: ingest, cluster, report."""

from __future__ import annotations

from collections import Counter

from pipeline.clustering.earlier_run import with_earlier_run
from pipeline.clustering.sweep import check_k, check_run_id, open_run, select, sweep
from pipeline.clustering.trial import Train
from pipeline.config import LATEST, JobConfig
from pipeline.console import say
from pipeline.errors import SourceError
from pipeline.ingest.forget.names import check_no_takedown
from pipeline.ingest.sources.detect import count_candidates
from pipeline.ingest.sources.s3 import use_access
from pipeline.ingest.sources.tables.table_records import TableOptions
from pipeline.ingest.stage import check_workspace_location, ingest
from pipeline.records import Crawl
from pipeline.reporting.run import Run
from pipeline.session import check_resources_and_paths
from pipeline.shards import complete_crawls
from pipeline.storage import Storage


def run_collection(storage: Storage, config: JobConfig, train: Train) -> list[str]:
    """Run the stages `config.stages` of one collection; return a summary for the user as lines.

    Args:
        storage: workspace.
        config: configuration of the job.
        train: function that trains the trials of the run that are missing.

    Raises PipelineError; all checks that are possible in advance are made before any work begins.
    """
    _check_feasible(storage, config)
    check_no_takedown(storage, config.collection)
    closing = [f"{'done':<9} all results are in {storage.uri(config.collection)}"]
    if "ingest" in config.stages:
        ingest(storage, config)
    if config.stages == ["ingest"]:
        return closing

    crawls = _crawls_to_use(storage, config)
    _check_images(storage, config, crawls)
    config = with_earlier_run(storage, config, {crawl.digest for crawl in crawls if crawl.accepted})
    paths = open_run(storage, config, crawls)
    results = sweep(storage, paths, config.clustering, crawls, train if "cluster" in config.stages else None)
    selected, reason = select(results, config.clustering.select_k)
    say("cluster", f"K = {selected.k} is kept: {reason}")
    if "report" not in config.stages:
        return closing

    # Imported here because it imports torch, which a job without a report does not need.
    from pipeline.reporting.stage import closing_lines, report

    return closing_lines(report(storage, Run(paths.run_id, config, crawls, results, selected, reason)))


def _crawls_to_use(storage: Storage, config: JobConfig) -> list[Crawl]:
    """Return the complete crawls of the collection whose image form is the configured one."""
    crawls = complete_crawls(storage, config.collection)
    return [crawl for crawl in crawls if crawl.image_form == config.ingest.image_form]


def _check_feasible(storage: Storage, config: JobConfig) -> None:
    """Raise PipelineError if it can be known in advance that the job will fail."""
    check_resources_and_paths(config)
    check_run_id(storage, config)
    if config.clustering.warm_start not in {None, LATEST} and config.stages != ["ingest"]:
        with_earlier_run(storage, config, set())
    available, noun = sum(crawl.accepted for crawl in _crawls_to_use(storage, config)), "accepted images"
    if "ingest" in config.stages:
        check_workspace_location(config.sources, storage)
        largest_k = max(config.clustering.k)
        limit = min(largest_k, config.ingest.sample or largest_k)
        use_access(config.ingest.s3_access)
        tables = TableOptions.of(config.ingest)
        available += count_candidates(config.sources, limit, config.ingest.source_type, tables)
        noun = f"records of {', '.join(config.sources)}"
    elif not available:
        raise SourceError(
            f"{storage.uri(config.collection)}: no complete crawl with {config.ingest.image_size} px "
            f"{config.ingest.color_mode} images in {config.ingest.image_format.upper()}; run the ingest stage first"
        )
    if config.stages != ["ingest"]:
        check_k(config.clustering, available, noun)


def _check_images(storage: Storage, config: JobConfig, crawls: list[Crawl]) -> None:
    """Raise PipelineError if the `crawls` have no images, or fewer than some K."""
    accepted = sum(crawl.accepted for crawl in crawls)
    if not accepted:
        reasons: Counter[str] = Counter()
        for crawl in crawls:
            reasons.update(crawl.rejected)
        counts = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        raise SourceError(
            f"collection {config.collection}: no image was accepted, all {reasons.total()} records were rejected "
            f"({counts}); the tables below {storage.uri(f'{config.collection}/crawls')} say why, record by record"
        )
    check_k(config.clustering, accepted, "accepted images")
