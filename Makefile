# Every target makes .venv first when it is missing or stale. Another Python: make PYTHON=python3.12 venv
PYTHON ?= python3
MINUTES ?= 10
PYTEST_ARGS ?=

STAMP := .venv/.stamp

# The stamp is written last, so an install that was killed has none. It is believed only while .venv's own Python
# starts and finds nachim in this very tree: not when that Python was removed or upgraded, or the folder was moved.
PROBE := import importlib.util, os, sys; spec = importlib.util.find_spec("nachim"); \
	sys.exit(spec is None or not os.path.samefile(spec.origin, "src/nachim/__init__.py"))
DROP_FALSE_STAMP := $(shell .venv/bin/python -I -c '$(PROBE)' 2>/dev/null || rm -f $(STAMP))

.PHONY: help venv quickstart test lint bench soak
.DELETE_ON_ERROR:

help:  ## Say what can be made (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## Install nachim and what it needs into .venv

quickstart: $(STAMP)  ## Budget to verdict on this machine; MINUTES=10 is how long it may take
	.venv/bin/nachim quickstart --minutes $(MINUTES)

test: $(STAMP)  ## Run the tests, a file a core; PYTEST_ARGS='-k law -x' is handed on
	.venv/bin/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --durations=10 $(PYTEST_ARGS)

lint: $(STAMP)  ## Check style, format, and that imports point only downwards
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

bench: $(STAMP)  ## Time nachim beside its peers: every script in bench/
	@set -e; for script in $(filter-out bench/soak.py bench/server_soak.py bench/server_openapi.py,$(wildcard bench/[!_]*.py)); do \
		test -e "$$script" || { echo "bench/ holds no script"; continue; }; \
		echo "== $$script"; .venv/bin/python "$$script"; \
	done

soak: $(STAMP)  ## Throw 200 faults at short runs: none may be lost, each must be told, the bits must be the same
	.venv/bin/python bench/soak.py

# A finished .venv is brought up to date in place; anything else is made afresh. The stamp carries the time at which
# the install began: an edit made meanwhile counts as newer. _base_executable: with .venv activated, $(PYTHON) is
# the very thing to be cleared, so the Python that made it does the making.
$(STAMP): pyproject.toml constraints.txt
	@test -e $(STAMP) || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
			echo "nachim needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing);" \
				"name another: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }; \
		echo "making .venv: a few minutes, once"; \
		"$$($(PYTHON) -c 'import sys; print(sys._base_executable)')" -m venv --clear .venv; }
	@rm -f $(STAMP) && touch .venv/.begun
	.venv/bin/python -m pip install $(if $(CI),-qq) --no-input -c constraints.txt -e '.[dev]'
	.venv/bin/python -m compileall -q src
	@mv .venv/.begun $(STAMP)
