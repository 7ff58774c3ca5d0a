"""Start from an earlier run of the collection: what it learned is taken over, and all modules train from the start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import yaml

from pipeline.clustering.checkpoint import load_method
from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.model.dti import DTI
from pipeline.clustering.seeding import generator
from pipeline.clustering.trial import Trial
from pipeline.clustering.workers import place, summed
from pipeline.config import LATEST, JobConfig
from pipeline.console import say
from pipeline.errors import ConfigError, StorageError
from pipeline.paths import RunPaths, runs_of
from pipeline.storage import Storage, read_json

SHARED = {
    "ingest": ("image_size", "color_mode"),
    "clustering": ("method", "transforms", "tps_grid", "morphology_kernel", "encoder", "padding"),
}
"""What both runs must have in common for weights to mean the same."""
WORST_PART = 0.1
"""New prototypes start from images among this part, the worst explained."""
BATCH = 256


@dataclass(frozen=True)
class EarlierRun:
    """A finished run of the collection."""

    run_id: str
    created_at: str
    crawls: frozenset[str]
    """Digests of the crawls that it learned from."""
    trials: list[Trial]
    selected: Trial


def with_earlier_run(storage: Storage, config: JobConfig, digests: set[str]) -> JobConfig:
    """`config` with the id of the run to start from in place of ``latest``; without, where there is none yet.

    A run of exactly the crawls of `digests` is not earlier: the same job again must find its own run.

    Raises ConfigError where the run does not exist, or is of another model.
    """
    asked = config.clustering.warm_start
    if asked is None:
        return config
    if asked == LATEST:
        runs = [run for run in _finished(storage, config.collection) if run.crawls != digests]
        fitting = [run for run in runs if not _differences(storage, config, run.run_id)]
        chosen = max(fitting, key=lambda run: run.created_at).run_id if fitting else None
        say("cluster", f"starts from what {chosen} learned" if chosen else "no earlier run to start from")
        return _starting_from(config, chosen)
    if not storage.exists(RunPaths(config.collection, asked).marker):
        raise ConfigError(f"clustering.warm_start: {asked!r} is no finished run of {config.collection}")
    if differences := _differences(storage, config, asked):
        raise ConfigError(f"clustering.warm_start: run {asked} differs in {', '.join(differences)}")
    return config


def earlier_checkpoint(storage: Storage, collection: str, run_id: str, k: int) -> str:
    """Key of the model that a trial of `k` starts from: the run's best trial of that K, or the one that it kept."""
    run = _read(storage, RunPaths(collection, run_id))
    same = [trial for trial in run.trials if trial.k == k]
    trial = same[0] if same else run.selected
    key = RunPaths(collection, run_id).checkpoint(trial.name)
    if not storage.exists(key):
        raise ConfigError(f"clustering.warm_start: {storage.uri(key)} is gone; choose another run, or none")
    return key


@torch.no_grad()
def take_over(method: DTI, storage: Storage, key: str, images: ImageSet, seed: int) -> None:
    """Give `method` encoder, prototypes and predictors of the model stored as `key`.

    Of more prototypes than there is room for, the smallest are left out. Where `method` has more, each of these
    starts, untransformed, from an image among the worst explained, with the predictors of the prototype that
    explained it.

    Args:
        method: of the same kind as the stored model, on any device.
        images: of which the worst explained are found, by a pass over all of them, shared among the workers.
        seed: of the choice among them.
    """
    earlier = load_method(storage, key, method.prototypes.device)
    kept = earlier.shares_K().cpu().argsort(descending=True, stable=True)[: method.k]
    own = {id(parameter) for parameter in method.prototype_parameters()}
    known = earlier.state_dict()
    for name, value in method.state_dict(keep_vars=True).items():
        if id(value) in own:
            value[: len(kept)] = known[name][kept].to(value)
        else:
            value.copy_(known[name])
    if len(kept) == method.k:
        return
    new = torch.arange(len(kept), method.k)
    chosen, cluster = _worst_explained(earlier, images, len(new), seed)
    donor = torch.tensor([kept.tolist().index(int(c)) for c in cluster])
    for parameter in method.prototype_parameters():
        parameter[new] = parameter[donor]
    method.prototypes[new] = to_float(images[chosen]).to(method.prototypes)
    for heads in method.heads.values():
        for last in (heads.weights[-1], heads.biases[-1]):  # type: ignore[index]
            last[new] = 0


def _worst_explained(earlier: DTI, images: ImageSet, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`n` image indices, drawn from the worst explained, and the prototype of each."""
    device = earlier.prototypes.device
    rank, world_size = place()
    loss = torch.zeros(len(images), dtype=torch.float64, device=device)
    cluster = torch.zeros(len(images), dtype=torch.int64, device=device)
    # Whole batches, so that their results are rounded alike on any number of workers.
    for part in torch.arange(len(images)).split(BATCH)[rank::world_size]:
        assigned = earlier.assign(to_float(images[part].to(device)))
        loss[part], cluster[part] = assigned.loss_B.double(), assigned.cluster_B
    loss, cluster = summed(loss).cpu(), summed(cluster).cpu()
    among = max(n, int(WORST_PART * len(loss)))
    worst = loss.argsort(descending=True, stable=True)[:among]
    chosen = worst[torch.randperm(among, generator=generator(seed))[:n]]
    return chosen, cluster[chosen]


def _finished(storage: Storage, collection: str) -> list[EarlierRun]:
    keys = [key for key in storage.list(runs_of(collection)) if key.endswith("/run.json")]
    return [_read(storage, RunPaths(collection, key.split("/")[-2])) for key in keys]


def _read(storage: Storage, paths: RunPaths) -> EarlierRun:
    document = read_json(storage, paths.marker)
    try:
        trials = [Trial(trial["k"], trial["seed"]) for trial in sorted(document["trials"], key=lambda t: t["loss"])]
        crawls = frozenset(crawl["digest"] for crawl in document["crawls"] if crawl["images"])
        selected = Trial(document["selected"]["k"], document["selected"]["seed"])
        return EarlierRun(paths.run_id, document["created_at"], crawls, trials, selected)
    except (KeyError, TypeError) as error:
        raise StorageError(f"{storage.uri(paths.marker)}: not a run; delete its folder, or report it again") from error


def _differences(storage: Storage, config: JobConfig, run_id: str) -> list[str]:
    """Names of what the run and `config` do not have in common, but must."""
    key = RunPaths(config.collection, run_id).config
    try:
        found = yaml.safe_load(storage.read_bytes(key))
    except yaml.YAMLError as error:
        raise StorageError(f"{storage.uri(key)}: not YAML; delete the folder of that run") from error
    asked = config.model_dump(mode="json")
    return [
        f"{section}.{name}"
        for section, names in SHARED.items()
        for name in names
        if found.get(section, {}).get(name) != asked[section][name]
    ]


def _starting_from(config: JobConfig, run_id: str | None) -> JobConfig:
    clustering = config.clustering.model_copy(update={"warm_start": run_id})
    return config.model_copy(update={"clustering": clustering})
