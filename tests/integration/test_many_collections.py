"""The job for a table of collections on a local Ray, run as a script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.crawl_files import encoded, photograph

ROOT = Path(__file__).parents[2]
SMALL = [
    "--image-size=16",
    "--transforms=color",
    "--set=clustering.batch_size=8",
    "--set=clustering.schedule={window: 5, min_iterations: 10, max_iterations: 20, final_iterations: 5}",
]


def run_table(table: Path, workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/cluster_collection.py", "--manifest", str(table), f"--workspace={workspace}"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [*command, *SMALL, *arguments], cwd=ROOT, env=kept, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], Path]:
    """Workspace, finished process and table of a job over two valid collections and three invalid ones."""
    folder = tmp_path_factory.mktemp("many")
    for name, first in (("rome", 0), ("oslo", 100)):
        (folder / name).mkdir()
        for seed in range(first, first + 20):
            (folder / name / f"{seed}.jpg").write_bytes(encoded(photograph(seed)))
    table = folder / "collections.csv"
    table.write_text(
        "collection,source,k,select-k,clustering.schedule\n"
        f'rome,{folder}/rome,"2,3",2,"{{window: 5, min_iterations: 5, max_iterations: 10, final_iterations: 5}}"\n'
        f"gone,{folder}/nothing-here,2,,\n"
        f"oslo,{folder}/oslo,2,,\n"
        f"oslo,{folder}/oslo,4,,\n"
        f"many,{folder}/oslo,64,,\n"
    )
    return folder / "workspace", run_table(table, folder / "workspace"), table


def test_broken_collections_fail_alone_and_are_listed(
    ended: tuple[Path, subprocess.CompletedProcess[str], Path],
) -> None:
    workspace, job, _ = ended
    assert job.returncode == 1, job.stderr
    listed = [line for line in job.stdout.splitlines() if line.startswith("failed")]
    assert len(listed) == 3
    assert any(
        line.startswith("failed    row 5 (oslo): collection oslo: an earlier row already names it") for line in listed
    )
    assert any("gone: " in line and "nothing-here" in line for line in listed)
    assert any("many: clustering.k: 64 is above the 20 " in line for line in listed)
    assert job.stderr.strip().splitlines()[-1] == (
        "error: 3 of 5 collections failed; run the same command again to retry them"
    )
    assert "Traceback" not in job.stdout + job.stderr
    kept = {
        path.parts[-4]: json.loads(path.read_text())["selected"]["k"] for path in workspace.glob("*/runs/*/run.json")
    }
    assert kept == {"rome": 2, "oslo": 2}


def test_the_same_table_again_repeats_no_finished_work(
    ended: tuple[Path, subprocess.CompletedProcess[str], Path],
) -> None:
    workspace, _, table = ended
    before = {path: path.stat().st_mtime_ns for path in workspace.glob("*/runs/*/trials/*/trial.json")}
    assert len(before) == 3
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:2] + lines[3:4]) + "\n")
    job = run_table(table, workspace)
    assert job.returncode == 0, job.stderr
    assert job.stdout.splitlines()[-1] == "done      all 2 collections"
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("source\nx\n", "expected a header with a column named collection"),
        ("collection,source\n", "no rows below the header"),
        ("collection,source\na,b,c\n", "row 2: more cells than the header has"),
    ],
)
def test_an_invalid_table_is_refused(content: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(content)
    job = run_table(table, tmp_path / "workspace")
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr == f"error: --manifest {table}" + (", " if "row 2" in message else ": ") + message + "\n"
