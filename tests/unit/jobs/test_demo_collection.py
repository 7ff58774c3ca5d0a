from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from jobs.demo_collection import make_collection
from pipeline.config import IngestConfig
from pipeline.errors import PipelineError
from pipeline.ingest.images import decode_square
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.detect import read_records

pytest.importorskip("skimage", reason="the photographs come from scikit-image, which the dev extra installs")
JOB = Path(__file__).parents[3] / "jobs" / "demo_collection.py"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    make_collection(out, n=150, seed=3, tag="demo")
    return out


def labels(out: Path) -> dict[str, tuple[str, str]]:
    with (out / "labels.csv").open(encoding="utf-8") as file:
        return {row["file"]: (row["kind"], row["view"]) for row in csv.DictReader(file)}


def test_every_file_is_labelled_and_has_a_post(demo: Path) -> None:
    records = list(read_records(str(demo / "demo")))
    assert [record.file_name for record in records] == sorted(labels(demo))
    assert all(record.caption and record.taken_at and record.problem is None for record in records)


def test_every_kind_exists_and_matches_its_label(demo: Path) -> None:
    kinds = Counter(kind for kind, _ in labels(demo).values())
    assert set(kinds) == {"view", "noise", "broken", "repeat"}
    assert 25 <= kinds["noise"] <= 50
    assert len({view for kind, view in labels(demo).values() if kind == "view"}) == 8
    seen: set[bytes] = set()
    for name, (kind, _) in labels(demo).items():
        data = (demo / "demo" / name).read_bytes()
        assert (data in seen) == (kind == "repeat") or kind == "broken"
        seen.add(data)
        if kind == "broken":
            with pytest.raises(Rejected):
                decode_square(data, IngestConfig())
        else:
            assert min(decode_square(data, IngestConfig()).pixels.shape[:2]) == 128


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second run overwrites the files of the first
        make_collection(tmp_path, n=150, seed=3, tag="demo")
        for path in demo.rglob("*"):
            if path.is_file():
                assert (tmp_path / path.relative_to(demo)).read_bytes() == path.read_bytes()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(PipelineError, match=r"contains other files \(mine\.jpg"):
        make_collection(tmp_path, n=2, seed=0, tag="demo")
    assert [p.name for p in (tmp_path / "demo").iterdir()] == ["mine.jpg"]


def test_a_missing_package_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(PipelineError, match=r"needs skimage, which is not installed; run pip install -e"):
        make_collection(tmp_path, n=2, seed=0, tag="demo")


@pytest.mark.parametrize("arguments", [["--n", "0"], ["--seed", "-1"], ["--tag", "../x"], ["--tag", ".."]])
def test_impossible_arguments_are_refused(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(JOB), "--out", str(tmp_path), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "expected --n" in finished.stderr
