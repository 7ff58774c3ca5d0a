"""One typed job configuration: a YAML file, then flags, then ``--set`` overrides.

Every value is checked here, before any work; a wrong one is refused with a ConfigError of one line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError

Stage = Literal["ingest", "cluster", "report"]
Method = Literal["dti-gmm", "dti-kmeans", "ti-gmm", "ti-kmeans", "gmm", "kmeans"]
PIXEL_METHODS: tuple[Method, ...] = ("gmm", "kmeans")
"""Methods without transformations."""
TransformName = Literal["color", "affine", "projective", "tps", "morphological"]
Padding = Literal["border", "zeros"]
Iterations = Annotated[int, Field(ge=1)]
STAGES: tuple[Stage, ...] = ("ingest", "cluster", "report")
SourceType = Literal[
    "auto", "folder", "instagram-scraper", "instaloader", "gallery-dl", "megadepth", "table", "img2dataset", "tar",
    "idx", "npz", "class-folders",
]  # fmt: skip
LATEST = "latest"
"""Instead of a run's id."""
OrderBy = Literal["quality", "size"]
ColorMode = Literal["rgb", "grayscale"]
ImageFormat = Literal["jpeg", "png"]
ImageForm = tuple[int, ColorMode, ImageFormat, bool]


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("each value may stand there once")
    return values


def _sources(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if value is not None and not (names and all(isinstance(name, str) and name for name in names)):
        raise ValueError(f"expected a folder, a file or s3://bucket/prefix, or a list of them, found {value!r}")
    return _distinct(value) if isinstance(value, list) else value


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("expected an odd number: a window has a centre")
    return value


def _folder_name(name: str) -> str:
    if len(name.encode()) > 200:
        raise ValueError("longer than 200 bytes in UTF-8")
    if name in {"mlflow.db", "mlartifacts"}:
        raise ValueError("tracking keeps its own files under this name")
    return name


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans(cls, values: Any) -> Any:
        """Few things here are yes or no, but Python takes true for 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            if name in cls.model_fields and cls.model_fields[name].annotation is bool:
                continue
            if isinstance(value, bool) or (isinstance(value, list) and any(isinstance(v, bool) for v in value)):
                raise ValueError(f"{name}: expected a value, found true or false")
        return values


class HttpConfig(_Section):
    """How images are downloaded where a crawl names them by http:// and https:// addresses.

    Connections are direct: a proxy of the environment is not used, since it would look up names itself, and which
    addresses it connects to could not be checked.
    """

    threads: int = Field(16, ge=1, le=256)
    """Downloads of one task at once; a task needs one CPU."""
    connect_timeout_s: float = Field(10.0, gt=0, le=600)
    """Longest wait for a name, a connection, and the TLS handshake, each."""
    read_timeout_s: float = Field(10.0, gt=0, le=600)
    """Longest silence of a server that is connected."""
    deadline_s: float = Field(60.0, gt=0, le=3600)
    """Longest time for one image, redirects included, however busily the server sends."""
    max_redirects: int = Field(5, ge=0, le=50)
    """Reject addresses that lead on more often."""
    attempts: int = Field(3, ge=1, le=20)
    """Times that an address is tried in one round where the fault may pass (no connection, timeouts, HTTP 408, 425,
    429, 5xx), with growing random pauses or as long as Retry-After asks."""
    rounds: int = Field(2, ge=1, le=20)
    """Rounds of attempts: those after the first come when all other records are done, for what is unreachable."""
    round_pause_s: float = Field(10.0, ge=0, le=86_400)
    """Pause before each round but the first."""
    max_wait_s: float = Field(30.0, gt=0, le=3600)
    """Longest pause between two attempts; where Retry-After asks for more, the address waits for the next round."""
    requests_per_host: int = Field(32, ge=1, le=10_000)
    """Requests that one host gets at once, from all tasks of the job together."""
    requests_per_second_per_host: float | None = Field(None, gt=0)
    """Requests that one host gets per second, from all tasks of the job together. Default: no such limit."""
    user_agent: str = Field("visual-trends/0.1", pattern=r"^[!-~][ -~]{0,499}$")
    """Header User-Agent of each request; its name up to the first / is the one that X-Robots-Tag can address."""
    honour_robots: bool = True
    """Reject images whose answer opts out by X-Robots-Tag: noai, noimageai, noindex, noimageindex or none."""
    allow_private_hosts: bool = False
    """Connect to addresses outside the public internet, too: this machine, its network, its cloud's metadata. A crawl
    decides which addresses are opened, so say yes only to crawls that you wrote."""
    retry_unreachable: bool = False
    """Open a complete crawl again for the records that could not be reached, if there are any, and only for them."""
    PACE: ClassVar[frozenset[str]] = frozenset(
        {
            "threads", "connect_timeout_s", "read_timeout_s", "deadline_s", "attempts", "rounds", "round_pause_s",
            "max_wait_s", "requests_per_host", "requests_per_second_per_host", "retry_unreachable",
        }
    )  # fmt: skip
    """Fields that say how patiently and fast a crawl is downloaded, not which: changing them goes on with the crawl."""


class IngestConfig(_Section):
    """How crawled files become images."""

    source_type: SourceType = "auto"
    """What the sources are. folder: images, tars and dumps, each folder as it looks. instagram-scraper, instaloader,
    gallery-dl, img2dataset, tar: the same, but there must be something of that. megadepth: one scene. table: addresses
    of images as CSV, TSV, JSON lines, Parquet or a plain list, gzipped or not. idx: labelled IDX files, as MNIST's.
    npz: a NumPy file with the arrays `images` and, optionally, `labels`. class-folders: a folder of images per class,
    whose name is the label. auto: found out by looking at each source; class-folders only when named."""
    url_column: str | None = Field(None, min_length=1)
    """Column with the addresses of a table. Default: found by its name, such as url or image_url."""
    sample: int | None = Field(None, ge=1)
    """Ingest this many records of the source, drawn at random. Default: all. Another sample of the same source adds to
    the collection, as any crawl does: give it a collection of its own where it shall stand alone."""
    sample_seed: int = Field(0, ge=0)
    """Of that draw."""
    keep_duplicates: bool = False
    """Keep images that repeat others. Default: of files with the same bytes, and of images that look the same (resized
    or recompressed reposts), the first is kept, so that what is posted often does not dominate clusters. Crawls that
    keep them and crawls that do not are two sets of images: they know nothing of each other."""
    image_size: int = Field(128, ge=8, le=1024)
    """Side in px of the square images in the shards: the short side is resized to it, the rest is cropped off."""
    color_mode: ColorMode = "rgb"
    """Channels of the images in the shards: rgb has three, grayscale one."""
    image_format: ImageFormat = "jpeg"
    """Of the images in the shards. png is lossless: images of the right size come through as they are."""
    min_side: int | None = Field(None, ge=1)
    """Reject images whose short side has fewer px. Default: a quarter of image_size."""
    max_pixels: int = Field(100_000_000, ge=1)
    """Reject images that claim more pixels than this, before decoding."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """Reject files larger than this, unread."""
    jpeg_quality: int = Field(95, ge=1, le=100)
    """Quality of the JPEG images in the shards, 1 to 100, without chroma subsampling."""
    records_per_shard: int = Field(256, ge=1)
    """Records of the crawl that one task turns into one shard."""
    http: HttpConfig = HttpConfig()
    """Downloads, where the crawl names images by their URLs."""

    @property
    def image_form(self) -> ImageForm:
        """What the images of two crawls must share to be clustered together, or to be repeats of each other."""
        return self.image_size, self.color_mode, self.image_format, self.keep_duplicates

    @property
    def smallest_side(self) -> int:
        """The effective `min_side` in px."""
        return self.min_side if self.min_side is not None else max(1, self.image_size // 4)


OF_THE_FORM = ("image_size", "color_mode", "image_format", "keep_duplicates")
"""Fields of `IngestConfig.image_form`: a model understands no other images than those it learned from."""


class ScheduleConfig(_Section):
    """When modules are switched on, when the learning rate drops and when training ends, in iterations.

    A stage ends when the loss has stopped improving, or at `max_iterations`. The first stage has no
    transformation; each further one switches on the next module; the last one runs at a tenth of the learning rate.
    """

    window: int = Field(60, ge=1)
    """Iterations over which losses and cluster shares are averaged; reassignment and convergence are decided here."""
    min_iterations: int = Field(240, ge=1)
    """Shortest stage."""
    max_iterations: Iterations | Annotated[list[Iterations], Field(min_length=1)] = 1200
    """Longest stage; or a list: the longest stage without a module, with one, with two, …"""
    final_iterations: int = Field(300, ge=0)
    """Longest last stage, at a tenth of the learning rate; 0 leaves it out."""
    tolerance: float = Field(0.05, gt=0, lt=1)
    """A stage has converged when the gain of a window is below this part of the gain since the stage began."""
    patience: int = Field(2, ge=1)
    """Consecutive windows without such a gain that end a stage."""

    def longest(self, modules: int) -> int:
        """Iterations of the longest stage with the first `modules` modules."""
        return self.max_iterations if isinstance(self.max_iterations, int) else self.max_iterations[modules]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        bounds = [self.max_iterations] if isinstance(self.max_iterations, int) else self.max_iterations
        if self.min_iterations > min(bounds):
            raise ValueError(f"min_iterations {self.min_iterations} is above max_iterations {self.max_iterations}")
        return self


class ClusteringConfig(_Section):
    """What is learned, and how."""

    method: Method = "dti-gmm"
    """dti-gmm: Gaussian mixture (Algorithm 1 of the DTI paper). dti-kmeans: squared error (equation 4). To compare
    with: ti-gmm and ti-kmeans optimise each image's transformations instead of predicting them (equation 2), gmm and
    kmeans have none."""
    k: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1), AfterValidator(_distinct)] = [8, 16, 32]
    """Numbers of prototypes to try, one trial each."""
    select_k: int | None = Field(None, ge=1)
    """The K to keep. Default: the elbow of the loss over `k`."""
    transforms: Annotated[list[TransformName], AfterValidator(_distinct)] = ["color", "projective"]
    """Transformation modules in the order in which they are applied and switched on; empty for none, as it is for
    gmm and kmeans."""
    tps_grid: int = Field(4, ge=2, le=16)
    """Control points along each side of the thin plate spline's grid."""
    morphology_kernel: Annotated[int, Field(ge=3, le=15), AfterValidator(_odd)] = 7
    """Side in px of the window of the morphological module; odd."""
    padding: Padding = "border"
    """What a spatial module finds beyond a prototype: its border, continued, or zeros (black)."""
    loss_weight_std: float | None = Field(None, gt=0)
    """Standard deviation in px of a Gaussian that weighs the pixels' losses, 1 at the middle of the image: for
    collections whose subject is there and whose margins distract. Default: all pixels count alike."""
    encoder: Literal["auto", "resnet18", "resnet20"] = "auto"
    """Backbone of the parameter predictors. auto: resnet20 below 64 px, resnet18 from there."""
    alignment_steps: int = Field(20, ge=1)
    """Gradient steps on each image's transformations, per iteration (ti-gmm and ti-kmeans)."""
    alignment_learning_rate: float = Field(0.02, gt=0)
    """Of Adam, in these steps."""
    initialization: Literal["random", "k-means++"] = "random"
    """Images that prototypes start from: any, as in the paper, or such as are far from each other, which begins with
    more views and a lower loss and has ended no better (tests/benchmarks/README.md)."""
    batch_size: int = Field(64, ge=2)
    """Images per iteration over all workers together; batch normalisation needs two."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of Adam, until the last stage divides it by 10."""
    weight_decay: float = Field(1e-6, ge=0)
    """L2 penalty on encoder and predictors; prototypes have none."""
    min_std: float = Field(0.25, gt=0)
    """Square root of the variance that is added to every pixel's variance (sigma_min in the paper)."""
    initial_std: float = Field(0.5, gt=0)
    """Learned standard deviation per pixel at the start."""
    reassign_below: float = Field(0.2, ge=0, lt=1)
    """A prototype with less than this part of an equal share restarts from the largest cluster."""
    screen_stride: int = Field(4, ge=1)
    """While training, rule out prototypes on every n-th pixel in both directions and score the best three on all
    pixels; 1 scores all prototypes on all pixels. Images under 16 n px are not screened."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Stages of the curriculum."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the initial prototypes, the order of images and the noise of reassignment."""
    seeds: int = Field(1, ge=1, le=1000)
    """Trials of each K, with seeds `seed`, `seed` + 1, …; the one with the lowest loss counts (minLoss)."""
    warm_start: str | None = None
    """Run of this collection, by its id, to take prototypes, encoder and predictors over from, or latest. Training then
    begins with all modules. Default: begin with random images and no module."""
    halving: bool = False
    """Stop the worse half of the seeds of each K early, again and again, until one is trained to the end."""
    workers: int = Field(1, ge=1)
    """Processes that train one trial together (DDP)."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """CPU threads of one worker. Default: those of a single machine, shared among all workers that train at once; 1 on
    a cluster."""
    gpus_per_worker: float = Field(1.0, gt=0, le=1)
    """GPUs of one worker, where workers train on GPUs; several small trials share one at 0.25."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs where the cluster has them for all workers, CPUs otherwise."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder. auto: bfloat16 on a device that computes in it."""
    checkpoint_every_s: float = Field(60.0, ge=0)
    """Seconds between checkpoints of a trial, kept at the next end of a window."""
    image_memory_gb: float = Field(4.0, gt=0)
    """GiB of decoded images that a worker uses at a time, shared with the others of its node. A collection that fits
    is decoded once and stays there; a larger one is decoded once per epoch, and its images are drawn from a window of
    half as much. 4 hold 87,000 images of 128 px."""
    collective_timeout_s: float = Field(900.0, gt=0)
    """Seconds that workers wait for each other in a step before their attempt ends: one is stuck."""
    max_failures: int = Field(2, ge=0)
    """Deaths of its workers that a trial survives: it goes on from its last checkpoint."""

    @model_validator(mode="before")
    @classmethod
    def _without_transforms(cls, values: Any) -> Any:
        """gmm and kmeans mean no transformations where none are asked for."""
        if isinstance(values, dict) and values.get("method") in PIXEL_METHODS:
            return {"transforms": [], **values}
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.method in PIXEL_METHODS and self.transforms:
            raise ValueError(
                f"transforms {self.transforms}: {self.method} has none; give --transforms '', or "
                f"--method dti-{self.method}"
            )
        if self.seed + self.seeds > 2**32:
            raise ValueError(f"seed {self.seed} and seeds {self.seeds}: the last trial's seed would be above 2^32 - 1")
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided among {self.workers} workers")
        if self.select_k is not None and self.select_k not in self.k:
            raise ValueError(f"select_k {self.select_k} is not among k {self.k}")
        bounds, stages = self.schedule.max_iterations, len(self.transforms) + 1
        if isinstance(bounds, list) and len(bounds) != stages:
            raise ValueError(
                f"schedule.max_iterations: {len(bounds)} values for {stages} stages, one without a module and one "
                f"for each of transforms {self.transforms}; give one number for all, or one for each stage"
            )
        return self


class ReportingConfig(_Section):
    """What the user sees."""

    order_by: OrderBy = "quality"
    """What the mosaic and the page begin with: clusters whose prototype explains most, or the largest ones."""
    examples: bool = True
    """Whether reports show photos, captions and links; without them prototypes speak for their images."""
    strip_images: int = Field(8, ge=1, le=64)
    """Nearest images that the picture of each cluster shows."""
    motion_images: int = Field(4, ge=0, le=16)
    """Nearest images that the animation of each cluster moves its prototype onto; 0 for no animations."""
    tile_px: int = Field(128, ge=16, le=512)
    """Side of one picture in mosaics and strips."""
    page_images: int = Field(8, ge=0, le=24)
    """Nearest, random and farthest images of each cluster on the page, each; fewer where clusters are so many that the
    page would be slow to open."""


class JobConfig(_Section):
    """Everything about one job. Sections are named after the folders of `pipeline/`."""

    collection: Annotated[str, Field(pattern=r"^[\w#][\w.#=+-]*$"), AfterValidator(_folder_name)]
    """Name of the collection, a hashtag or a landmark; a folder of that name is made in the workspace."""
    source: Annotated[str | list[str] | None, BeforeValidator(_sources)] = None
    """What to ingest, as `ingest.source_type` says: a folder or file, local or s3://bucket/prefix, or a list of them,
    which become one crawl in that order; not needed without that stage."""
    workspace: str = Field("workspace", min_length=1)
    """Folder or s3://bucket/prefix that keeps everything."""
    stages: Annotated[list[Stage], Field(min_length=1), AfterValidator(_distinct)] = list(STAGES)
    """Stages to run: ingest, cluster, report."""
    run_id: str | None = Field(None, pattern=r"^[\w][\w.=+-]{0,199}$")
    """Name of the clustering run. Default: derived from configuration and data, so the same job finds its own work."""
    tracking_uri: str | None = None
    """MLflow tracking server or database. Default: SQLite in the workspace."""
    SECTIONS: ClassVar[frozenset[str]] = frozenset({"ingest", "clustering", "reporting"})
    ingest: IngestConfig = IngestConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    reporting: ReportingConfig = ReportingConfig()

    @property
    def sources(self) -> list[str]:
        """All of `source`."""
        return [self.source] if isinstance(self.source, str) else self.source or []

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if "ingest" in self.stages and self.source is None:
            raise ValueError("source: the ingest stage needs something to read; give --source")
        if "://" in self.workspace and not self.workspace.startswith("s3://"):
            raise ValueError(f"workspace {self.workspace!r}: expected a folder or s3://bucket/prefix")
        if self.tracking_uri is None and "://" in self.workspace and "report" in self.stages:
            raise ValueError(
                f"tracking_uri: the default SQLite database cannot live in {self.workspace}; give --tracking-uri"
            )
        return self


def load_config(file: Path | None, flags: Mapping[str, Any], overrides: list[str]) -> JobConfig:
    """The configuration that `file`, then `flags` (dotted key to value), then `overrides` (``a.b=c``) describe.

    Raises ConfigError, of one line, for an unreadable file, an unknown key, a wrong type or an impossible value.
    """
    values: dict[str, Any] = _read_yaml(file) if file else {}
    for key, value in flags.items():
        _put(values, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {override!r}: expected section.key=value, such as clustering.batch_size=32")
        try:
            _put(values, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: the value is not YAML") from error
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from error


def dump_config(config: JobConfig) -> str:
    """`config` as YAML that `load_config` reads back to the same configuration."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def digest(*parts: Any) -> str:
    """Twelve hexadecimal digits that change when any of the JSON-serialisable `parts` does."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: not YAML ({' '.join(str(error).split())})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {file}: expected keys and values, found {type(values).__name__}")
    # A section whose lines are all commented out reads as nothing.
    return {key: {} if value is None and key in JobConfig.SECTIONS else value for key, value in values.items()}


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for name in sections:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{dotted}: {name} is a value, not a section")
        values = inner
    if isinstance(value, dict) and isinstance(values.get(last), dict):
        for key, inner in value.items():
            _put(values[last], str(key), inner)
    else:
        values[last] = value


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "should be")
    if not where or message.split(":")[0] == where:
        return message
    shown = "" if error["type"] in {"missing", "value_error"} else f" (found {error['input']!r})"
    return f"{where}: {message}{shown}"
