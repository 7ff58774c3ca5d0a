"""Check the files in jobs/configs against the settings of the benchmarks that they reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import JobConfig, load_config

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
MORPHOLOGICAL, COLOR, PHOTO = ["affine", "morphological", "tps"], ["color", "affine", "tps"], ["color", "projective"]

# Number of images; epochs after which the stages end, the last of them at a tenth of the learning rate; batch size;
# iterations between checks for empty clusters; K; transformation modules; image side in px; colour mode.
BENCHMARKS: dict[str, tuple[int, list[int], int, int, int, list[str], int, str]] = {
    "mnist": (70_000, [5, 15, 20, 35, 40], 128, 50, 10, MORPHOLOGICAL, 28, "grayscale"),
    "mnist-test": (10_000, [50, 150, 200, 280, 300], 64, 100, 10, MORPHOLOGICAL, 28, "grayscale"),
    "mnist-1k": (1_000, [100, 500, 700, 1200, 1700], 100, 40, 10, MORPHOLOGICAL, 28, "grayscale"),
    "mnist-color": (70_000, [5, 15, 30, 45, 50], 128, 50, 10, COLOR, 28, "rgb"),
    "affnist-test": (320_000, [5, 20, 25, 37, 45], 128, 400, 10, MORPHOLOGICAL, 40, "grayscale"),
    "usps": (9_298, [60, 120, 200, 250, 270], 128, 50, 10, COLOR, 16, "grayscale"),
    "fashion-mnist": (70_000, [5, 15, 25, 35, 40], 128, 50, 10, COLOR, 28, "grayscale"),
    "frgc": (2_462, [50, 200, 400, 650, 700], 128, 20, 20, COLOR, 32, "rgb"),
    "svhn": (99_289, [2, 18, 30, 33], 128, 100, 10, PHOTO, 28, "rgb"),
    "instagram": (15_000, [5, 15, 100, 110], 64, 100, 40, PHOTO, 128, "rgb"),
    "megadepth": (3_000, [150, 400, 900, 1100], 64, 100, 20, PHOTO, 128, "rgb"),
}


def load(name: str) -> JobConfig:
    return load_config(CONFIGS / f"{name}.yaml", {"source": "x"}, [])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_trained_as_in_the_paper(name: str) -> None:
    images, epochs, batch_size, window, k, transforms, side, color_mode = BENCHMARKS[name]
    config = load(name)
    clustering, schedule = config.clustering, config.clustering.schedule
    assert config.collection == name
    assert config.ingest.image_form == (side, color_mode, "png" if side < 128 else "jpeg", False)
    assert (clustering.k, clustering.transforms, clustering.batch_size) == ([k], transforms, batch_size)
    assert (clustering.method, schedule.window) == ("dti-gmm", window)

    bounds: Any = schedule.max_iterations
    stages = [*bounds, schedule.final_iterations]
    lengths = [end - start for start, end in zip([0, *epochs], epochs, strict=False)]
    paper = [round(length * images / batch_size) for length in lengths]
    del paper[: 1 + ("color" in transforms)]  # an aligned start needs no stage of prototypes alone, or with colours
    last_module = paper[-2]  # it shares its time with the variances
    paper[-2:-1] = [last_module - last_module // 2, last_module // 2]
    if name == "mnist-test":
        assert all(length <= bound for length, bound in zip(stages, paper, strict=True))
        assert sum(stages) * batch_size <= 500_000, "image passes"
    else:
        assert stages == paper


def test_collections_differ_from_the_defaults_where_the_paper_says_so() -> None:
    configs = {name: load(name) for name in BENCHMARKS}
    dumped = {name: config.clustering.model_dump() for name, config in configs.items()}
    assert {name for name in dumped if dumped[name]["learning_rate"] != 1e-3} == {"affnist-test"}
    assert {name for name in dumped if dumped[name]["padding"] != "border"} == {"usps"}
    assert {name: d["loss_weight_std"] for name, d in dumped.items() if d["loss_weight_std"]} == {"svhn": 7.0}
    assert {name: c.ingest.sample for name, c in configs.items() if c.ingest.sample} == {"mnist-1k": 1000}


def test_no_benchmark_names_a_local_path() -> None:
    for name in BENCHMARKS:
        text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
        assert "source:" not in text.replace("--source:", "")
        assert "workspace:" not in text
