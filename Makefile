# Each target sets up what it needs; only Python 3.11 or newer has to be there.
#   make run ARGS="--seed 1"      hands flags on to `tinkering evolve`
#   make run PYTHON=python3.12    builds .venv with another Python

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

PY := $(VENV)/bin/python
# -qq: no progress and no warnings; errors are shown.
INSTALL := $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt
# What was installed is what these two files said when the stamp was made.
PINS := pyproject.toml constraints.txt
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help run test test-long coverage bench wheel-test examples clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(RUNTIME) ## Evolve a network on the embedded digits for two minutes; flags: ARGS="--seed 1"
	@$(PY) -m tinkering evolve $(ARGS)

# Two processes, with a thread each where a test asks for no more: most of a test is Python.
TWO := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup

test: $(DEV) ## Lint, check formats and types, run the tests but the long ones
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(TWO)

test-long: $(DEV) ## Kill runs and workers, change files by chance, endure: the tests that take longest
	$(PY) -m pytest -m long $(ARGS)

coverage: $(DEV) ## Run the tests and list the lines that they leave out
	$(TWO) --cov=tinkering --cov-report=term-missing:skip-covered

bench: $(RUNTIME) ## Measure speed and memory, into bench.json; flags: ARGS="--rows factored"
	@$(PY) -m benchmarks.bench $(ARGS)

wheel-test: $(DEV) ## Build the wheel, install it into an empty environment and use it there
	@set -e; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	echo "Building the wheel ..."; \
	$(PY) -m build --outdir "$$place/dist" . > "$$place/build.log" 2>&1 \
		|| { cat "$$place/build.log"; exit 1; }; \
	ls "$$place/dist"; \
	$(PY) -m venv "$$place/venv"; \
	echo "Installing it into an empty environment ..."; \
	"$$place/venv/bin/python" -m pip install -qq --disable-pip-version-check \
		-c constraints.txt "$$place"/dist/*.whl; \
	cp README.md "$$place"; \
	cd "$$place"; \
	venv/bin/tinkering evolve --generations 3 --population 16 --width 2 --out run; \
	venv/bin/tinkering evaluate run; \
	venv/bin/python -m doctest -o NORMALIZE_WHITESPACE -o ELLIPSIS README.md; \
	for absent in ray benchmarks; do \
		! venv/bin/python -c "import $$absent" 2> /dev/null \
			|| { echo "$$absent is here, and should not be."; exit 1; }; \
	done; \
	! venv/bin/tinkering evolve --workers 2 --out workers 2> said || exit 1; \
	grep -q "pip install 'tinkering\[ray\]' installs it" said || { cat said; exit 1; }; \
	echo "The wheel works, and without Ray."

examples: $(RUNTIME) ## Run the demonstration, and the examples in a short form
	$(PY) -m tinkering.models
	$(PY) examples/your_own.py --generations 30
	$(PY) examples/hard_steps.py --short
	$(PY) examples/optimise_a_metric.py --short
	$(PY) examples/ensemble.py --short
	$(PY) examples/population_forward.py

clean: ## Remove .venv, build products and caches; runs/ stays
	rm -rf $(VENV) build dist bench.json .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find tinkering tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(PY):
	@command -v $(PYTHON) > /dev/null || { \
		echo "There is no $(PYTHON). tinkering needs Python 3.11 or newer, with venv." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "tinkering needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
		"Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt install python3-venv" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(RUNTIME): $(PINS) | $(PY)
	@echo "Installing tinkering and PyTorch into $(VENV); the first time takes a while ..."
	@$(INSTALL) -e .
	@touch $@

$(DEV): $(PINS) | $(PY)
	@echo "Installing tinkering, PyTorch and the tools for tests into $(VENV) ..."
	@$(INSTALL) -e '.[dev]'
	@touch $(RUNTIME) $@
