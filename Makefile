# Two commands do all the set-up on a machine with python3 >= 3.11 and make: `make demo` and
# `make test`. `make help` lists the others.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= results
STAMP := $(VENV)/.installed

.PHONY: help demo quickstart test slow check bench release-check figures notebooks docs clean

help: ## Print what there is to make.
	@echo "Two commands do all the set-up: make demo, make test. In all:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: ONLY=diagonal (tests of one folder), PYTHON=python3.13, VENV=.venv, OUT=results"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, but $(PYTHON) is {v[0]}.{v[1]}: try make PYTHON=python3.13")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: $(STAMP) ## Run the main study, print its claims and draw its picture (1 minute).
	$(BIN)/sgfbias run diagonal --out $(OUT)/diagonal --overwrite

# The package as a user gets it, without extras: the first notebook as a script, and a study.
WHEEL ?= .
quickstart: ## Install without extras into an environment of its own, and run a first example.
	$(PYTHON) -m venv $(VENV)-quickstart
	$(VENV)-quickstart/bin/python -m pip install --quiet $(WHEEL)
	cd notebooks && MPLBACKEND=agg ../$(VENV)-quickstart/bin/python 01_start.py
	$(VENV)-quickstart/bin/sgfbias run saddle-to-saddle --out $(OUT)/quickstart --overwrite

PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
TESTS := $(if $(ONLY),tests/$(ONLY) tests/house)

test: $(STAMP) ## Run all fast tests, or those of a folder and of the house: make test ONLY=diagonal.
	$(PYTEST) $(TESTS)

slow: $(VENV)/.docs ## Run the slow tests, studies from end to end; also with ONLY= or TESTS=.
	$(PYTEST) -m "slow and not release" $(TESTS)

check: $(STAMP) ## Run the static checks: ruff, mypy, import contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## Measure speed beside peers, and render the page of benchmarks.
	$(BIN)/sgfbias bench --out benchmarks/results
	$(BIN)/python benchmarks/render.py

release-check: $(VENV)/.docs ## Run the tests of many more cases, all studies at their default sizes and on 20 draws, and write their pages (hours).
	$(PYTEST) -m release
	$(BIN)/sgfbias reproduce --out $(OUT)/release --overwrite
	$(BIN)/python docs/studies.py $(OUT)/release
	$(BIN)/sgfbias robustness --out $(OUT)/robustness --overwrite
	$(BIN)/python docs/robustness.py $(OUT)/robustness

figures: $(STAMP) ## Draw README's picture again.
	$(BIN)/python notebooks/readme_example.py

docs: $(VENV)/.docs ## Build the site, which needs no network: open site/index.html.
	$(BIN)/python -m mkdocs build --strict

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

notebooks: $(STAMP) ## Execute the notebooks and write their outputs: make notebooks NOTEBOOKS="01 03".
	$(BIN)/python -m pip install --quiet -e '.[notebooks]'
	$(BIN)/python notebooks/build.py $(NOTEBOOKS)

clean: ## Remove environments, results, built pages and caches.
	rm -rf $(VENV) $(VENV)-quickstart $(OUT) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
