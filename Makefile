# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SITE   := _build/html/.complete

NOTEBOOKS := $(wildcard book/*.ipynb)
SOURCES   := $(NOTEBOOKS) $(wildcard book/*.md book/*.bib book/tools/*.py book/tools/errata/*.py book/static/* book/images/* book/register/*.yaml book/register/*/*.yaml) $(shell find ddpm_nb -name "*.py" -o -name "*.safetensors" -o -name "*.json") _config.yml _toc.yml CITATION.cff

.DEFAULT_GOAL := help
.PHONY: help setup book test package-tests notebook-tests site-tests lint format outputs lab serve bench mutations clean

help:  ## list what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv with the pinned versions and the package

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "could not create $(VENV): on Debian or Ubuntu, apt install python3-venv"; exit 1; }
	@echo "installing the pinned versions into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e '.[dev]'
	@touch $@

book: $(SITE)  ## execute every notebook and build the HTML
	@echo "open $(CURDIR)/_build/html/index.html"

$(SITE): $(READY) $(SOURCES)
	@$(BIN)/python book/tools/execute.py
	@$(BIN)/python book/tools/render.py
	@touch $@

test: lint package-tests notebook-tests site-tests  ## lint, types, package tests, notebooks compared, the built HTML

package-tests: $(READY)  ## tests of the package and of the notebooks' form
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests

notebook-tests: $(READY)  ## execute the committed notebooks again and compare every stored value
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --nbval --nbval-current-env --nbval-cell-timeout 600 \
	  -n 2 --dist loadfile -p no:cacheprovider $(NOTEBOOKS)

site-tests: $(SITE)  ## checks of the built HTML
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/site

lint: $(READY)  ## ruff (lint, format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

outputs: $(SITE)  ## put the last run's text outputs and the equations' numbers into the committed notebooks
	$(BIN)/python book/tools/outputs.py store
	$(BIN)/python book/tools/equations.py number

lab: $(READY)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=book

serve: $(SITE)  ## serve the built book on http://localhost:8000
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _build/html

bench: $(READY)  ## speed of training and of a sampler's step, beside other libraries (installed for it)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps smalldiffusion==0.5.0 \
	  denoising-diffusion-pytorch==2.3.4 ema-pytorch einops
	$(BIN)/python tests/benchmarks/training.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/sampling.py

mutations: $(READY)  ## plant known bugs and see the named tests fail
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutations.py

clean:  ## remove what was built; .venv stays
	rm -rf _build build *.egg-info .pytest_cache .mypy_cache .ruff_cache
