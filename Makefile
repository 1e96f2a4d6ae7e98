# make train and make test do everything on a fresh machine that has python3 (3.11 or newer) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup train test mutants test-all parity faults matrix docs lint clean

help:
	@echo "make train     train the quickstart on embedded real data"
	@echo "make test      run the tests"
	@echo "make mutants   plant faults, and run the tests that must notice"
	@echo "make test-all  run the slow tests and all mutants too"
	@echo "make parity    write docs/parity.md anew, with all mutants"
	@echo "make faults    do to runs what happens to runs, and write docs/reliability.md anew"
	@echo "make matrix    test under other versions (ENVS=colab: of one environment), and write docs/platforms.md anew"
	@echo "make docs      the pages as a site in build/docs, every link checked"
	@echo "make lint      ruff, pyright, import directions, known vulnerabilities"
	@echo "make setup     make $(VENV) with everything in it (the others do it by themselves)"
	@echo "make clean     remove $(VENV), the environments of make matrix and build"

setup: $(STAMP)

# Made anew whenever pyproject.toml or setup.py changes, so that nothing that was dropped from it lingers.
$(STAMP): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "This project needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..." >&2; exit 2; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[torch,dev]'
	@touch $@

train: setup
	$(BIN)/python scripts/train.py --config configs/quickstart.py

test: setup
	$(BIN)/python -m pytest -m "not slow"

mutants: setup
	$(BIN)/python -m pytest parity_tests -m mutants

test-all: setup
	$(BIN)/python -m pytest

parity: setup
	$(BIN)/python parity_tests/report.py --out docs/parity.md

faults: setup
	$(BIN)/python tests/faults.py --out docs/reliability.md

matrix: setup
	$(BIN)/python tests/matrix.py $(ENVS) --out docs/platforms.md

docs: $(VENV)/.docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --conf-dir docs . build/docs
	@echo "open build/docs/index.html"

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/audit.py

clean:
	rm -rf $(VENV) .matrix build
