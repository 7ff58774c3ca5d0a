from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster_collection import parse_arguments
from pipeline import config as config_module
from pipeline.clustering.model.build import METHODS
from pipeline.clustering.model.transforms import TransformSequence
from pipeline.config import QUALITY, ClusteringConfig, Method, TransformName, dump_config, load_config
from pipeline.errors import ConfigError

BASE: dict[str, Any] = {"collection": "trevifountain", "source": "crawl"}


def test_flags_win_over_the_file_and_overrides_over_both(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("clustering: {k: [3], batch_size: 8, learning_rate: 1e-4}\ningest: {image_size: 32}\n")
    config = load_config(file, {**BASE, "clustering.k": ["5", "6"]}, ["clustering.batch_size=16"])
    assert config.clustering.k == [5, 6]
    assert config.clustering.batch_size == 16
    assert config.clustering.learning_rate == 1e-4
    assert config.ingest.image_size == 32


def test_a_section_given_as_a_whole_keeps_what_it_does_not_name(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("clustering: {schedule: {window: 7}}\nreporting:\n")
    config = load_config(file, {**BASE, "clustering.k": [3]}, ["clustering={batch_size: 8, schedule: {patience: 9}}"])
    clustering = config.clustering
    assert (clustering.k, clustering.batch_size) == ([3], 8)
    assert (clustering.schedule.window, clustering.schedule.patience) == (7, 9)


def test_sources_are_one_or_many_in_order(tmp_path: Path) -> None:
    assert load_config(None, BASE, []).sources == ["crawl"]
    several = load_config(None, {**BASE, "source": ["b", "s3://x/a"]}, [])
    assert several.sources == ["b", "s3://x/a"]
    (tmp_path / "dump.yaml").write_text(dump_config(several))
    assert load_config(tmp_path / "dump.yaml", {}, []) == several
    assert load_config(None, {"collection": "x", "stages": ["report"]}, []).sources == []


def test_a_configuration_survives_its_own_dump(tmp_path: Path) -> None:
    config = load_config(None, {**BASE, "clustering.k": [4, 8]}, ["clustering.schedule.window=7"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file, {}, []) == config


@pytest.mark.parametrize(
    ("flags", "overrides", "message"),
    [
        ({}, ["clustering.colour=1"], "clustering.colour: unknown key"),
        ({}, ["clustering.batchsize=1"], r"unknown key; did you mean clustering\.batch_size\?"),
        ({}, ["batch_size=1"], r"unknown key; did you mean clustering\.batch_size\?"),
        ({}, ["clustering.schedule.max_iterations=x"], "should be a valid integer, .* or should be a valid list"),
        ({"collection": "Default"}, [], "an experiment of MLflow itself"),
        ({"collection": "a b"}, [], "expected letters, digits, emoji and"),
        ({"tracking_uri": "mlruns"}, [], "tracking_uri: expected http://HOST:PORT"),
        ({"tracking_uri": "sqlite://x.db"}, [], "tracking_uri: expected http://HOST:PORT"),
        ({"tracking_uri": "sqlite:///:memory:"}, [], "tracking_uri: expected http://HOST:PORT"),
        ({"tracking_uri": "ftp://u:secret@host"}, [], "found ftp://host"),
        ({"ingest.encoding": "klingon"}, [], "no such encoding"),
        ({}, ["clustering.batch_size=many"], "clustering.batch_size"),
        ({}, ["nonsense"], "expected section.key=value"),
        ({}, ["clustering.k.x=1"], "clustering.k is a value|clustering.k"),
        ({"clustering.transforms": ["rotation"]}, [], "transforms.*'color', 'affine'"),
        ({"clustering.k": ["0"]}, [], "clustering.k.0"),
        ({"clustering.k": ["4", "4"]}, [], "values must be unique"),
        ({"clustering.k": []}, [], "clustering.k"),
        ({"clustering.select_k": 5, "clustering.k": [4]}, [], "select_k 5 is not among k"),
        ({"clustering.workers": 3}, [], "batch_size 64 cannot be divided among 3 workers"),
        ({"collection": "../x"}, [], "collection: expected letters, digits"),
        ({"run_id": "../x"}, [], "run_id: expected at most 200 letters"),
        ({"ingest.http.user_agent": " x"}, [], "user_agent: expected at most 500 printable"),
        ({"stages": ["train"]}, [], "stages"),
        ({"source": None}, [], "--source"),
        ({"workspace": "s3://bucket/x"}, [], "--tracking-uri"),
        ({}, ["clustering.learning_rate=.nan"], "learning_rate"),
        ({}, ["clustering.seed=99999999999"], "seed"),
        ({}, ["clustering.workers=true"], "workers"),
        ({}, ["clustering.k=[true]"], "k: expected a number or a string"),
        ({}, [".=3"], "expected section.key=value"),
        ({"source": ""}, [], "source"),
        ({"source": []}, [], "source"),
        ({"source": ["a", "a"]}, [], "values must be unique"),
        ({"source": ["a", ""]}, [], "source"),
        ({"ingest.source_type": "no"}, [], "source_type"),
        ({"workspace": "ftp://host/x"}, [], "workspace 'ftp://host/x'"),
        ({"collection": "mlflow.db"}, [], "collection"),
        ({"collection": "ü" * 101}, [], "200 bytes"),
        ({}, ["clustering.schedule.min_iterations=5000"], "above max_iterations"),
        ({}, ["clustering.schedule.max_iterations=[300, 600, 900]"], "3 values for 2 stages"),
        ({}, ["clustering.schedule.max_iterations=[300, 100]"], "min_iterations 120 is above"),
        ({}, ["clustering.morphology_kernel=4"], "expected an odd number"),
        ({"clustering.method": "kmeans", "clustering.transforms": ["color"]}, [], "or --method dti-kmeans"),
        ({"clustering.seeds": 3}, ["clustering.seed=4294967295"], "above 2\\^32 - 1"),
    ],
)
def test_invalid_values_are_refused_in_one_line(flags: dict[str, Any], overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, {**BASE, "clustering.k": [4], **flags}, overrides)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_an_invalid_configuration_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"job\.yaml"):
        load_config(file, BASE, [])


def test_a_missing_name_of_the_collection_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="collection: required, but not given; give --collection or"):
        load_config(None, {"source": "x"}, [])


@pytest.mark.parametrize("name", ["#trevi", "日本", "#हिन्दी", "#love❤️🎉", "#👨\u200d👩\u200d👧", "a.b=c+d-e_f#g", "ü"])
def test_hashtags_of_all_scripts_are_names_of_collections(name: str) -> None:
    assert load_config(None, {**BASE, "collection": name}, []).collection == name
    decomposed = unicodedata.normalize("NFD", name)
    assert load_config(None, {**BASE, "collection": decomposed}, []).collection == name


def test_no_message_shows_how_the_check_is_written() -> None:
    wrong = ["clustering.k=[x]", "clustering.schedule.max_iterations=[0]", "ingest.http.threads=x", "run_id=a b"]
    with pytest.raises(ConfigError) as caught:
        load_config(None, {**BASE, "collection": "/"}, wrong)
    for internal in ("constrained", "function-", "pattern", "^", "list["):
        assert internal not in str(caught.value)


def test_the_environment_variable_of_mlflow_is_honoured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://set-by-mlflow-itself")
    assert load_config(None, BASE, []).tracking_uri is None
    monkeypatch.setattr(config_module, "GIVEN_ADDRESS", "http://mlflow.test:5000")
    assert load_config(None, BASE, []).tracking_uri == "http://mlflow.test:5000"
    assert load_config(None, {**BASE, "tracking_uri": "http://other"}, []).tracking_uri == "http://other"
    (tmp_path / "x.yaml").write_text("tracking_uri: http://file")
    assert load_config(tmp_path / "x.yaml", BASE, []).tracking_uri == "http://file"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml", BASE, [])


def test_every_name_in_the_configuration_has_its_implementation() -> None:
    assert set(METHODS) == set(Method.__args__)  # type: ignore[attr-defined]
    names = list(TransformName.__args__)  # type: ignore[attr-defined]
    assert set(TransformSequence(names, 3, 8, 8).sizes) == set(names)


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_pixel_methods_have_no_transforms_by_default(method: str) -> None:
    assert load_config(None, {**BASE, "clustering.method": method}, []).clustering.transforms == []


def test_every_field_is_documented() -> None:
    for field in ClusteringConfig.model_fields.values():
        assert field.description


def test_only_boolean_fields_accept_true(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("ingest: {http: {allow_private_hosts: true}}\n")
    assert load_config(file, BASE, []).ingest.http.allow_private_hosts
    assert not load_config(file, {**BASE, "ingest.http.allow_private_hosts": False}, []).ingest.http.allow_private_hosts
    with pytest.raises(ConfigError, match="threads: expected a number or a string, found true or false"):
        load_config(file, BASE, ["ingest.http.threads=true"])


def test_flags_for_downloads_are_unset_unless_given() -> None:
    given = parse_arguments(["--allow-private-hosts"])
    assert given.allow_private_hosts is True
    assert given.retry_unreachable is None


def test_the_quality_changes_defaults_and_explicit_settings_have_precedence(tmp_path: Path) -> None:
    best = load_config(None, {**BASE, "quality": "best", "clustering.seeds": "5"}, ["clustering.schedule.patience=7"])
    assert (best.clustering.seeds, best.clustering.schedule.patience) == (5, 7)
    assert best.clustering.schedule.max_iterations == QUALITY["best"]["schedule"]["max_iterations"]
    (file := tmp_path / "file.yaml").write_text("quality: quick\nclustering: {k: [4, 5]}\n")
    quick = load_config(file, BASE, [])
    assert quick.clustering.k == [4, 5]
    assert quick.clustering.schedule.max_iterations == QUALITY["quick"]["schedule"]["max_iterations"]
    assert load_config(None, {**BASE, "quality": "standard"}, []) == load_config(None, BASE, [])
    (dumped := tmp_path / "dumped.yaml").write_text(dump_config(best))
    assert load_config(dumped, {}, []) == best


@pytest.mark.parametrize("quality", ["no", None, 3, ["quick"], {"quick": 1}])
def test_an_unknown_quality_is_refused(quality: Any) -> None:
    with pytest.raises(ConfigError, match="quality: should be 'quick', 'standard' or 'best'"):
        load_config(None, {**BASE, "quality": quality}, [])


def test_the_documentation_states_what_each_quality_changes() -> None:
    page = (Path(__file__).parents[2] / "pipeline/clustering/README.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 4}
    for quality, changes in QUALITY.items():
        flat = {key: value for key, value in changes.items() if key != "schedule"}
        flat |= {f"schedule.{key}": value for key, value in changes.get("schedule", {}).items()}
        assert rows[quality].split("|")[3].strip() == ", ".join(f"`{key}={value}`" for key, value in flat.items())
