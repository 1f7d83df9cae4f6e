# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all their own set-up. ARGS go to the command: make demo ARGS="--scenario update"
SHELL := /bin/sh
BIN := .venv/bin
JOBS ?= $(shell expr $$(nproc) + 1)
PYTEST := $(BIN)/python -m pytest
ARGS ?=
BENCHES := $(filter-out common,$(patsubst benchmarks/%.py,%,$(filter-out benchmarks/_%,$(wildcard benchmarks/[a-z]*.py))))

.PHONY: help setup demo example-pipeline fuzz test test-all lint unit integration interop crds requirements bench bench-smoke clean $(addprefix bench-,$(BENCHES))

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

setup:  ## the virtual environment
	@sh scripts/setup.sh

demo: setup  ## the whole loop on the embedded default, with its enemies
	@$(BIN)/flashjob demo $(ARGS)

example-pipeline: setup  ## firmware from C source, packed, pushed, and proven by a virtual device
	@$(BIN)/python -m flashjob.demo.example_pipeline examples/firmware $(ARGS)

lint: setup  ## formatter, linter, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup  ## fast tests
	$(PYTEST) -q -n $(JOBS) --dist loadfile -m "not integration and not slow" tests $(ARGS)

integration: setup  ## tests on the real API server, registry and esptool
	$(PYTEST) -q -m "integration and not slow" tests $(ARGS)

test: lint unit integration  ## everything that must hold before a commit lands

fuzz: setup  ## coverage-guided, every parser and the verdict; ARGS="TARGET --seconds 600"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt || \
		echo "atheris cannot be installed here: the built-in engine takes its place" >&2
	@$(BIN)/python -m tests.fuzz $(ARGS)

test-all: test  ## also what takes long
	$(PYTEST) -q -m slow tests $(ARGS)

interop: setup  ## artifacts of ours in the hands of real tools, and theirs in ours; writes docs/interop.md
	$(BIN)/python -m tests.interop

crds: setup  ## generate crds/ from the models
	$(BIN)/python -m flashjob.api.crds

requirements: setup  ## pin the dependencies anew
	$(BIN)/uv pip compile pyproject.toml --extra dev --generate-hashes --no-header --no-annotate --upgrade -q -o requirements/dev.txt

$(addprefix bench-,$(BENCHES)): bench-%: setup
	$(BIN)/python benchmarks/$*.py $(ARGS)

bench: setup  ## all benchmarks
	@for b in $(BENCHES); do $(BIN)/python benchmarks/$$b.py $(ARGS) || exit 1; done

bench-smoke: setup  ## a minute of each benchmark
	@for b in $(BENCHES); do $(BIN)/python benchmarks/$$b.py --smoke || exit 1; done

clean:  ## everything that can be made again, the cache of compiled parts apart
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
