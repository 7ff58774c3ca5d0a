"""New crawls of a collection assigned to prototypes that are learned already."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import LATEST, OF_THE_FORM, ImageForm, JobConfig
from pipeline.console import say
from pipeline.errors import ConfigError
from pipeline.ingest.stage import ingest
from pipeline.orchestration.forgetting import check_not_forgetting
from pipeline.paths import crawls_of
from pipeline.records import Crawl
from pipeline.reporting.assignment.changes import in_words
from pipeline.reporting.assignment.new_crawl import assign_crawl, check_model
from pipeline.reporting.run import PastRun, latest_run, past_run
from pipeline.session import check_place
from pipeline.shards import complete_crawls
from pipeline.storage import Storage


def assign_collection(storage: Storage, config: JobConfig, run_id: str, crawl_ids: Sequence[str]) -> list[str]:
    """Ingest `config.sources`, if any, and assign crawls with the model of an earlier run; places of results, as lines.

    Without sources it assigns the crawls `crawl_ids`, and without those all that the run did not learn from. What is
    learned says the run; of `config` counts where everything is, how sources are read, and whether examples are shown.

    Args:
        run_id: a reported run of the collection, or ``latest``.
        crawl_ids: complete crawls of the collection.

    Raises PipelineError; what can never be done is refused before any work.
    """
    check_place(config.model_copy(update={"stages": ["ingest"]}))  # nothing is trained
    check_not_forgetting(storage, config.collection)
    if crawl_ids and config.sources:
        raise ConfigError("crawl: name crawls that are complete, or give a source to read; not both")
    found = latest_run(storage, config.collection) if run_id == LATEST else past_run(storage, config.collection, run_id)
    config = _in_the_form_of(found, config)
    check_model(storage, found)
    crawls = [ingest(storage, config)] if config.sources else _complete(storage, found, crawl_ids)
    if not crawls:
        say("assign", f"nothing to do: run {found.run_id} learned from every complete crawl of its image form")
    lines = []
    examples = found.config.reporting.examples and config.reporting.examples
    for crawl in crawls:
        if not crawl.accepted:
            say("assign", f"crawl {crawl.crawl_id} brought no image: there is nothing to assign")
            continue
        document = assign_crawl(storage, found, crawl, examples)
        say("changes", f"crawl {crawl.crawl_id} beside the images of {found.run_id}, by prototype:")
        for line in in_words(document):
            say("changes", line)
        lines += [f"{'assigned':<9} {document['paths']['assignment']}"]
    return lines


def _in_the_form_of(run: PastRun, config: JobConfig) -> JobConfig:
    """`config`, which ingests images as those of `run`. Raises ConfigError where it asks for others."""
    form = {name: getattr(run.config.ingest, name) for name in OF_THE_FORM}
    for name in config.ingest.model_fields_set & form.keys():
        if getattr(config.ingest, name) != form[name]:
            raise ConfigError(
                f"ingest.{name}: run {run.run_id} learned from images with {form[name]}, not "
                f"{getattr(config.ingest, name)}; leave it out"
            )
    return config.model_copy(update={"stages": ["ingest"], "ingest": config.ingest.model_copy(update=form)})


def _complete(storage: Storage, run: PastRun, crawl_ids: Sequence[str]) -> list[Crawl]:
    """The complete crawls `crawl_ids`; without any, those of the run's image form that it did not learn from."""
    collection, form = run.config.collection, run.config.ingest.image_form
    crawls = {crawl.crawl_id: crawl for crawl in complete_crawls(storage, collection)}
    for crawl_id in crawl_ids:
        if crawl_id not in crawls:
            raise ConfigError(
                f"crawl {crawl_id!r}: no complete crawl of that name in {storage.uri(crawls_of(collection))}"
            )
        if crawls[crawl_id].image_form != form:
            raise ConfigError(
                f"crawl {crawl_id}: its images are {_form(crawls[crawl_id].image_form)}, run {run.run_id} learned from "
                f"{_form(form)}"
            )
    if crawl_ids:
        return [crawls[crawl_id] for crawl_id in dict.fromkeys(crawl_ids)]
    learned = {crawl.crawl_id for crawl in run.crawls}
    return [crawl for crawl in crawls.values() if crawl.image_form == form and crawl.crawl_id not in learned]


def _form(form: ImageForm) -> str:
    size, mode, image_format, repeats = form
    return f"{size} px, {mode}, {image_format.upper()}, {'with' if repeats else 'without'} repeats"
