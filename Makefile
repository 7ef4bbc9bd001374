# Every target works on a machine that has nothing but Python: it makes its own .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo demo-controls fuzz test test-slow test-all test-isa test-processes lint extras smoke
.DEFAULT_GOAL := test
.SECONDARY:

# pip belongs to the rule's name because a venv that could not be completed has none.
$(BIN)/pip:
	@"$(PYTHON)" -c 'import sys; found = sys.version_info[:2]; sys.exit(None if (3, 11) <= found <= (3, 14) \
	  else "Python %d.%d found, 3.11 to 3.14 expected: make PYTHON=python3.12 ..." % found)'
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# A stamp per set of extras: pip runs again only when the requirements change.
$(VENV)/%.stamp: requirements.txt requirements-dev.txt pyproject.toml | $(BIN)/pip
	@echo "installing into $(VENV): some minutes, most of them downloads"
	$(BIN)/python -m pip install --quiet -r requirements.txt -c requirements-dev.txt -e '.[$*]'
	@touch $@

demo: $(VENV)/demo.stamp
	JAX_PLATFORMS=cpu $(BIN)/python -m launch.demo --workdir=runs/demo

# Goes on in the same folder with the models to compare with, and completes the report.
demo-controls: $(VENV)/demo.stamp
	JAX_PLATFORMS=cpu $(BIN)/python -m launch.demo --workdir=runs/demo --controls

test: $(VENV)/dev.stamp
	$(PYTEST) -m 'not slow'

test-slow: $(VENV)/dev.stamp
	$(PYTEST) -m slow

test-all: $(VENV)/dev.stamp
	$(PYTEST)

# What the tests can use beyond `dev`, so that none is skipped. Only RandAugment is compared with
# timm, which by its dependencies would bring torchvision. `dev` is a part of it.
extras: $(VENV)/extras.stamp
	$(BIN)/python -m pip install --quiet --no-deps timm==1.0.31
	tests/install_programs.sh
	@touch $(VENV)/dev.stamp

# Damaged, foreign and hostile files of every kind; what fails is kept in fuzz_failures/.
FUZZ_INPUTS ?= 12000
FUZZ_SEED ?= 0
fuzz: $(VENV)/dev.stamp
	JAX_PLATFORMS=cpu $(BIN)/python -W ignore -m tests.fuzz --inputs=$(FUZZ_INPUTS) --seed=$(FUZZ_SEED)

# The numeric tests with the instructions that every x86-64 processor has: sums in another order.
test-isa: $(VENV)/dev.stamp
	GROUPVIT_TEST_XLA_FLAGS=--xla_cpu_max_isa=SSE4_2 $(PYTEST) -m 'not slow' \
	  tests/losses tests/models tests/interop

# The tests of several processes, which depend on timing, again and again; each round says how near
# comparisons came to their bounds. With `make -j3` side by side.
ROUNDS ?= 20
test-processes: test-processes-SSE4_2 test-processes-AVX2 test-processes-AVX512
test-processes-%: $(VENV)/dev.stamp
	for round in $$(seq $(ROUNDS)); do \
	  GROUPVIT_TEST_XLA_FLAGS=--xla_cpu_max_isa=$* $(BIN)/python -m pytest -p tests.margins -m slow \
	    tests/launch/test_processes.py tests/eval/test_segmentation_evaluator.py || exit 1; \
	done

# A short run under every other supported Python on this machine.
smoke: $(VENV)/demo.stamp
	tests/smoke.sh

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
