# Each target makes and reuses .venv and installs what it needs. Only Python >= 3.11 and make
# have to be there; a GPU is used when torch finds one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
WORKERS ?= 2

export PYTHONUNBUFFERED := 1

.PHONY: help demo test test-full check lint types docs package bench clean

help:
	@echo "make demo       train DALNet on generated scenes, write runs/demo (about ten minutes on two cores)"
	@echo "make test       run the tests"
	@echo "make check      lint, types, docs with warnings as errors, wheel and sdist"
	@echo "make docs       build the documentation into docs/_build/html"
	@echo "make bench      measure the hot blocks against what else one would use"
	@echo "make test-full  the tests with many more random examples, slow ones included"

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'wsss-blocks needs Python 3.11 or newer'"
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras, renewed when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable ".[$*]"
	@touch $@

demo: $(VENV)/.installed-examples
	$(BIN)/python examples/demo.py --output runs/demo $(DEMO_ARGS)

test: $(VENV)/.installed-dev
	HYPOTHESIS_PROFILE=ci OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" --durations 20 $(PYTEST_ARGS)

test-full: $(VENV)/.installed-dev
	HYPOTHESIS_PROFILE=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 20 $(PYTEST_ARGS)

check: lint types docs package

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-dev $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 WSSS_OFFLINE_DOCS=$${WSSS_OFFLINE_DOCS-1} $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# The built wheel is imported in an environment of its own, which borrows the dependencies of .venv.
package: $(VENV)/.installed-dev
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-index dist/*.whl
	$(BIN)/python tools/borrow_site_packages.py $(VENV) .venv-wheel
	cd dist && ../.venv-wheel/bin/python ../tools/check_wheel.py

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.run_all --output benchmarks/results

clean:
	rm -rf .venv .venv-wheel dist build docs/_build docs/gallery docs/api/generated
