# Two commands: `make` (set up, then the default run) and `make test` (set up, then every test).
PYTHON ?= python3
BIN := .venv/bin
CORES ?= all

.PHONY: all setup test lint clean
.DEFAULT_GOAL := all

all: setup
	@echo "== default run: snakemake --cores $(CORES)"
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores $(CORES)
	@echo "== done: open results/report.html"

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "reclaim needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another with: make PYTHON=python3.12" >&2; exit 1; }
	@echo "== creating .venv and installing the pinned dependencies (needs the network once, takes a minute or more)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "== set up; from now on nothing needs the network. Plain commands work after: source .venv/bin/activate"

test: setup
	@echo "== all tests"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --lint

clean:
	rm -rf results/* .snakemake
