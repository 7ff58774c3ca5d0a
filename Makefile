# make demo: set everything up and find the visual trends of a demonstration collection.
# make test: set everything up and run the tests; make test-faults: those that wait for faults to be noticed, too.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: setup demo test test-faults lint clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/python jobs/demo_collection.py --out $(DEMO)/crawl
	$(BIN)/python jobs/cluster_collection.py --config jobs/configs/demo.yaml

test: setup
	$(BIN)/python -m pytest

test-faults: setup
	$(BIN)/python -m pytest -m faults

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO)
