# SPDX-License-Identifier: Apache-2.0
# Every target sets up .venv from nothing first. 'make demo' and 'make test' are the two to know.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done

# cpu, cuda, or the name of one of PyTorch's indexes such as cu130: make setup TORCH=cu130
TORCH ?= $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo cuda || echo cpu)
TORCH_VERSION := 2.13.0
# What the CUDA build of that torch brings (its metadata say so); a CPU build brings none.
TRITON_VERSION := 3.7.1
TORCH_INDEX   := https://download.pytorch.org/whl

PROMPT ?= a red mug
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup demo test pytest test-viewers test-cluster gpu-check lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    from a sentence to a splat file on this machine (PROMPT='a blue car')"
	@echo "make test    lint and every test"
	@echo "make lint    ruff and mypy only        make format   let ruff rewrite the files"
	@echo "make test-viewers   exported files in real viewers; needs Node.js and Chromium"
	@echo "make test-cluster   sweeps on a SLURM of one node; needs root and slurm-wlm, munge"
	@echo "make gpu-check   what only a CUDA card can show (offline: WHEELS=DIR)"
	@echo "make setup   only the environment      make clean    remove it (outputs/ stays)"

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "sdi-gs needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	       "try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and alone: its index must not be asked for anything else, and an ordinary
	@# install would fetch gigabytes of CUDA libraries for a machine that cannot use them.
	@if $(BIN)/python -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then \
	  echo "torch is already in $(VENV)"; \
	elif [ "$(TORCH)" = cpu ]; then \
	  $(PIP) install -q 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null \
	  || { echo "asking $(TORCH_INDEX)/cpu for the CPU build of torch"; \
	       $(PIP) install -q 'torch==$(TORCH_VERSION)+cpu' --extra-index-url $(TORCH_INDEX)/cpu; }; \
	elif [ "$(TORCH)" = cuda ]; then \
	  $(PIP) install -q 'torch==$(TORCH_VERSION)'; \
	else \
	  $(PIP) install -q 'torch==$(TORCH_VERSION)' --index-url $(TORCH_INDEX)/$(TORCH); \
	fi
	@# The same version again as a constraint: no dependency may bring another build of torch.
	@$(BIN)/python -c 'import importlib.metadata as m; v = m.version("torch"); \
	  print("torch==" + v); print("triton==$(TRITON_VERSION)" if v.endswith("+cpu") else "")' \
	  > $(VENV)/constraints.txt
	$(PIP) install -q -c $(VENV)/constraints.txt -e '.[dev]'
	@echo "compiling the kernels for this processor, once"
	@$(BIN)/python -m representations.ops.ahead
	@touch $@

# A folder of its own each time: an earlier demo is never overwritten.
demo: $(STAMP)
	@out=outputs/demo; n=2; \
	while [ -e $$out ]; do out=outputs/demo-$$n; n=$$((n + 1)); done; \
	$(BIN)/sdi-gs generate "$(PROMPT)" --config mini_fast --out $$out

# The types are looked at beside the tests: neither waits for the other.
test: $(STAMP)
	@$(MAKE) --no-print-directory -j 2 lint pytest

# A test has one thread, and one process more than there are cores works on them, since some tests
# only wait (tests/conftest.py). Each process loads torch and the models of its tests, hence no more
# than four.
pytest: $(STAMP)
	$(BIN)/python -m pytest -q -rs -n logical --maxprocesses 4 --dist worksteal

# Exported files in real viewers: needs Node.js (npm) and Chromium, and fetches 290 MB of packages
# once. VIEWER_PICTURES=DIR keeps what was drawn.
VIEWERS := tests/viewers
test-viewers: $(STAMP) $(VIEWERS)/node_modules/.installed
	$(BIN)/python -m pytest -q -rs -s $(VIEWERS)

$(VIEWERS)/node_modules/.installed: $(VIEWERS)/package.json $(VIEWERS)/package-lock.json
	@command -v npm >/dev/null || { \
	  echo "test-viewers needs npm, which comes with Node.js 20 or newer: https://nodejs.org"; exit 1; }
	npm ci --prefix $(VIEWERS) --no-audit --no-fund
	@touch $@

# Sweeps on a real SLURM of one node, which the tests start: needs root, and the packages slurm-wlm
# and munge of Debian or Ubuntu. It takes minutes: SLURM waits two of them before it starts a
# preempted job again.
test-cluster: $(STAMP)
	SDI_GS_TEST_CLUSTER=1 $(BIN)/python -m pytest -q -rs --durations=0 tests/cluster

# Everything that only a CUDA card can show, in under ten minutes. Offline: WHEELS=DIR with the
# wheels of the package's dependencies; torch is then taken from the system's own Python.
GPU_BIN = $(if $(WHEELS),.venv-gpu/bin,$(BIN))
gpu-check: $(if $(WHEELS),.venv-gpu/.setup-done,$(STAMP))
	$(GPU_BIN)/python benchmarks/gpu_check.py $(GPU_CHECK)

.venv-gpu/.setup-done: pyproject.toml
	@test -d "$(WHEELS)" || { echo "WHEELS=$(WHEELS) is not a folder"; exit 1; }
	$(PYTHON) -m venv --system-site-packages .venv-gpu
	@.venv-gpu/bin/python -c 'import torch; assert torch.cuda.is_available()' || { \
	  echo "WHEELS is for a machine whose own Python has torch with CUDA"; exit 1; }
	.venv-gpu/bin/python -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' \
	  > .venv-gpu/constraints.txt
	.venv-gpu/bin/python -m pip --disable-pip-version-check install -q --no-index \
	  --find-links "$(WHEELS)" -c .venv-gpu/constraints.txt --no-build-isolation -e .
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sdi_gs representations

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-gpu build *.egg-info .pytest_cache .mypy_cache .ruff_cache
