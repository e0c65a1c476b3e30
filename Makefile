# Every stage by one command; `make help` lists them. Each target sets up what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUTD := $(BIN)/butd
PACKAGES := store_schema stage1_detect stage2_models pipeline
ARGS ?=

# Variables of the stages, with the values of a first try on generated scenes.
TABLES ?= runs/scenes
IMAGES ?= $(TABLES)
DETECTOR ?= runs/detector
STORE ?= runs/regions.zarr
OUT ?=
PHOTOS ?= ../shared/data
SETTING ?= full
NUM_IMAGES ?= 6000
SEED ?= 1
DATASET ?= $(TABLES)
TORCH ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-photos scenes stage1 stage2-caption stage2-vqa reprocess report bench bench-detect bench-loader bench-memory bench-models bench-store \
	check lint format types test test-slow lock clean

help: ## List the targets with their variables.
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## Create .venv with the locked, hashed dependencies. PYTHON=python3.12 TORCH=cpu

$(VENV)/.installed: requirements/uv.lock requirements/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed, $$($(PYTHON) --version) came; say make PYTHON=python3.12 ..."; exit 2; }
	@echo "Setting up .venv with the locked dependencies (once; the CUDA build of torch takes about 6 GB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
ifeq ($(TORCH),cpu)
	$(BIN)/python -c "import re, pathlib; text = pathlib.Path('requirements/requirements.lock').read_text(); \
	  names = re.findall(r'^((?:torch|torchvision)==[0-9.]+)', text, re.M); pathlib.Path('$(VENV)/torch-cpu.txt').write_text('\n'.join(names))"
	$(BIN)/uv pip install --torch-backend cpu -r $(VENV)/torch-cpu.txt
	$(BIN)/python -c "import re, pathlib; text = pathlib.Path('requirements/requirements.lock').read_text(); \
	  blocks = re.split(r'\n(?=[a-z])', text); drop = re.compile(r'(torch|torchvision|triton|nvidia-|cuda-)'); \
	  pathlib.Path('$(VENV)/rest.lock').write_text('\n'.join(b for b in blocks if not drop.match(b)) + '\n')"
	$(BIN)/uv pip install --no-deps --require-hashes -r $(VENV)/rest.lock
else
	$(BIN)/uv pip install --require-hashes -r requirements/requirements.lock
endif
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## The whole pipeline on generated scenes, with a report. SETTING=full|long|small
	$(BUTD) demo --setting $(SETTING) $(if $(OUT),--out $(OUT)) $(ARGS)

demo-photos: setup ## The pipeline on the real photographs of a data folder. PHOTOS=../shared/data
	$(BUTD) demo-photos $(PHOTOS) $(if $(OUT),--out $(OUT)) $(ARGS)

scenes: setup ## Draw a data set of scenes. TABLES=runs/scenes NUM_IMAGES=6000 SEED=1
	$(BUTD) scenes $(TABLES) --images $(NUM_IMAGES) --seed $(SEED) $(ARGS)

stage1: setup ## Regions of every picture into the store. IMAGES= DETECTOR=runs/detector STORE=runs/regions.zarr
	$(BUTD) detect $(IMAGES) --weights $(DETECTOR) --store $(STORE) $(ARGS)

stage2-caption: setup ## Train a captioner on a store. TABLES= STORE= OUT=runs/caption
	$(BUTD) train caption --tables $(TABLES) --store $(STORE) --out $(or $(OUT),runs/caption) $(ARGS)

stage2-vqa: setup ## Train a VQA model on a store. TABLES= STORE= OUT=runs/vqa
	$(BUTD) train vqa --tables $(TABLES) --store $(STORE) --out $(or $(OUT),runs/vqa) $(ARGS)

reprocess: setup ## A whole data set end to end: detect, read the store through, one summary. DATASET=runs/scenes DETECTOR= STORE=
	$(BUTD) detect $(DATASET) --weights $(DETECTOR) --store $(STORE) --verify $(ARGS)

report: setup ## Write the report of a finished demo again. OUT=runs/demo
	$(BUTD) report $(or $(OUT),runs/demo) $(ARGS)

bench: bench-loader bench-store bench-detect bench-models ## All benchmarks.

bench-loader: setup ## Loading: workers, batch sizes, rivals. Table and plot in benchmarks/results. ARGS=--quick
	$(BIN)/python -m benchmarks.bench_loader $(ARGS)

bench-memory: setup ## Memory of a VQA run on a store of 10 GB with four workers. ARGS="--gigabytes 1"
	$(BIN)/python -m benchmarks.bench_memory $(ARGS)

bench-store: setup ## The store against other formats, read and written. Table and plot in benchmarks/results. ARGS=--quick
	$(BIN)/python -m benchmarks.bench_store $(ARGS)

soak: setup ## Kill a caption run 200 times, in every phase; it ends with the weights of an undisturbed one. ARGS="--kills 50"
	$(BIN)/python -m benchmarks.soak $(ARGS)

bench-models: setup ## Training, decoding and VQA against a textbook, or ARGS="--self-critical CHECKOUT --butd-vqa CHECKOUT".
	$(BIN)/python -m benchmarks.bench_models $(ARGS)

bench-detect: setup ## Stage one against the plain loop. ARGS="--weights runs/detector --photographs FOLDER --only small"
	$(BIN)/python -m benchmarks.bench_detect $(ARGS)

check: lint types test ## What must hold before a commit: lint, types, tests.

lint: setup ## Check style without changing anything.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## Put the code into the project's style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## Check types (mypy, strict).
	$(BIN)/mypy

test: setup ## Fast tests; the end says what was skipped and why. ARGS="-k store"
	$(BIN)/python -m pytest -q -m "not slow and not gpu" $(ARGS)

test-slow: setup ## Tests that kill processes or train models.
	$(BIN)/python -m pytest -q -m "slow" $(ARGS)

lock: setup ## Write the lock files again after a change of pyproject.toml.
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-annotate --python-version 3.11 \
		--extra dev pyproject.toml -o requirements/requirements.lock

clean: ## Remove the environment and caches; runs and data stay.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
