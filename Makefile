# `make demo` and `make test` need Python 3.11 or newer and nothing else: each makes .venv when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AT_ONCE := -n auto --maxprocesses 4 --dist loadfile  # a process a core; files whole, as pages of docs go on from each other

.PHONY: help demo test coverage lint docs bench clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

$(VENV)/user: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/developer: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint,docs]'
	touch $@ $(VENV)/user

demo: $(VENV)/user  ## train, evaluate, predict and report on the data that ships (minutes)
	$(BIN)/facetry demo

test: $(VENV)/developer  ## all tests; real data are used where FACETRY_DATA names their folder
	$(BIN)/python -m pytest $(AT_ONCE)

coverage: $(VENV)/developer  ## the same with line coverage, and the public functions that no test runs
	$(BIN)/python -m pytest $(AT_ONCE) --cov --cov-report=term --cov-report=json
	$(BIN)/python tools/never_run.py coverage.json

lint: $(VENV)/developer  ## style
	$(BIN)/ruff check src tests benchmarks tools docs
	$(BIN)/ruff format --check src tests benchmarks tools docs tools

docs: $(VENV)/developer  ## the pages and a reference as a site, built strictly: build/site
	$(BIN)/python docs/site.py

bench: $(VENV)/developer  ## the speed tables of the README
	$(BIN)/python -m benchmarks.speed

clean:  ## remove the environment and what tests and builds left
	rm -rf $(VENV) build dist .coverage* coverage.json .pytest_cache .hypothesis .ruff_cache
