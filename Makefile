# make        lists the targets
# make train  installs the package, trains on the embedded data, evaluates, prints a table and where the report is
# make test   installs everything the tests need, runs them
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
PACKAGE := $(VENV)/.installed-package
STAMP := $(VENV)/.installed
BENCH := $(VENV)/.installed-bench
comma := ,

.DEFAULT_GOAL := help
.PHONY: help setup train test test-extras check bench bench-eval gpu-check dist-check export-check soak notebooks

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## install everything into .venv, exact versions of constraints.txt

# $(call install,[EXTRAS]): the package with these extras into $(VENV), exact versions of constraints.txt
ifneq ($(UV),)
create = $(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
install = $(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e '.$(1)'
else
create = $(PYTHON) -m venv $(VENV)
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(1)'
endif

$(PACKAGE): pyproject.toml constraints.txt
	@echo "installing into $(VENV): 5 GB, most of it torch with CUDA; 2 to 7 minutes, once"
	$(create)
	$(call install)
	@touch $@

$(STAMP): $(PACKAGE)
	$(call install,[test$(comma)full])
	@touch $@

$(BENCH): $(STAMP)
	$(call install,[test$(comma)bench$(comma)ray$(comma)wandb$(comma)deepspeed])
	@touch $@

train: $(PACKAGE)  ## train on the embedded scenes, evaluate, report (ARGS="--name mine --seed 1" for options)
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

dist-check: $(STAMP)  ## every way to divide a run, on two and four processes of this machine, beside one process (ARGS="--json rows.json")
	$(BIN)/python scripts/dist_check.py $(ARGS)

export-check: $(BENCH)  ## every engine of mm-align export, AOTInductor and ExecuTorch too, which compile for minutes
	MM_EXPORT_CHECK=1 $(BIN)/python -m pytest tests/mm/export $(ARGS)

soak: $(STAMP)  ## kill and resume a run, watch memory, train every set of modalities partly absent, read damaged files (an hour)
	$(BIN)/python scripts/soak.py $(ARGS)

notebooks: $(STAMP)  ## run the notebooks of eval/notebooks; executed copies in runs/notebooks (MM_STEPS=0: stored results only)
	$(BIN)/python scripts/notebooks.py $(ARGS)
