# `make demo`, `make demo-tp` and `make test` need python3 (3.11 or newer), g++ and make; they install the rest into .venv.
# `make nightly` is `make test` with the slow tests.
# `make gpu` runs, in under eight minutes and without a network, all that a GPU can prove; it installs nothing.
# `make docs` writes what is printed from the code: docs/cli.md, docs/api.md, docs/rooms.svg, the layers in docs/design.md.
# `make test-trtllm` installs into .venv-trtllm, with the versions that tensorrt_llm pins.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
WORKERS ?= 2
PYTEST = $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
TRTLLM := .venv-trtllm

.PHONY: demo demo-tp docs check test nightly gpu test-trtllm setup clean

demo: $(VENV)/demo.ready
	PYTHON=$(CURDIR)/$(PY) bash examples/demo/demo.sh

demo-tp: $(VENV)/demo.ready
	PYTHON=$(CURDIR)/$(PY) RANKS=2 WORK=work/demo-tp bash examples/demo/demo.sh

docs: $(VENV)/demo.ready
	$(PY) -m docs.generate

test: check
	$(PYTEST) -m "not slow" tests

nightly: check
	timeout --foreground 6h $(PYTEST) -m "slow or not slow" tests

gpu:
	$(or $(wildcard $(PY)),$(PYTHON)) benchmarks/gpu_day.py

check: $(VENV)/test.ready
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

test-trtllm: $(TRTLLM)/test.ready
	$(TRTLLM)/bin/python -m pytest -n 2 --dist loadfile -m "not slow" tests/unit tests/trtllm

$(TRTLLM)/test.ready: requirements-trtllm.txt requirements-dev.txt
	$(PYTHON) -m venv $(TRTLLM)
	$(TRTLLM)/bin/python -m pip install --quiet -r requirements-trtllm.txt $$(grep == requirements-dev.txt)
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: expected Python 3.11 or newer, found $$($(PYTHON) --version); set PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.ready: requirements.txt | $(VENV)/bin/python
	$(PY) -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/test.ready: requirements-dev.txt requirements-tensorrt.txt $(VENV)/demo.ready
	$(PY) -m pip install --quiet -r requirements-dev.txt -r requirements-tensorrt.txt
	@touch $@

setup: $(VENV)/test.ready

clean:
	rm -rf $(VENV) $(TRTLLM) work
