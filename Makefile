# make demo: set everything up and find the visual trends of a demonstration collection.
# make test: set everything up and run the whole test suite, or a part of it:
#   make test-fast: the unit tests that together take less than two minutes
#   make test-faults: the tests that wait minutes until a fault is noticed
# make fuzz: feed random input to every boundary, EXAMPLES times each, and show how many were executed.
# make lint: check format, lint and types.
# make lock: write requirements.lock anew from pyproject.toml.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo
TORCH := torch>=2.13,<2.14

# The lock leaves out torch and the CUDA libraries that some of its builds need: which build fits depends on the machine.
NOT_LOCKED := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
	nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
	nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

.PHONY: setup demo test test-fast test-faults fuzz lint lock clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	touch $@

demo: setup
	$(BIN)/python jobs/demo_collection.py --out $(DEMO)/crawl
	$(BIN)/python jobs/cluster_collection.py --config jobs/configs/demo.yaml

test: setup
	$(BIN)/python -m pytest

test-fast: setup
	$(BIN)/python -m pytest tests/unit -m "not slow and not faults"

test-faults: setup
	$(BIN)/python -m pytest -m faults

EXAMPLES ?= 20000
fuzz: setup
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -m fuzz --timeout=0 --hypothesis-show-statistics

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-header \
		$(foreach name,$(NOT_LOCKED),--no-emit-package $(name)) --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) $(DEMO)
