"""Assign new crawls of a collection to the prototypes of an earlier run."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import IMAGE_FORM_FIELDS, LATEST, ImageForm, JobConfig
from pipeline.console import say
from pipeline.errors import ConfigError
from pipeline.ingest.forget.names import check_no_takedown
from pipeline.ingest.stage import ingest
from pipeline.paths import crawls_folder
from pipeline.records import Crawl
from pipeline.reporting.assignment.changes import describe_changes
from pipeline.reporting.assignment.new_crawl import assign_crawl, check_model
from pipeline.reporting.reported_runs import latest_run, load_run
from pipeline.reporting.run import Run
from pipeline.session import check_resources_and_paths
from pipeline.shards import complete_crawls
from pipeline.storage import Storage


def assign_collection(storage: Storage, config: JobConfig, run_id: str, crawl_ids: Sequence[str]) -> list[str]:
    """Assign crawls with the model of an earlier run; return the locations of the results as lines.

    The crawl of `config.sources` is ingested first and then assigned. Without sources, the crawls `crawl_ids` are
    assigned; without both, all complete crawls that the run has not learned from.

    Args:
        storage: workspace.
        config: configuration of the job. Only the collection, the sources, the rest of `ingest` and
            `reporting.examples` are used; the model and the image form are those of the run.
        run_id: id of a reported run of the collection, or ``latest``.
        crawl_ids: ids of complete crawls of the collection.

    Raises PipelineError; all checks that are possible in advance are made before any work begins.
    """
    check_resources_and_paths(config.model_copy(update={"stages": ["ingest"]}))  # nothing is trained
    check_no_takedown(storage, config.collection)
    if crawl_ids and config.sources:
        raise ConfigError("crawl: give either the ids of complete crawls or a source, not both")
    run = latest_run(storage, config.collection) if run_id == LATEST else load_run(storage, config.collection, run_id)
    config = _with_image_form_of(run, config)
    check_model(storage, run)
    crawls = [ingest(storage, config)] if config.sources else _crawls_to_assign(storage, run, crawl_ids)
    if not crawls:
        say("assign", f"nothing to do: run {run.run_id} has learned from all complete crawls with its image form")
    lines = []
    examples = run.config.reporting.examples and config.reporting.examples
    for crawl in crawls:
        if not crawl.accepted:
            say("assign", f"crawl {crawl.crawl_id} has no accepted image, so there is nothing to assign")
            continue
        document = assign_crawl(storage, run, crawl, examples)
        say("changes", f"crawl {crawl.crawl_id} compared with the images of {run.run_id}, by prototype:")
        for line in describe_changes(document):
            say("changes", line)
        lines += [f"{'assigned':<9} {document['paths']['assignment']}"]
    return lines


def _with_image_form_of(run: Run, config: JobConfig) -> JobConfig:
    """Return `config` with the image form of `run`. Raises ConfigError if `config` sets another image form."""
    form = {name: getattr(run.config.ingest, name) for name in IMAGE_FORM_FIELDS}
    for name in config.ingest.model_fields_set & form.keys():
        if getattr(config.ingest, name) != form[name]:
            raise ConfigError(
                f"ingest.{name}: the images of run {run.run_id} were ingested with {form[name]}, not "
                f"{getattr(config.ingest, name)}; leave this setting out"
            )
    return config.model_copy(update={"stages": ["ingest"], "ingest": config.ingest.model_copy(update=form)})


def _crawls_to_assign(storage: Storage, run: Run, crawl_ids: Sequence[str]) -> list[Crawl]:
    """Return the complete crawls `crawl_ids`; by default, those with the image form of `run` that are new to it."""
    collection, form = run.config.collection, run.config.ingest.image_form
    crawls = {crawl.crawl_id: crawl for crawl in complete_crawls(storage, collection)}
    for crawl_id in crawl_ids:
        if crawl_id not in crawls:
            raise ConfigError(
                f"crawl {crawl_id!r}: no complete crawl with this id in {storage.uri(crawls_folder(collection))}"
            )
        if crawls[crawl_id].image_form != form:
            raise ConfigError(
                f"crawl {crawl_id}: its images are {_describe(crawls[crawl_id].image_form)}, but those of run "
                f"{run.run_id} are {_describe(form)}; ingest the crawl again with the settings of the run"
            )
    if crawl_ids:
        return [crawls[crawl_id] for crawl_id in dict.fromkeys(crawl_ids)]
    learned = {crawl.crawl_id for crawl in run.crawls}
    return [crawl for crawl in crawls.values() if crawl.image_form == form and crawl.crawl_id not in learned]


def _describe(form: ImageForm) -> str:
    size, mode, image_format, duplicates = form
    return f"{size} px, {mode}, {image_format.upper()}, {'with' if duplicates else 'without'} duplicates"
