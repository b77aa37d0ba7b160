# The commands of the course. Each makes .venv and installs what is missing first; PYTHON=... names another Python.

READY := .venv/.ready
PYTHON_IN_VENV := .venv/bin/python
# of `make gpu-course`: seconds that a cell may take, and the seed
LIMIT ?= 1800
SEED ?= 0

# JupyterLab refuses to run as root, which is who you are in most containers
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)

.PHONY: help lab test test-all course gpu-course site stale benchmarks format lint crf clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 18

lab: $(READY) ## open JupyterLab on the first notebook; ARGS=--no-browser and the like are handed on
	@$(PYTHON_IN_VENV) -m jupyterlab $(AS_ROOT) $(ARGS) notebooks/00_start_here.ipynb

test: $(READY) ## run every check that CI runs: style, types, tests, notebooks in profile ci
	@sh tools/check.sh

test-all: $(READY) ## the same with slow tests: full-size models (and gpu tests where there is one)
	@sh tools/check.sh all

course: $(READY) ## run every notebook in the active profile into build/, print a table of times
	@$(PYTHON_IN_VENV) tools/notebooks.py course

gpu-course: $(READY) ## NOTEBOOK=02_fcn SEED=0: one notebook, one seed, profile gpu, under nbval; what it shows: build/gpu
	@$(if $(NOTEBOOK),,echo "Name one notebook: make gpu-course NOTEBOOK=02_fcn SEED=0"; exit 2;) $(PYTHON_IN_VENV) \
	    tools/notebooks.py gpu --seed $(SEED) --limit $(LIMIT) notebooks/$(NOTEBOOK).ipynb

site: $(READY) ## make web pages of the notebooks as they were executed, in build/site
	@.venv/bin/sphinx-build -q -W --keep-going -c docs . build/site
	@cp build/site/README.html build/site/index.html
	@echo "open build/site/index.html"

benchmarks: $(READY) ## measure all benchmarks anew (the machine should do nothing else), write docs/benchmarks.md
	@$(PYTHON_IN_VENV) benchmarks/all.py $(ARGS)

stale: $(READY) ## list notebooks and results that other code of the package made, and what has changed
	@$(PYTHON_IN_VENV) tools/notebooks.py stale

format: $(READY) ## put code and notebooks into the house style
	@$(PYTHON_IN_VENV) -m ruff check --fix --quiet
	@$(PYTHON_IN_VENV) -m ruff format

lint: $(READY) ## style and types only
	@$(PYTHON_IN_VENV) -m ruff check
	@$(PYTHON_IN_VENV) -m ruff format --check
	@$(PYTHON_IN_VENV) -m mypy

crf: $(READY) ## try again to build pydensecrf, the optional reference for the dense CRF
	@sh tools/setup.sh crf

clean: ## remove .venv, build/ and caches; keeps runs/ (finished training) and data/
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@if [ -d runs ]; then echo "runs/ with finished training is kept; delete it by hand if you want to train again."; fi

$(READY): pyproject.toml constraints.txt tools/setup.sh
	@sh tools/setup.sh
	@touch $@
