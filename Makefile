# Every target works on a machine that has only Python 3.11 or newer: it makes its own .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint
.DEFAULT_GOAL := test

# A stamp per set of extras: pip runs again only when the requirements change.
.venv/%.stamp: requirements.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"Python {sys.version.split()[0]} found, 3.11 or newer expected: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt -e '.[$*]'
	@touch $@

demo: .venv/demo.stamp
	JAX_PLATFORMS=cpu $(BIN)/python -m launch.demo --workdir=runs/demo

test: .venv/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-slow: .venv/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
