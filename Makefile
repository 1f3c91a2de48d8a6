# On a fresh machine with Python 3.11 or later: `make demo`, `make test`; with root, `make test-slurm`.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := scripts tests benchmarks
# Tests wait for processes that they kill, and a core would idle.
PYTEST := $(BIN)/python -m pytest --numprocesses=$$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses=8 --dist=worksteal

# On a machine with a GPU, whose own Python may be all that there is: tests/gpu/requirements.txt.
GPU_PYTHON ?= $(if $(wildcard .venv/run),$(BIN)/python,$(PYTHON))

# Of the tests that `make check` picks, those that take most of the time and are the least likely to fail.
SLOW := learned or any_pack or longer_than or takes_no_more_memory or memory_that_it_takes or killed or flipped or fills_up or few_packages or example_runs or is_its_own

# Some images have this set, with which every process would compile all that it imports: Snakemake's start takes 5 s then, not 2.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-contigs check check-tests test test-slurm lint documents bench test-gpu bench-gpu

demo: .venv/run
	$(BIN)/snakemake --profile profiles/local --configfile config/demo.yaml -- all report
	$(BIN)/python scripts/summary.py results/demo

# pyrodigal, which finds the genes, is not among the requirements: its licence is GPL-3.
demo-contigs: .venv/run
	$(BIN)/pip install --quiet pyrodigal
	$(BIN)/snakemake --profile profiles/local --configfile config/contigs.yaml
	$(BIN)/python scripts/summary.py results/contigs_demo

# What a change most likely breaks. mypy takes one core, and without what it keeps from its last run most of a minute.
check: .venv/dev
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint check-tests

check-tests: .venv/dev
	$(PYTEST) -k "not ($(SLOW))" tests/unit/test_*.py $(addprefix tests/unit/,plan store tables inputs/test_fasta.py model/test_parity.py)

test: .venv/dev
	$(PYTEST)

# Needs root, and says why it skips without.
test-slurm: .venv/dev
	if [ "$$(id -u)" = 0 ] && which apt-get && ! which munged slurmctld slurmd slurmdbd mariadb-install-db ip; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			slurmctld slurmd slurmdbd slurm-client munge iproute2 mariadb-server-core mariadb-client-core; \
	fi
	$(BIN)/python -m pytest -rs --numprocesses=3 --dist=worksteal tests/slurm

lint: .venv/dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy --strict scripts/esmflow
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint --configfile config/demo.yaml

# After a change of the config's declaration in scripts/esmflow/config/declaration.py.
documents: .venv/run
	PYTHONPATH=scripts $(BIN)/python -m esmflow.config.documents

bench: .venv/dev
	$(BIN)/python benchmarks/run.py

test-gpu:
	$(GPU_PYTHON) -m pytest -c tests/gpu/pytest.ini -rs tests/gpu

bench-gpu:
	$(GPU_PYTHON) benchmarks/gpu.py

.venv/run: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "esmflow needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_OPTIONS) -r requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(BIN)/pip install --quiet $(PIP_OPTIONS) -r requirements-dev.txt
	touch $@
