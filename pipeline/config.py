"""The typed configuration of a job, read from a YAML file, then flags, then ``--set`` overrides (the last one wins).

Every value is checked before any work begins; an invalid value raises a ConfigError with a one-line message.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.config_errors import explain
from pipeline.console import say
from pipeline.errors import ConfigError
from pipeline.masking import mask

Stage = Literal["ingest", "cluster", "report"]
Method = Literal["dti-gmm", "dti-kmeans", "ti-gmm", "ti-kmeans", "gmm", "kmeans"]
PIXEL_METHODS: tuple[Method, ...] = ("gmm", "kmeans")
"""Methods that cluster pixels directly, without transformation modules."""
TransformName = Literal["color", "affine", "projective", "tps", "morphological"]
Padding = Literal["border", "zeros"]
Iterations = Annotated[int, Field(ge=1)]
STAGES: tuple[Stage, ...] = ("ingest", "cluster", "report")
S3Access = Literal["signed", "unsigned", "requester-pays"]
SourceType = Literal[
    "auto", "folder", "instagram-scraper", "instaloader", "gallery-dl", "megadepth", "table", "fourcat", "zeeschuimer",
    "apify", "img2dataset", "tar", "zip", "idx", "npz", "class-folders",
]  # fmt: skip
Quality = Literal["quick", "standard", "best"]
QUALITY: dict[Quality, dict[str, Any]] = {
    "quick": {
        "k": [16],
        "schedule": {"window": 20, "min_iterations": 60, "max_iterations": 60, "final_iterations": 60},
    },
    "standard": {},
    "best": {
        "seeds": 3,
        "schedule": {"max_iterations": 3000, "final_iterations": 900, "tolerance": 0.02, "patience": 3},
    },
}
"""Defaults of the clustering settings for each value of `JobConfig.quality`, where they differ from those below."""
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
"""Environment variable that names the MLflow server for all programs that use MLflow."""
GIVEN_ADDRESS = os.environ.get(TRACKING_VARIABLE)
"""Its value when the process began: MLflow itself changes the variable later."""
LATEST = "latest"
"""Value that selects the newest run of the collection where a run id is expected."""
OrderBy = Literal["quality", "size"]
ColorMode = Literal["rgb", "grayscale"]
ImageFormat = Literal["jpeg", "png"]
ImageForm = tuple[int, ColorMode, ImageFormat, bool]
"""Image size in px, colour mode, file format, and whether duplicates are kept; see `IngestConfig.image_form`."""


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError(f"values must be unique, found {values}")
    return values


def _sources(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if value is not None and not (names and all(isinstance(name, str) and name for name in names)):
        raise ValueError(f"expected a folder, a file or s3://bucket/prefix, or a list of them, found {value!r}")
    return _distinct(value) if isinstance(value, list) else value


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"expected an odd number, so that the window has a centre pixel; found {value}")
    return value


def _is_letter(character: str) -> bool:
    """Return whether `character` is a letter, a mark, a digit, an emoji or a part of one."""
    category = unicodedata.category(character)
    return category[0] in "LMN" or (category in {"So", "Sk"} and character >= "\u2600")


def _collection_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name)
    first, inside = "_#", "_#.=+-\u200d"
    wrong = next((c for i, c in enumerate(name) if not _is_letter(c) and c not in (inside if i else first)), None)
    if wrong is not None or not name:
        raise ValueError(
            "expected letters, digits, emoji and . # = + - _, beginning with a letter, a digit, an emoji, _ or #; "
            f"found {name!r}"
        )
    if name == "Default":
        raise ValueError("Default is the name of an experiment of MLflow itself; choose another name")
    if (size := len(name.encode())) > 200:
        raise ValueError(f"expected at most 200 bytes in UTF-8, found {size}")
    if name in {"mlflow.db", "mlartifacts"}:
        raise ValueError(f"{name} is reserved for the files of MLflow; choose another name")
    return name


def _tracking_uri(uri: str | None) -> str | None:
    """Refuse a tracking URI that MLflow can never use."""
    if uri is None or uri in {"databricks", "databricks-uc"}:
        return uri
    scheme, separator, rest = uri.partition("://")
    kind = scheme.lower().partition("+")[0]
    if kind in {"http", "https"} and re.match(r"[^/?#\s]", rest):
        return uri
    if kind in {"postgresql", "mysql", "mssql", "databricks", "databricks-uc"} and rest:
        return uri
    if kind == "sqlite" and separator and rest.startswith("/") and rest[1:] not in {"", ":memory:"}:
        return uri
    raise ValueError(
        f"expected http://HOST:PORT, sqlite:///PATH/mlflow.db or the address of a database server, found {mask(uri)}"
    )


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans(cls, values: Any) -> Any:
        """Refuse true and false where a field is not boolean: Python would accept true as the number 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            if name in cls.model_fields and cls.model_fields[name].annotation is bool:
                continue
            if isinstance(value, bool) or (isinstance(value, list) and any(isinstance(v, bool) for v in value)):
                raise ValueError(f"{name}: expected a number or a string, found true or false")
        return values


class HttpConfig(_Section):
    """How images are downloaded where a crawl names them by http:// and https:// URLs.

    Connections are direct. Proxies that the environment names are not used, because a proxy resolves host names itself,
    so the addresses that it connects to could not be checked.
    """

    threads: int = Field(16, ge=1, le=256)
    """Number of images that one task downloads at once; each task occupies one CPU."""
    connect_timeout_s: float = Field(10.0, gt=0, le=600)
    """Maximum time in seconds for each of the DNS lookup, the connection and the TLS handshake."""
    read_timeout_s: float = Field(10.0, gt=0, le=600)
    """Maximum time in seconds to wait for the next bytes from a connected server."""
    deadline_s: float = Field(60.0, gt=0, le=3600)
    """Maximum total time in seconds for one image, redirects included, even if the server keeps sending data."""
    max_redirects: int = Field(5, ge=0, le=50)
    """Maximum number of redirects per image; URLs with more redirects are rejected."""
    attempts: int = Field(3, ge=1, le=20)
    """Maximum number of attempts per URL in one round. Only temporary faults are retried (no connection, timeout, HTTP
    408, 425, 429 or 5xx), after random pauses of growing length or after the time given by Retry-After."""
    rounds: int = Field(2, ge=1, le=20)
    """Number of rounds of attempts. Further rounds begin when all other records of the crawl are done, and retry only
    the URLs that are still unreachable."""
    round_pause_s: float = Field(10.0, ge=0, le=86_400)
    """Pause in seconds before each round except the first."""
    max_wait_s: float = Field(30.0, gt=0, le=3600)
    """Maximum pause in seconds between two attempts; a URL whose Retry-After is longer waits for the next round."""
    requests_per_host: int = Field(32, ge=1, le=10_000)
    """Maximum number of simultaneous requests to one host, over all tasks of the job."""
    requests_per_second_per_host: float | None = Field(None, gt=0)
    """Maximum number of requests per second to one host, over all tasks of the job. Default: no limit."""
    user_agent: str = Field("visual-trends/0.1", pattern=r"^[!-~][ -~]{0,499}$")
    """User-Agent header of each request. X-Robots-Tag headers can address it by the part before the first /."""
    honour_robots: bool = True
    """Reject images whose response opts out by an X-Robots-Tag header: noai, noimageai, noindex, noimageindex or none.
    """
    robots_txt: bool = False
    """Reject images that the /robots.txt of their host forbids for `user_agent`. Each process that downloads requests
    it once per hour from each host; nothing is downloaded from a host that answers this request with HTTP 5xx."""
    allow_private_hosts: bool = False
    """Also connect to addresses outside the public internet, such as this machine, its network or the metadata service
    of its cloud provider. The crawl chooses the addresses, so set this only for crawls that you wrote yourself."""
    retry_unreachable: bool = False
    """Retry the unreachable records of a complete crawl; its other records are not processed again."""
    PACING_FIELDS: ClassVar[frozenset[str]] = frozenset(
        {
            "threads", "connect_timeout_s", "read_timeout_s", "deadline_s", "attempts", "rounds", "round_pause_s",
            "max_wait_s", "requests_per_host", "requests_per_second_per_host", "retry_unreachable",
        }
    )  # fmt: skip
    """Fields that affect only the speed and the patience of downloads. They are not part of the crawl id, so a job
    continues its crawl after they have changed."""


class IngestConfig(_Section):
    """How the files of a crawl become images in shards."""

    source_type: SourceType = "auto"
    """Type of the sources.

    - auto: detect the type of each source; class-folders is never detected and must be named.
    - folder: images, tars, ZIP archives and dumps of scrapers; the layout of each folder is detected.
    - instagram-scraper, instaloader, gallery-dl, img2dataset, tar, zip: the same, but the source must contain at least
      one item of the named type.
    - megadepth: one scene of MegaDepth.
    - table: URLs of images as CSV, TSV, JSON, JSON lines, Parquet or a plain list, gzipped or not.
    - fourcat, zeeschuimer, apify: tables of posts of Instagram that one of these tools captured.
    - idx: labelled IDX files, in the format of MNIST.
    - npz: a NumPy file with the arrays `images` and, optionally, `labels`.
    - class-folders: one folder of images per class, whose name is the label.
    """
    s3_access: S3Access = "signed"
    """How buckets of sources are read. signed: with the credentials that boto3 finds. unsigned: without credentials, as
    public buckets allow. requester-pays: with credentials, whose account pays for the requests and the traffic."""
    url_column: str | None = Field(None, min_length=1)
    """Name of the table column that contains the URLs. Default: found by what the columns hold and by their names."""
    encoding: str | None = Field(None, min_length=1)
    """Encoding of tables that are text files, such as cp1252 or shift_jis. Default: detected; UTF-8 in most cases."""
    sample: int | None = Field(None, ge=1)
    """Number of records to ingest, drawn from the source at random. Default: all records. Each sample is a crawl, so a
    second sample of the same source is added to the collection; use another collection to keep samples apart."""
    sample_seed: int = Field(0, ge=0)
    """Seed of the random draw of `sample`."""
    keep_duplicates: bool = False
    """Keep duplicates. By default, only the first of all files with the same bytes, and of all images that look the
    same (resized or recompressed reposts), is kept, so that frequently posted images do not dominate the clusters.
    Crawls with and without duplicates are separate sets of images: they are neither deduplicated nor clustered
    together."""
    image_size: int = Field(128, ge=8, le=1024)
    """Side in px of the square images in the shards. The short side of each image is resized to it, and the
    image is cropped to a square at its centre."""
    color_mode: ColorMode = "rgb"
    """Colour mode of the images in the shards: rgb (three channels) or grayscale (one channel)."""
    image_format: ImageFormat = "jpeg"
    """File format of the images in the shards. png is lossless: images that already have `image_size` keep their
    pixels."""
    min_side: int | None = Field(None, ge=1)
    """Minimum short side in px; smaller images are rejected. Default: a quarter of `image_size`."""
    max_pixels: int = Field(100_000_000, ge=1)
    """Maximum number of pixels according to the image header; larger images are rejected before they are decoded."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """Maximum file size in bytes; larger files are rejected without being read."""
    jpeg_quality: int = Field(95, ge=1, le=100)
    """Quality of the JPEG images in the shards, from 1 to 100; chroma is not subsampled."""
    records_per_shard: int = Field(256, ge=1)
    """Number of records per shard; each shard is built by one task."""
    http: HttpConfig = HttpConfig()
    """Settings of downloads, used where the crawl names its images by URLs."""

    video_thumbnails: bool = False
    """Ingest the thumbnails of videos in tables of posts as images. By default, a video is a rejected record."""
    author_hash: bool = False
    """Store a pseudonym of the author of each captured post, as `author_hash` among the further columns. It is a hash
    of the account's name; whoever knows the name can compute it. By default, nothing about the author is stored."""

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                "".encode(value)
            except (LookupError, ValueError) as error:
                raise ValueError("no such encoding; examples are utf-8, utf-16, cp1252 and shift_jis") from error
        return value

    @property
    def image_form(self) -> ImageForm:
        """Image size in px, colour mode, file format, and whether duplicates are kept.

        Only crawls with the same image form are clustered together and deduplicated against each other.
        """
        return self.image_size, self.color_mode, self.image_format, self.keep_duplicates

    @property
    def smallest_side(self) -> int:
        """Effective value of `min_side` in px."""
        return self.min_side if self.min_side is not None else max(1, self.image_size // 4)


IMAGE_FORM_FIELDS = ("image_size", "color_mode", "image_format", "keep_duplicates")
"""Names of the `IngestConfig` fields in `IngestConfig.image_form`, in order. A trained model accepts only images whose
form equals that of its training images."""


class ScheduleConfig(_Section):
    """What is learned when, and when training ends, in iterations.

    The first stage learns prototypes, with the module that the start has aligned; each further stage learns one thing
    more: the predictors of a module, in the configured order, and then, in a mixture, the variances of pixels. The last
    stage has a tenth of the learning rate, and learns the mixing proportions. A stage ends when the loss has stopped
    improving, or at `max_iterations`.
    """

    window: int = Field(60, ge=1)
    """Number of iterations in a window. Losses and cluster shares are averaged over a window, and restarts and
    convergence are decided at its end."""
    min_iterations: int = Field(120, ge=1)
    """Minimum length of a stage in iterations."""
    max_iterations: Iterations | Annotated[list[Iterations], Field(min_length=1)] = 1200
    """Maximum length of a stage in iterations: one number, or a list with the maximum of each stage but the last."""
    final_iterations: int = Field(300, ge=0)
    """Maximum length in iterations of the last stage, at a tenth of the learning rate; 0 leaves the stage out."""
    tolerance: float = Field(0.05, gt=0, lt=1)
    """Relative gain below which a window is without progress. The relative gain is the decrease of the loss over the
    window, divided by its decrease since the stage began."""
    patience: int = Field(2, ge=1)
    """Number of consecutive windows without progress after which a stage has converged and ends."""

    def longest(self, stage: int) -> int:
        """Return the maximum number of iterations of the stage with this index, which is not the last one."""
        return self.max_iterations if isinstance(self.max_iterations, int) else self.max_iterations[stage]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        bounds = [self.max_iterations] if isinstance(self.max_iterations, int) else self.max_iterations
        if self.min_iterations > min(bounds):
            raise ValueError(
                f"min_iterations {self.min_iterations} is above max_iterations {self.max_iterations}; lower it"
            )
        return self


class ClusteringConfig(_Section):
    """Which model is trained, and how."""

    method: Method = "dti-gmm"
    """Clustering method. dti-gmm: DTI with a Gaussian mixture (Algorithm 1 of the DTI paper). dti-kmeans: DTI with
    K-means, which minimises the squared error (equation 4). Baselines: ti-gmm and ti-kmeans optimise the
    transformations of each image instead of predicting them (equation 2); gmm and kmeans have no transformations."""
    k: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1), AfterValidator(_distinct)] = [8, 16, 32]
    """Numbers of prototypes to try; each K is trained in a trial of its own."""
    select_k: int | None = Field(None, ge=1)
    """Number of prototypes K to report; must be in `k`. Default: the elbow of the loss over `k`."""
    transforms: Annotated[list[TransformName], AfterValidator(_distinct)] = ["color", "projective"]
    """Transformation modules, in the order in which they are applied and switched on; color, which is fitted in closed
    form, is always applied last and on from the start. An empty list uses no module; it is the default for gmm and
    kmeans."""
    tps_grid: int = Field(4, ge=2, le=16)
    """Number of control points along each side of the grid of the thin plate spline (module tps)."""
    morphology_kernel: Annotated[int, Field(ge=3, le=15), AfterValidator(_odd)] = 7
    """Side in px of the window of the morphological module; must be odd."""
    padding: Padding = "border"
    """Values that spatial modules read beyond the border of a prototype: border repeats the border pixels, zeros is
    black."""
    loss_weight_std: float | None = Field(None, gt=0)
    """Standard deviation in px of a Gaussian weight on the losses of the pixels, 1 at the centre of the image; use it
    for collections with a central subject and distracting margins. Default: all pixels have equal weight."""
    encoder: Literal["auto", "resnet18", "resnet20"] = "auto"
    """Encoder network of the predictors. auto: resnet20 if its input is below 64 px, otherwise resnet18."""
    encoder_px: int | None = Field(None, ge=8)
    """Side in px to which images are averaged down for the encoder; prototypes and losses keep the full size. Default:
    a quarter of the image size, at least 14 and at most 16 px (tests/benchmarks/README.md). The DTI paper has the image
    size."""
    alignment_steps: int = Field(20, ge=1)
    """Number of gradient steps on the transformations of each image, per iteration (only ti-gmm and ti-kmeans)."""
    alignment_learning_rate: float = Field(0.02, gt=0)
    """Learning rate of Adam in the steps of `alignment_steps`."""
    initialization: Literal["aligned", "k-means", "random"] = "aligned"
    """Start of training. aligned: the means of clusters that are found by aligning all images of a sample to each
    other, and predictors that have learned these alignments (pipeline/clustering/aligned_start.py); without predictors
    of a module that moves pixels, as for ti-gmm and gmm, the same as k-means. k-means: the means of the clusters of
    K-means on thumbnails. random: random images, as in the paper. Where the module color is used, aligned and k-means
    standardise the light of images."""
    batch_size: int = Field(64, ge=2)
    """Number of images per iteration, over all workers together; batch normalisation needs at least two."""
    learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of Adam; the last stage divides it by 10."""
    weight_decay: float = Field(1e-6, ge=0)
    """L2 penalty on the encoder and the predictors; it does not apply to prototypes."""
    min_std: float = Field(0.25, gt=0)
    """Minimum standard deviation per pixel (sigma_min in the paper): its square is added to the variance of each pixel.
    """
    initial_std: float = Field(0.02, gt=0)
    """Learned standard deviation per pixel at the start of the stage that learns it; before, it is 0."""
    restart_below: float = Field(1.0, ge=0, le=10)
    """A prototype restarts as one half of another cluster if its removal costs less than this factor times what the
    split gains (pipeline/clustering/split_merge.py). 0 never restarts a prototype."""
    screen_stride: int = Field(4, ge=1)
    """Stride n of screening during training: all prototypes are scored on every n-th pixel in both directions, and only
    the best three on all pixels. 1 disables screening. Images below 16 n px are never screened."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Lengths of the stages of training."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the initial prototypes, the networks and the order of the images."""
    seeds: int = Field(1, ge=1, le=1000)
    """Number of trials for each K, with the seeds `seed`, `seed` + 1, …; the trial with the lowest loss is kept
    (minLoss in the paper)."""
    warm_start: str | None = None
    """Id of an earlier run of this collection whose prototypes, encoder and predictors are taken over, or latest.
    Training then begins with all modules switched on. Default: train from scratch."""
    halving: bool = False
    """Stop the worse half of the seeds of each K early, repeatedly, until only one is trained to the end (successive
    halving)."""
    workers: int = Field(1, ge=1)
    """Number of processes that train one trial together (DDP)."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """Number of CPU threads per worker. Default: 1 on a cluster; a single machine divides its CPUs among all workers
    that train at the same time."""
    gpus_per_worker: float = Field(1.0, gt=0, le=1)
    """Number of GPUs per worker where workers train on GPUs; with 0.25, four workers share one GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the workers. auto: GPUs if the cluster has enough of them for all workers, otherwise CPUs."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numerical precision of the encoder. auto: bfloat16 on devices that support it, otherwise float32."""
    checkpoint_every_s: float = Field(60.0, ge=0)
    """Minimum time in seconds between two checkpoints of a trial; checkpoints are taken at the ends of windows."""
    image_memory_gb: float = Field(4.0, gt=0)
    """Maximum memory in GiB for the decoded images that a worker uses at one time; the workers of a node share this
    memory. A collection that fits is decoded once. A larger collection is decoded once per epoch, and its images are
    drawn from windows of half this memory. 4 GiB hold 87,000 images of 128 px."""
    collective_timeout_s: float = Field(900.0, gt=0)
    """Maximum time in seconds that workers wait for each other in one step; after that, a worker counts as stuck and
    the attempt at the trial fails."""
    max_failures: int = Field(2, ge=0)
    """Maximum number of worker failures per trial; after each of them, the trial continues from its last checkpoint."""

    @property
    def predicted(self) -> list[TransformName]:
        """The modules whose parameters a network predicts; those of color are fitted in closed form."""
        return [name for name in self.transforms if name != "color"]

    @property
    def aligned_module(self) -> TransformName | None:
        """The module whose predictors learn alignments before training; None if training starts unaligned."""
        if self.initialization != "aligned" or not self.method.startswith("dti"):
            return None
        return next((name for name in self.predicted if name != "morphological"), None)

    @property
    def modules_at_start(self) -> int:
        """Number of predicted modules that are on in the first stage."""
        return self.predicted.index(self.aligned_module) + 1 if self.aligned_module else 0

    @property
    def is_mixture(self) -> bool:
        """Whether the method is a Gaussian mixture, which learns variances and mixing proportions."""
        return self.method.endswith("gmm")

    @property
    def n_trials(self) -> int:
        """Number of trials: one for each combination of K and seed."""
        return len(self.k) * self.seeds

    @model_validator(mode="before")
    @classmethod
    def _without_transforms(cls, values: Any) -> Any:
        """Default `transforms` to an empty list for gmm and kmeans."""
        if isinstance(values, dict) and values.get("method") in PIXEL_METHODS:
            return {"transforms": [], **values}
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.method in PIXEL_METHODS and self.transforms:
            raise ValueError(
                f"transforms {self.transforms}: {self.method} has no transformations; give --transforms '', or "
                f"--method dti-{self.method}"
            )
        if self.seed + self.seeds > 2**32:
            raise ValueError(
                f"seed {self.seed} and seeds {self.seeds}: the seed of the last trial is above 2^32 - 1; lower seed"
            )
        if self.batch_size % self.workers:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided among {self.workers} workers; give a multiple of the "
                "number of workers"
            )
        if self.select_k is not None and self.select_k not in self.k:
            raise ValueError(f"select_k {self.select_k} is not among k {self.k}; give one of them")
        bounds, first = self.schedule.max_iterations, self.modules_at_start
        stages = ["+".join(self.predicted[:n]) or "prototypes alone" for n in range(first, len(self.predicted) + 1)]
        stages += ["variances"] * self.is_mixture
        if isinstance(bounds, list) and len(bounds) != len(stages):
            raise ValueError(
                f"schedule.max_iterations: {len(bounds)} values for {len(stages)} stages ({', '.join(stages)}); give "
                "one number for all stages, or one for each"
            )
        return self


class ReportingConfig(_Section):
    """What the reports contain."""

    order_by: OrderBy = "quality"
    """Order of the clusters in the mosaic and on the page: quality begins with the clusters whose prototypes explain
    their images best, size with the largest clusters."""
    examples: bool = True
    """Whether reports contain photos, captions and links; without them, reports show only the prototypes."""
    strip_images: int = Field(8, ge=1, le=64)
    """Number of nearest images in the picture of each cluster."""
    motion_images: int = Field(4, ge=0, le=16)
    """Number of nearest images in the animation of each cluster, which moves the prototype onto them; 0 disables
    animations."""
    tile_px: int = Field(128, ge=16, le=512)
    """Side in px of one picture in the mosaic and in the pictures of clusters."""
    page_images: int = Field(8, ge=0, le=24)
    """Number of nearest, of random and of farthest images that the page shows for each cluster; reduced where the page
    would otherwise be slow to open because of the number of clusters."""


class JobConfig(_Section):
    """Configuration of one job. Its sections are named after the folders of `pipeline/`."""

    collection: Annotated[str, AfterValidator(_collection_name)]
    """Name of the collection, such as a hashtag or a landmark; also the name of its folder in the workspace."""
    source: Annotated[str | list[str] | None, BeforeValidator(_sources)] = None
    """Source to ingest: a folder or file, local or s3://bucket/prefix, of the type `ingest.source_type`. Several
    sources in a list become one crawl, in that order. Required only for the ingest stage."""
    workspace: str = Field("workspace", min_length=1)
    """Folder or s3://bucket/prefix for all results."""
    stages: Annotated[list[Stage], Field(min_length=1), AfterValidator(_distinct)] = list(STAGES)
    """Stages to run, of ingest, cluster and report. Default: all three."""
    quality: Quality = "standard"
    """How much time training takes. It changes the defaults of the clustering settings in `QUALITY`; settings that are
    given explicitly have precedence. quick: one K and short stages, to see what a crawl contains. best: the best of
    three seeds, and stages that end later."""
    run_id: str | None = Field(None, pattern=r"^[\w][\w.=+-]{0,199}$")
    """Name of the clustering run. Default: derived from the configuration and the images, so that the same job
    continues its own run."""
    tracking_uri: Annotated[str | None, AfterValidator(_tracking_uri)] = None
    """URI of the MLflow tracking server or database. Default: the environment variable MLFLOW_TRACKING_URI, or else an
    SQLite database in the workspace."""
    SECTIONS: ClassVar[frozenset[str]] = frozenset({"ingest", "clustering", "reporting"})
    """Names of the fields that are sections of their own."""
    ingest: IngestConfig = IngestConfig()
    """Settings of the ingest stage."""
    clustering: ClusteringConfig = ClusteringConfig()
    """Settings of the clustering stage."""
    reporting: ReportingConfig = ReportingConfig()
    """Settings of the reporting stage."""

    @property
    def sources(self) -> list[str]:
        """The sources as a list, which is empty without `source`."""
        return [self.source] if isinstance(self.source, str) else self.source or []

    @model_validator(mode="before")
    @classmethod
    def _with_quality(cls, values: Any) -> Any:
        """Add the clustering defaults of `quality`."""
        if not isinstance(values, dict):
            return values
        clustering, quality = values.get("clustering", {}), values.get("quality")
        if quality not in list(QUALITY) or not isinstance(clustering, dict):
            return values  # the check of the fields explains what is wrong, if anything
        merged = {**QUALITY[quality], **clustering}
        if isinstance(schedule := merged.get("schedule"), dict):
            merged["schedule"] = {**QUALITY[quality].get("schedule", {}), **schedule}
        return {**values, "clustering": merged}

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if "ingest" in self.stages and self.source is None:
            raise ValueError("source: the ingest stage needs a source; give --source")
        if "://" in self.workspace and not self.workspace.startswith("s3://"):
            raise ValueError(f"workspace {self.workspace!r}: expected a folder or s3://bucket/prefix")
        if self.tracking_uri is None and "://" in self.workspace and "report" in self.stages:
            raise ValueError(
                f"tracking_uri: the default SQLite database cannot be stored in {self.workspace}; give --tracking-uri"
            )
        return self


def load_config(file: Path | None, flags: Mapping[str, Any], overrides: list[str]) -> JobConfig:
    """Return the configuration from `file`, then `flags` (dotted key to value), then `overrides` (``a.b=c``).

    Later values replace earlier ones. Raises ConfigError with a one-line message for an unreadable file, an unknown
    key, a wrong type or an invalid value.
    """
    values: dict[str, Any] = _read_yaml(file) if file else {}
    if GIVEN_ADDRESS:
        values.setdefault("tracking_uri", GIVEN_ADDRESS)
    for key, value in flags.items():
        _put(values, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {override!r}: expected section.key=value, such as clustering.batch_size=32")
        try:
            _put(values, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: the value is not valid YAML") from error
    try:
        config = JobConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, JobConfig)) from error
    if GIVEN_ADDRESS and config.tracking_uri == GIVEN_ADDRESS and "tracking_uri" not in flags:
        _say_address(GIVEN_ADDRESS)
    return config


@cache
def _say_address(address: str) -> None:
    say("track", f"the environment variable {TRACKING_VARIABLE} names the MLflow server: {address}")


def dump_config(config: JobConfig) -> str:
    """Return `config` as YAML from which `load_config` restores the same configuration."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def digest(*parts: Any) -> str:
    """Return a hash of the JSON-serialisable `parts`: 12 hexadecimal digits of their SHA-256."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: not valid YAML ({' '.join(str(error).split())})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {file}: expected keys and values, found {type(values).__name__}")
    # YAML reads a section whose lines are all commented out as null.
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
