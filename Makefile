# Two commands set everything up by themselves: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help quickstart test nightly chaos bench doctor browser check format docs clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

quickstart: $(READY)  ## train a tiny policy through every real component on this machine (4 to 12 minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python launch/quickstart.py

TWO := -n 2 --dist loadfile --no-loadscope-reorder  # two files at a time, in the order of tests/conftest.py

# Tests without machines first, a thread each; then those that start engines, JVMs and Rays, two files at a time: much of
# their time one process starts and the others wait for it.
test: $(READY) check browser  ## everything that needs no GPU, each thing by one road
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
	  -m "not slow and not chaos and not gpu and not nightly"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(TWO) -m "(slow or chaos) and not gpu and not nightly"

nightly: $(READY)  ## the other roads: other ZeRO stages, untied heads, several nodes
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(TWO) -m "nightly and not gpu"

TRIALS ?= 20
chaos: $(READY)  ## every fault that is tested for, with TRIALS times as many seeds, and the table of what came of it
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(TWO) -m "chaos and not gpu" --trials $(TRIALS)

bench: $(READY)  ## each part beside the limit of what it is built on (10 minutes); RUN= as for doctor
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python launch/bench.py $(RUN)

RUN ?= +experiment=quickstart
doctor: $(READY)  ## is this machine fit for a run? RUN="+experiment=hotpotqa cluster=one_gpu" names another
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python launch/doctor.py $(RUN)

# The test of report.html wants a Chromium or a Chrome. Where there is none, Debian's is installed if that needs no password;
# elsewhere that one test is skipped and says why.
browser:  ## a browser for the test of report.html, where root may install Debian's
	@for name in chromium google-chrome google-chrome-stable; do command -v $$name > /dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  echo "installing Debian's chromium for the test of report.html"; \
	  export DEBIAN_FRONTEND=noninteractive; apt="apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20"; \
	  { $$apt install -y --no-install-recommends chromium || { $$apt update && $$apt install -y --no-install-recommends chromium; }; } \
	    > /dev/null 2>&1; \
	fi; \
	command -v chromium > /dev/null || echo "no chromium or google-chrome here: the test of report.html in a browser is skipped"

check: $(READY)  ## linter, formatter, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## apply the formatter and the linter's safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## docs/configuration.md, out of the schema and conf/
	$(BIN)/python -m smartrag.reference > docs/configuration.md

clean:  ## remove what runs and tools left (not .venv, not runs/)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The lock is complete, so nothing is resolved. It names the CPU build of torch, which PyPI does not carry; where pip
# cannot find it, PyPI's build (larger, with CUDA libraries) takes its place and runs on a CPU as well.
$(READY): cpu.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; assert (3, 11) <= v < (3, 13), f"SmartRAG needs Python 3.11 or 3.12, this is {sys.version}"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps $$(grep '^torch==' cpu.lock) || $(BIN)/pip install --quiet $$(grep '^torch==' cpu.lock | cut -d+ -f1)
	grep -v '^torch==' cpu.lock > $(VENV)/rest.lock
	$(BIN)/pip install --quiet --no-deps --requirement $(VENV)/rest.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)
