# dither: every target builds what it needs; with nothing changed, nothing is installed again.
#   make reproduce   every figure at the quick scale → results/index.html
#   make test        the test suite
#   make fuzz        random models against a dense oracle
#   make faults      kills, full disks, hostile files at random: does the next call end the job?
#   make soak        random operations for a quarter of an hour
#   make mutants     one wrong line at a time: do the tests notice?
#   make check       what a change must pass: ruff, pyright, tests
#   make venv        the environment only, in .venv
#   make site        the documentation → build/site/html/index.html
PYTHON ?= python3
VENV   ?= .venv
SCALE  ?= quick
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)

BIN   := $(VENV)/bin
READY := $(VENV)/.ready
SITE  := $(VENV)/.site
MNIST := /usr/share/datasets/fashion-mnist

# One thread per process: small nets run faster so, and sums come out in one order.
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: reproduce test fuzz faults soak mutants check lint types bench docs site data venv clean
.DEFAULT_GOAL := test

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "$(PYTHON) is missing or older than 3.10: install Python 3.10 or newer, or say which to use: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv, or say which Python can: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the packages of requirements.lock into $(VENV): about three minutes, silent unless something fails"
	@$(BIN)/python -m pip install -qq --no-compile -r requirements.lock
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

venv: $(READY)

reproduce: $(READY) data
	$(BIN)/dither reproduce --scale $(SCALE) --jobs $(JOBS)

# Fashion-MNIST is a Debian package; elsewhere the files are fetched and their checksums compared.
data: $(READY)
	@if [ ! -d $(MNIST) ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get install -y -q dataset-fashion-mnist || { apt-get update -q && apt-get install -y -q dataset-fashion-mnist; }; } \
	  >/dev/null 2>&1 || echo "dataset-fashion-mnist could not be installed: the files will be fetched"; fi
	@$(BIN)/dither data fetch fashion-mnist

test: $(READY)
	@$(MAKE) --no-print-directory data || echo "Fashion-MNIST is not to be had: the tests of it stand aside"
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 15 $(ARGS)

# Random models against a dense oracle: make fuzz ARGS="--count 20000 --seed 1"
fuzz: $(READY)
	$(BIN)/python tests/fuzz/run.py $(ARGS)

# Faults and hostile files: make faults ARGS="--count 2000 --seed 1 --kinds killed results"
faults: $(READY)
	$(BIN)/python tests/faults/run.py $(ARGS)
	DITHER_KILLS=1 $(BIN)/python -m pytest -q tests/lab/runs/test_cluster.py

# Random operations, replayed: make soak ARGS="--minutes 60 --seed 1"
soak: $(READY)
	$(BIN)/python tests/faults/soak.py $(ARGS)

# Wrong lines, each in a copy of the repository: make mutants ARGS="ghost threads"
mutants: $(READY)
	$(BIN)/python tests/mutants/run.py $(ARGS)

check: lint types test

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(READY)
	$(BIN)/python docs/figures.py
	$(BIN)/python docs/verdicts.py
	$(BIN)/python docs/claims.py

$(SITE): docs/requirements.txt $(READY)
	@$(BIN)/python -m pip install -qq --no-compile -r docs/requirements.txt
	@touch $@

# Warnings are errors; the gallery's scripts are run if they have changed.
site: $(SITE)
	@$(BIN)/python docs/site/assemble.py build/site/source
	$(BIN)/python -m sphinx -W --keep-going -qE -d build/site/read $(ARGS) build/site/source build/site/html
	@find build/site/html -name '*.map' -delete
	@echo "build/site/html/index.html"

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
