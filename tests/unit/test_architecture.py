"""Imports have one direction: orchestration → reporting → clustering → root, and orchestration → ingest → root."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "root": {"root"},
    "ingest": {"root", "ingest"},
    "clustering": {"root", "clustering"},
    "reporting": {"root", "clustering", "reporting"},
    "orchestration": {"root", "ingest", "clustering", "reporting", "orchestration"},
}


def stage_of(module: str) -> str:
    """Return the name of the stage that contains `module`, or root."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "root"


def imports(file: Path) -> set[str]:
    """Return all modules of the pipeline that `file` imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "pipeline"}


@pytest.mark.parametrize("file", sorted(ROOT.glob("pipeline/**/*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_have_one_direction(file: Path) -> None:
    stage = stage_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
    assert {stage_of(name) for name in imports(file)} <= MAY_IMPORT[stage]


def test_the_check_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from pipeline.ingest import stage\n")
    assert {stage_of(name) for name in imports(file)} == {"ingest"}


def room_of(module: str) -> str:
    """The room of `module`: a folder below its stage, or the module itself where it lies directly in the stage."""
    parts = module.split(".")
    return ".".join(parts[:3] if len(parts) > 3 else parts)


@pytest.mark.parametrize("stage", ["ingest", "clustering", "reporting", "orchestration"])
def test_rooms_of_a_stage_do_not_import_each_other_in_circles(stage: str) -> None:
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for file in ROOT.glob(f"pipeline/{stage}/**/*.py")
        if file.name != "__init__.py"
    }
    imported: dict[str, set[str]] = {}
    for module, file in files.items():
        others = {room_of(name) for name in imports(file) if name in files}
        imported.setdefault(room_of(module), set()).update(others - {room_of(module)})
    TopologicalSorter(imported).prepare()  # raises CycleError, which names the rooms


@pytest.mark.parametrize("module", ["pipeline.orchestration.collection", "pipeline.ingest.shard"])
def test_a_job_that_only_ingests_imports_neither_torch_nor_mlflow(module: str) -> None:
    program = f"import sys, {module}; print([name for name in ('torch', 'mlflow', 'sklearn') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
