# Every target does its own set-up in .venv; stamps make a second run quick.
#   make demo     the whole road on SmolLM2-135M, with a before/after table
#   make test     everything that is checked
#   make proofs   the machine-checked proofs, with Coq

PYTHON ?= python3
VENV ?= .venv
AWP_CACHE ?= $(HOME)/.cache/awp-edge
PYTEST_ARGS ?= -n 2
# PyTorch without CUDA: the package index's own Linux wheels bring gigabytes that no CPU needs.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CXX_TESTS ?= build/cxx-tests
export AWP_CACHE

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt constraints.txt \
	$(shell find awp_edge export cpp -type f -not -name '*.pyc' -not -path '*/tests/*' -not -path '*/bench/*')

.PHONY: demo test bench lint proofs sanitize clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/awp-edge demo demo

# One BLAS and torch thread a worker: more spin against each other, and take 1.4 times as long.
test: $(VENV)/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -P -m pytest $(PYTEST_ARGS) tests

bench: $(VENV)/installed
	$(BIN)/python bench/solver.py
	$(BIN)/python bench/sparse.py
	$(BIN)/awp-edge demo demo
	mkdir -p bench/results && cp demo/demo.json bench/results/demo.json
	$(BIN)/python bench/readme.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

# Compiles proofs/coq and prints what each theorem assumes; installs Coq where it can.
proofs:
	$(PYTHON) proofs/coq/check.py

# The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer, then under ThreadSanitizer: the plain build of the
# core and the fastest one that this machine runs.
sanitize: $(VENV)/installed
	$(PIP) install --quiet -c constraints.txt cmeel-eigen cmake
	PATH="$(abspath $(BIN)):$$PATH" PYTHON=$(BIN)/python cpp/tests/sanitize.sh $(CXX_TESTS) \
		"base;$$($(BIN)/python -P -c 'from awp_edge import native; print(native.isa())')"

clean:
	rm -rf $(VENV) build demo

$(VENV)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "awp-edge needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/torch: constraints.txt | $(VENV)/python
	$(PIP) install --quiet --no-deps --retries 0 --timeout 20 --index-url $(TORCH_INDEX) -c constraints.txt torch \
		|| echo "no PyTorch from $(TORCH_INDEX): taking the package index's own"
	touch $@

$(VENV)/installed: $(SOURCES) $(VENV)/torch
	$(PIP) install --quiet -c constraints.txt '.[export,bench,test]'
	touch $@
