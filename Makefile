# On a fresh machine with Python 3.11 or later: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := scripts tests benchmarks

.PHONY: demo test lint bench

demo: .venv/run
	$(BIN)/snakemake --profile profiles/local --configfile config/demo.yaml
	$(BIN)/python scripts/summary.py results/demo

test: .venv/dev
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy --strict scripts/esmflow
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint --configfile config/demo.yaml

bench: .venv/dev
	$(BIN)/python benchmarks/run.py

.venv/run: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "esmflow needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@
