# Two commands for a fresh machine: `make demo` shows the toolkit at work, `make test` checks it.
# PYTHON chooses the interpreter (3.10 or newer), VENV where the environment goes, JOBS how many tests run at once.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := outputs/demo

# Keep freed memory in the process: on many virtual machines it is slow to get back.
export MALLOC_MMAP_THRESHOLD_ := 33554432
export MALLOC_TRIM_THRESHOLD_ := 8589934592
# Nothing here needs the network once the packages are installed.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo test lint types unit e2e wheel clean

help:
	@echo "make demo   install, learn a concept on the bundled miniature, and draw it in new scenes (minutes, CPU)"
	@echo "make test   install, then lint, types, unit, parity and end-to-end tests, and the built wheel"

install: $(INSTALLED)

$(INSTALLED): environment/requirements.txt environment/requirements-dev.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check \
	  -r environment/requirements.txt -r environment/requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python scripts/train.py --config_path input_configs/train_miniature.yaml --overwrite
	$(BIN)/python scripts/inference.py --config_path input_configs/inference_miniature.yaml
	$(BIN)/python scripts/make_overview.py $(DEMO)/inference --photos input_configs/concepts/taxi --seed 1

test: lint types unit e2e wheel

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A type checker cannot see the mapping of folders to `neti.*`: give it links under that name.
types: $(INSTALLED)
	@mkdir -p build/typing/neti
	@for folder in models training utils; do ln -sfn ../../../$$folder build/typing/neti/$$folder; done
	MYPYPATH=build/typing $(BIN)/mypy -p neti.models -p neti.training -p neti.utils
	MYPYPATH=build/typing $(BIN)/mypy scripts

# Two files of tests at a time, each with one thread: two threads in each would wait for one another.
unit: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/unit tests/parity

e2e: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/e2e

wheel: $(INSTALLED)
	$(BIN)/python scripts/check_wheel.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
