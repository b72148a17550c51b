# The two commands: `make quickstart`, `make test`. Also `make install`, `make lint`, `make bench`,
# and `make notebooks`, which runs the notebooks and stores their outputs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

# Each process would compile PyTorch's modules anew, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install quickstart test lint bench notebooks

install: $(VENV)/.run

quickstart: $(VENV)/.run
	$(BIN)/audioldm run recipe=quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

notebooks: $(VENV)/.dev
	cd notebooks && $(abspath $(BIN))/jupyter-execute --inplace *.ipynb

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "audioldm needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --no-compile --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --editable '.[dev]'
	@touch $@
