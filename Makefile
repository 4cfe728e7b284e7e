# make        lists the targets
# make train  sets up everything, trains on the embedded data, evaluates, prints a table and where the report is
# make test   sets up everything, runs the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
STAMP := $(VENV)/.installed
BENCH := $(VENV)/.installed-bench

.DEFAULT_GOAL := help
.PHONY: help setup train test test-extras check bench bench-eval gpu-check soak notebooks

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## install everything into .venv, exact versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
ifneq ($(UV),)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[test,full]'
else
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,full]'
endif
	@touch $@

$(BENCH): $(STAMP)
ifneq ($(UV),)
	$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[test,bench]'
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,bench]'
endif
	@touch $@

train: $(STAMP)  ## train on the embedded scenes, evaluate, report (ARGS="--name mine --seed 1" for options)
	$(BIN)/python scripts/train_align.py $(ARGS)

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest $(ARGS)

test-extras: $(BENCH)  ## install every extra and run the tests; one that skips because a package is missing fails
	MM_ALL_EXTRAS=1 $(BIN)/python -m pytest $(ARGS)

check: $(STAMP)  ## ruff, mypy, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy mm encoders alignment kernels eval scripts
	$(BIN)/lint-imports

bench: $(BENCH)  ## kernels beside their references, limits and peers (ARGS="--only grouped_mlp --json rows.json")
	$(BIN)/python scripts/bench_kernels.py $(ARGS)

bench-eval: $(BENCH)  ## the evaluator beside clip-benchmark and eccv_caption
	$(BIN)/python scripts/bench_eval.py $(ARGS)

gpu-check: $(BENCH)  ## everything claimed of a GPU, measured on the one here in 4 minutes (ARGS="--parts '[step]'")
	$(BIN)/python scripts/gpu_check.py $(ARGS)

soak: $(STAMP)  ## kill and resume a run, watch memory, train every set of modalities partly absent, read damaged files (an hour)
	$(BIN)/python scripts/soak.py $(ARGS)

notebooks: $(STAMP)  ## run the notebooks of eval/notebooks; executed copies in runs/notebooks (MM_STEPS=0: stored results only)
	$(BIN)/python scripts/notebooks.py $(ARGS)
