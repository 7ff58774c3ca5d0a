"""One collection from its crawl to its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.clustering.sweep import check_k, check_run_id, open_run, select, sweep
from pipeline.config import LATEST, JobConfig
from pipeline.console import say
from pipeline.errors import SourceError
from pipeline.ingest.sources.detect import count_candidates
from pipeline.ingest.stage import check_apart, ingest
from pipeline.orchestration.forgetting import check_not_forgetting
from pipeline.records import Crawl
from pipeline.session import check_place
from pipeline.shards import complete_crawls
from pipeline.storage import Storage

if TYPE_CHECKING:
    from pipeline.clustering.trial_queue import Work


def run_collection(storage: Storage, config: JobConfig, train: Callable[[list[Work]], None]) -> list[str]:
    """Ingest → cluster → report, as far as `config.stages` asks; what the user should know in the end, as lines.

    Args:
        train: trains the trials that are missing.

    Raises PipelineError; what the job can never do is refused before any work.
    """
    _refuse_the_impossible(storage, config)
    check_not_forgetting(storage, config.collection)
    if "ingest" in config.stages:
        ingest(storage, config)
    if {"cluster", "report"} & set(config.stages):
        crawls = _crawls_to_use(storage, config)
        check_k(config.clustering, sum(crawl.accepted for crawl in crawls), "accepted images")
        config = _from_earlier_run(storage, config, {crawl.digest for crawl in crawls if crawl.accepted})
        run = open_run(storage, config, crawls)
        results = sweep(storage, run, config.clustering, crawls, train if "cluster" in config.stages else None)
        selected, why = select(results, config.clustering.select_k)
        say("cluster", f"K = {selected.k} is kept: {why}")
    if "report" in config.stages:
        # It imports torch, which ingest alone does not need.
        from pipeline.reporting.stage import closing_lines, report

        return closing_lines(report(storage, config, run.run_id, crawls, results, selected, why))
    return [f"{'done':<9} everything is in {storage.uri(config.collection)}"]


def _crawls_to_use(storage: Storage, config: JobConfig) -> list[Crawl]:
    """The complete crawls of the collection that hold images of the configured size, colour mode and format."""

    crawls = complete_crawls(storage, config.collection)
    return [crawl for crawl in crawls if crawl.image_form == config.ingest.image_form]


def _from_earlier_run(storage: Storage, config: JobConfig, digests: set[str]) -> JobConfig:
    """`config` with the run that training starts from, if it asks for one, by its id."""
    if config.clustering.warm_start is None:
        return config
    # It imports torch, which ingest alone does not need.
    from pipeline.clustering.warm_start import with_earlier_run

    return with_earlier_run(storage, config, digests)


def _refuse_the_impossible(storage: Storage, config: JobConfig) -> None:
    """Raise what can be known to fail before any work is done."""
    check_place(config)
    check_run_id(storage, config)
    if config.clustering.warm_start not in {None, LATEST} and config.stages != ["ingest"]:
        _from_earlier_run(storage, config, set())
    images, what = sum(crawl.accepted for crawl in _crawls_to_use(storage, config)), "accepted images"
    if "ingest" in config.stages:
        check_apart(config.sources, storage)
        most = max(config.clustering.k)
        at_most = min(most, config.ingest.sample or most)
        images += count_candidates(config.sources, at_most, config.ingest.source_type, config.ingest.url_column)
        what = f"records of {', '.join(config.sources)}"
    elif not images:
        raise SourceError(
            f"{storage.uri(config.collection)}: no complete crawl of {config.ingest.image_size} px "
            f"{config.ingest.color_mode} images in {config.ingest.image_format.upper()}; run the ingest stage first"
        )
    if config.stages != ["ingest"]:
        check_k(config.clustering, images, what)
