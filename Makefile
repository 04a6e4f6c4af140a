# make demo   make the environment, build the MovieLens catalogue, serve it with a page to try
# make test   make the environment, run the gate and every test
# make check  the gate alone: format, lint, types, import contracts
# make setup  the environment alone, in .venv

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH  := 2.13.0
# Where PyTorch's CPU builds lie when pip's own index has none (a CUDA build would work too, at 3 GB more).
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# What everything else stands on: 98 % of its branches, or the tests fail.
COVERED := trie infogain decoding artifact
HOST ?= 127.0.0.1
PORT ?= 8000

.PHONY: demo test check unit setup setup-dev clean

demo: setup
	$(BIN)/igd demo --host $(HOST) --port $(PORT)

test: check unit

unit: setup-dev
	$(BIN)/python -m pytest $(COVERED:%=--cov=igd_core.%) --cov-branch --cov-fail-under=98

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

setup: $(VENV)/.server

setup-dev: $(VENV)/.dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: $(BIN)/python deploy/locks/server.txt deploy/locks/demo.txt pyproject.toml Makefile
	$(PIP) --no-deps "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(PIP) --no-deps --index-url $(TORCH_CPU_INDEX) "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(PIP) "torch==$(TORCH)"
	$(PIP) --no-deps -r deploy/locks/server.txt -r deploy/locks/demo.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.server deploy/locks/dev.txt
	$(PIP) --no-deps -r deploy/locks/dev.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
