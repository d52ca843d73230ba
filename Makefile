# Two commands: `make` (set up, then the default run) and `make test` (set up, then every test).
PYTHON ?= python3
BIN := .venv/bin
CORES ?= all

.PHONY: all setup slurm test lint docs clean
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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,slurm]'
	@touch $@
	@echo "== set up; from now on nothing needs the network. Plain commands work after: source .venv/bin/activate"

# SLURM itself, for tests/slurm. No service is started. Never fails: where it cannot be installed, the tests skip and say so.
slurm:
	@command -v slurmctld >/dev/null && command -v munged >/dev/null || { \
	    command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq >/dev/null && \
	    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; \
	} || echo "SLURM could not be installed: it takes root, and Debian's packages slurm-wlm and munge"

test: setup
	@echo "== all tests"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile rules
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --lint

docs: setup
	$(BIN)/pdoc -o build/api reclaim
	@echo "== API reference: build/api/index.html"

clean:
	rm -rf results/* .snakemake
