# `make setup` needs Python 3.11 or later and nothing else. Everything it installs goes into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.corpusmill-setup

.DEFAULT_GOAL := help
.PHONY: help setup demo bench model test chaos fuzz audit lint format types lock clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(STAMP)  ## create .venv with the locked dependencies and the corpusmill command

demo: $(STAMP)  ## write a small corpus, run a job over it, show what came out
	$(BIN)/corpusmill demo

bench: $(STAMP)  ## measure speed against every peer and append it to docs/benchmarks.md (hours)
	$(BIN)/corpusmill benchmark --figures all --output docs/benchmarks.md

model: $(STAMP)  ## train the demo's model anew, below build/demo-model (hours)
	$(BIN)/python -m jobs.demo.train --dir build/demo-model

test: $(STAMP)  ## run the tests, two processes side by side; with CI=1 (as .ci/run) the slow ones too
	$(BIN)/python -m tests $(if $(CI),,-m "not slow")

chaos: $(STAMP)  ## kill a run at random while somebody reads its table, 20 rounds (half an hour; docs/testing.md)
	$(BIN)/python -m tests.chaos --rounds 20

fuzz: $(STAMP)  ## give every place where foreign data comes in 100,000 hostile inputs (docs/fuzzing.md)
	$(BIN)/python -m tests.fuzzing --inputs 100000

audit: $(STAMP)  ## look for known vulnerabilities in what requirements.lock names; exit code 75: nobody could be asked
	$(BIN)/python .ci/audit.py

lint: $(STAMP)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## fix style and formatting where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## check types
	$(BIN)/mypy

# A virtual environment whose Python has gone (an upgrade, a moved folder) is made anew. The lock carries
# setuptools, so the project itself installs without fetching a build environment.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
	  { echo "there is no '$(PYTHON)' here; install Python 3.11 or later, or try: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "corpusmill needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1). Try: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "cannot create $(VENV): on Debian and Ubuntu install the package python3-venv first" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "ready: $(BIN)/corpusmill --help"

# Resolves pyproject.toml's ranges anew in a throw-away environment. Local builds ("+cpu") and what torch itself
# pins on Linux (CUDA libraries, triton) stay out, so that one lock serves CPU and GPU machines.
lock:  ## resolve the dependencies anew into requirements.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet 'setuptools>=77'
	build/lock/bin/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	{ sed -n '/^#/p' requirements.lock; build/lock/bin/python -m pip freeze --all --exclude-editable \
	  | grep -viE '^(pip|wheel|triton|nvidia-.*|cuda-.*)==|@' | sed -E 's/\+[a-z0-9.]+$$//'; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

clean:  ## remove what setup, the tests and the demo wrote
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache corpusmill-demo corpusmill-benchmark
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
