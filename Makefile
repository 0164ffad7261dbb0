# convatlas: `make help` lists the targets. Everything is set up by itself from python3 and make.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
UV := uv==0.9.30
TORCH ?= cuda
PORT ?= 5000
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
MINUTES ?=
.PHONY: help setup repro verdicts test test-gpu test-slow lint format ui report atlas study-pages clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## make .venv with exactly the packages of requirements.lock (TORCH=cpu without CUDA)

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convatlas needs Python 3.11 or newer; set PYTHON=python3.11, for example.")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "$(UV)"
ifeq ($(TORCH),cpu)
	awk '/^[a-z]/ {gpu = /^(torch|torchvision|triton|nvidia-[^=]*|cuda-[^=]*)(\[.*\])?==/} !gpu' requirements.lock > $(VENV)/cpu.lock
	VIRTUAL_ENV="$$PWD/$(VENV)" $(VENV)/bin/uv pip sync --quiet --require-hashes --compile-bytecode $(VENV)/cpu.lock
	VIRTUAL_ENV="$$PWD/$(VENV)" $(VENV)/bin/uv pip install --quiet --compile-bytecode --torch-backend=cpu \
	  $$(sed -nE 's/^((torch|torchvision)==[^ ]+).*/\1/p' requirements.lock)
else
	VIRTUAL_ENV="$$PWD/$(VENV)" $(VENV)/bin/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
endif
	$(VENV)/bin/python -m pip --version > /dev/null
	VIRTUAL_ENV="$$PWD/$(VENV)" $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

repro: setup  ## run the pipeline: resolve, prepare, train, report; the seeds of a run train side by side
	@git rev-parse --git-dir > /dev/null 2>&1 || { echo "DVC needs a git repository: clone convatlas, or run 'git init' here first." >&2; exit 2; }
	dvc repro

verdicts: setup  ## add seeds until every claim of the plan is decided (MINUTES=60 ends it sooner)
	python -m convatlas.decide $(if $(MINUTES),minutes=$(MINUTES))

test: setup  ## run the tests that take seconds
	OMP_NUM_THREADS=1 python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

test-slow: setup  ## run the long ones as well
	python -m pytest -m "not gpu and not network"

test-gpu: setup  ## run the tests that need a GPU (about two minutes; benchmarks/gpu.py measures it)
	python -m pytest -m gpu

lint: setup  ## check style, types and which room imports which
	ruff check .
	ruff format --check .
	lint-imports
	mypy

format: setup  ## put the style right
	ruff check --fix .
	ruff format .

ui: setup  ## open the runs in MLflow at http://127.0.0.1:5000 (PORT=... for another port)
	python -m convatlas.ui port=$(PORT)

report: setup  ## write the reports of the runs that are there, whatever is missing
	python -m convatlas.report

atlas: setup  ## draw every net and write the atlas with the runs that are there
	python -m convatlas.atlas

study-pages: setup  ## write what the runs measured into docs/studies, and draw its nets anew
	python -m convatlas.reporting.study_pages
	python -m convatlas.atlas.study_drawings

clean:  ## delete what the pipeline made; .venv, mlflow.db and DVC's cache stay
	rm -rf runs plan reports data/prepared data/manifests .work .plan.* .pytest_cache .mypy_cache .ruff_cache
