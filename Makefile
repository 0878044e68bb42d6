# Two commands for a fresh machine: `make demo` shows the toolkit at work, `make test` checks it; `make gpu` is for CUDA.
# PYTHON chooses the interpreter (3.10 or newer), VENV where the environment goes, JOBS how many tests run at once.
# WHEELS is a folder of wheels for a machine without a network (docs/gpu.md).

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
WHEELS ?= wheels
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := outputs/demo

# Keep freed memory in the process: on many virtual machines it is slow to get back.
export MALLOC_MMAP_THRESHOLD_ := 33554432
export MALLOC_TRIM_THRESHOLD_ := 8589934592
# Nothing here needs the network once the packages are installed.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo app test lint links types unit e2e wheel gpu clean

help:
	@echo "make demo   install, learn a concept on the bundled miniature, and draw it in new scenes (minutes, CPU)"
	@echo "make app    install, then learn, steer and compare concepts in a browser"
	@echo "make test   install, then lint, types, unit, parity and end-to-end tests, and the built wheel"
	@echo "make gpu    tests on a CUDA device, then the benchmark at Stable Diffusion v1.4's size into docs/performance.md"

install: $(INSTALLED)

$(INSTALLED): environment/requirements.txt environment/requirements-app.txt environment/requirements-dev.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check \
	  -r environment/requirements.txt -r environment/requirements-app.txt -r environment/requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python scripts/train.py --config_path input_configs/train_miniature.yaml --overwrite
	$(BIN)/python scripts/inference.py --config_path input_configs/inference_miniature.yaml
	$(BIN)/python scripts/make_overview.py $(DEMO)/inference --photos input_configs/concepts_one_place/taxi --seed 1

app: $(INSTALLED)
	$(BIN)/python scripts/app.py

test: lint types unit e2e wheel

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Links under the name `neti`, for whoever cannot see its mapping to folders: type checkers, a Python without `neti`.
links:
	@mkdir -p build/typing/neti
	@for folder in models training utils; do ln -sfn ../../../$$folder build/typing/neti/$$folder; done

types: $(INSTALLED) links
	MYPYPATH=build/typing $(BIN)/mypy -p neti.models -p neti.training -p neti.utils
	MYPYPATH=build/typing $(BIN)/mypy scripts

# Two files of tests at a time, each with one thread: two threads in each would wait for one another.
unit: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/unit tests/parity

e2e: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/e2e

wheel: $(INSTALLED)
	$(BIN)/python scripts/check_wheel.py

# With wheels beside it, the machine's own Python is used as it is: nothing is installed or fetched, only unpacked.
ifneq ($(wildcard $(WHEELS)/*.whl),)
GPU := PYTHONPATH=$(CURDIR)/build/site:$(CURDIR)/build/typing $(PYTHON)
build/site: $(wildcard $(WHEELS)/*.whl)
	$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target $@ $(WHEELS)/*.whl
	@touch $@
gpu: build/site links
else
GPU := $(BIN)/python
gpu: $(INSTALLED)
endif
	$(GPU) -m pytest tests/gpu -rA -q -p no:warnings; tests=$$?; \
	$(GPU) scripts/benchmark.py --config_path input_configs/benchmark_gpu.yaml $(BENCHMARK) && exit $$tests

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
