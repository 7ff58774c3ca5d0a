from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import ClusteringConfig, Method
from pipeline.paths import RunPaths
from pipeline.reporting.assignment.batch import BATCH_SIZE
from pipeline.reporting.tracking.load_model import TrackedModel
from pipeline.reporting.tracking.model import LOADER, REQUIREMENTS
from pipeline.storage import LocalStorage
from tests.support.made_collection import BLUE, GREEN, RED, make_trial, plain

LIST_IMPORTS = f"""
import importlib, json, os, sys
before = dict(os.environ)
importlib.import_module({LOADER!r})
files = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "pipeline"]
print(json.dumps([files, dict(os.environ) == before]))
"""


def saved(folder: Path, method: Method = "dti-gmm") -> TrackedModel:
    """Return a model with red, green and blue prototypes, loaded from a checkpoint in `folder`."""
    storage, paths = LocalStorage(str(folder)), RunPaths("rome", "run-1")
    trial = make_trial(storage, paths, ClusteringConfig(method=method), [RED, GREEN, BLUE]).trial
    return TrackedModel(Path(storage.uri(paths.checkpoint(trial.name))))


def test_more_images_than_a_batch_are_assigned_in_their_order(tmp_path: Path) -> None:
    clusters = np.arange(BATCH_SIZE + 3) % 3
    images = np.stack([plain((RED, GREEN, BLUE)[cluster]) for cluster in clusters])
    assert saved(tmp_path).predict(images)["cluster"].tolist() == clusters.tolist()


def test_no_image_gives_an_empty_table(tmp_path: Path) -> None:
    assert len(saved(tmp_path).predict(np.empty((0, 16, 16, 3), np.uint8))) == 0


def test_the_loss_has_the_same_name_as_in_the_clusters_table(tmp_path: Path) -> None:
    result = saved(tmp_path, "dti-kmeans").predict(plain(GREEN)[None])
    assert list(result.columns) == ["cluster", "squared_error", "posterior", "runner_up", "margin"]
    assert result["squared_error"][0] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_the_loader_imports_only_its_requirements_and_has_no_side_effects() -> None:
    done = subprocess.run([sys.executable, "-c", LIST_IMPORTS], capture_output=True, text=True, check=True)
    files, unchanged = json.loads(done.stdout)
    assert unchanged
    imported = set()
    for file in files:
        for node in ast.parse(Path(file).read_text()).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module)
    tops = {name.split(".")[0] for name in imported} - {"pipeline"} - set(sys.stdlib_module_names)
    needed = {packages_distributions()[top][0].lower() for top in tops}
    # MLflow calls the model, which returns a pandas data frame.
    assert needed | {"mlflow", "pandas"} == set(REQUIREMENTS)
