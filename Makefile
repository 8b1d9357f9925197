# Penstock's verbs. Needs Python 3.11, make and a C compiler; everything else is installed into .venv/
# and into a cache outside the tree (PENSTOCK_CACHE, default ~/.cache/penstock).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PENSTOCK_CACHE ?= $(HOME)/.cache/penstock
PYTHON ?= python3
UV := $(PENSTOCK_CACHE)/uv/bin/uv
UV_VERSION := 0.13.9
BIN := .venv/bin
CPU := deploy/locks/cpu
GPU := deploy/locks/gpu
LOCK_FLAGS := --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url --python-version 3.11 --python-platform x86_64-manylinux_2_28
# Without compiled bytecode vLLM and Ray start three times slower.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONSAFEPATH := 1
export UV_LINK_MODE ?= hardlink
# The same examples every time; `pytest` alone draws new ones.
TESTS := -q --hypothesis-profile ci

.PHONY: help setup demo up test check bench e2e chaos gpu gen lock format

help: ## this list
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(UV):
	@echo "penstock: installing uv $(UV_VERSION) into $(PENSTOCK_CACHE)/uv"
	@$(PYTHON) -m venv $(PENSTOCK_CACHE)/uv
	@$(PENSTOCK_CACHE)/uv/bin/python -m pip install --quiet uv==$(UV_VERSION)

.venv/.installed: pyproject.toml $(CPU)/requirements.lock | $(UV)
	@echo "penstock: installing the CPU environment into .venv (about 6 GB)"
	@test -x $(BIN)/python || $(UV) venv --quiet --python 3.11 .venv
	@$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes $(CPU)/requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

setup: .venv/.installed ## make the environment in .venv/

demo: setup ## start the built-in service on this machine, chat with it, leave nothing running
	@$(BIN)/python -m penstock_cli.demo

up: setup ## run the built-in service until Ctrl-C
	@$(BIN)/penstock up

check: setup ## format, lint, types, import contracts, drift, fast tests
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy operator/penstock_operator operator/penstock_cli router/penstock_policy router/penstock_router router/penstock_client workers/penstock_workers
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports
	@$(MAKE) --no-print-directory lock-check
	@$(BIN)/pytest $(TESTS) -m "not slow and not engine and not e2e"

.PHONY: lock-check
lock-check: setup
	@for kind in cpu gpu; do \
	  new=$$(mktemp); cp deploy/locks/$$kind/requirements.lock $$new; \
	  $(MAKE) --no-print-directory lock-$$kind OUT=$$new; \
	  diff -q $$new deploy/locks/$$kind/requirements.lock >/dev/null || { echo "deploy/locks/$$kind is stale: make lock"; exit 1; }; \
	  rm -f $$new; \
	done
	@grep -q '^torchvision==' $(GPU)/requirements.lock && grep -q '^triton==' $(GPU)/requirements.lock \
	  || { echo "the GPU lock lost torchvision or triton"; exit 1; }

.PHONY: lock-cpu lock-gpu
lock-cpu: | $(UV)
	@$(UV) pip compile $(LOCK_FLAGS) --override $(CPU)/overrides.txt --extra workers-cpu --extra operator --extra dev pyproject.toml -o $(OUT) >/dev/null
lock-gpu: | $(UV)
	@$(UV) pip compile $(LOCK_FLAGS) --override $(GPU)/overrides.txt --extra workers --extra operator pyproject.toml -o $(OUT) >/dev/null

lock: | $(UV) ## resolve both locks anew
	@$(MAKE) --no-print-directory lock-cpu OUT=$(CPU)/requirements.lock
	@$(MAKE) --no-print-directory lock-gpu OUT=$(GPU)/requirements.lock

.PHONY: kube
kube: ## build the test cluster's programs into the cache (once, 12 to 25 minutes)
	@PYTHONPATH=e2e $(PYTHON) -m kube.build || echo "make kube: tests that need a cluster will be skipped" >&2

# The cluster's programs are built beside tests that use a quarter of the machine, at the lowest priority.
test: setup ## everything CI runs: the checks, whole processes, and the operator on a real API server
	@PYTHONPATH=e2e $(PYTHON) -m kube.build --tested & building=$$!; \
	  { $(MAKE) --no-print-directory check && $(BIN)/pytest $(TESTS) --durations 15 -m "slow or engine or e2e" tests e2e --ignore e2e/kube; } \
	    || { kill $$building 2>/dev/null || true; wait; exit 1; }; \
	  wait $$building || echo "make test: tests that need a cluster will be skipped" >&2
	@$(BIN)/pytest $(TESTS) --durations 10 -m "not pods" e2e/kube

bench: setup ## the project's figures beside the peers', JSON in out/bench.json
	@PYTHONPATH=bench:e2e $(BIN)/python bench/run.py

e2e: setup ## whole processes, in full; with a real API server and a real node where `make kube` was run
	@PENSTOCK_FULL=1 $(BIN)/pytest -q e2e

chaos: setup ## 22 kinds of faults against 8 fake workers and 2 routers, 300 against the operator; SEED= STREAMS= MINUTES= TRIALS=
	@PYTHONPATH=e2e $(BIN)/python -m chaos.run --seed $(or $(SEED),0) --streams $(or $(STREAMS),10000) --minutes $(or $(MINUTES),12)
	@PYTHONPATH=e2e $(BIN)/python -m kube.crash --seed $(or $(SEED),0) --trials $(or $(TRIALS),0)

gpu: ## install and check the GPU environment on a machine with a GPU
	@echo "make gpu: not built yet" >&2; exit 2

gen: setup ## regenerate the protocol code, the CustomResourceDefinition and the chart's values
	@$(BIN)/python -c 'from pathlib import Path; from penstock_operator.plan.chart import write; write(Path("deploy/helm/penstock"))'
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto proto/penstock_proto/v1/*.proto

format: setup ## format and fix what can be fixed
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --quiet --fix .
