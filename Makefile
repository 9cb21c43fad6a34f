# make demo | test | test-slow | test-cuda | test-lowest | test-faults | fuzz | audit | bench | check | docs | docs-photos | dist |
# generated | clean
# Each target sets up .venv by itself; PYTHON names the interpreter that the environment is made of.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
LOWEST := .venv-lowest
# A file's tests stay in one process, as they share what is dear to make; each process has one thread.
# Files are begun in the order of their names, and not those of few tests at last: some of these are long.
SUITE := -m pytest -m "not slow" --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Tests start some hundred processes. Where a shell keeps Python from writing bytecode, each would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow test-cuda test-lowest test-faults fuzz audit bench check mypy pyright docs docs-photos dist generated clean

demo: $(STAMP)
	$(BIN)/tutelage compare recipes/digits.yaml

test: $(STAMP) check
	OMP_NUM_THREADS=1 $(BIN)/python $(SUITE)
	if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then $(MAKE) test-cuda; fi

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# In a process of their own: the others are not to see the device.
test-cuda: $(STAMP)
	$(BIN)/python -m pytest -m cuda $$(grep -rl "mark\.cuda" tests --include="test_*.py")

# With the lowest versions that pyproject.toml admits; their wheels are of Python 3.11 and 3.12.
test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python $(SUITE)

# Faults injected into commands; the tally is a record of this machine.
test-faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --write benchmarks/results/faults.json

FUZZ_INPUTS ?= 100000
# Damaged and hostile inputs; `make fuzz FUZZ_INPUTS=5000` for fewer.
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --inputs $(FUZZ_INPUTS) --write benchmarks/results/fuzz.json

# Known vulnerabilities of what is installed; says so where the index of advisories does not answer.
audit: $(STAMP)
	$(BIN)/python tests/audit.py

bench: $(STAMP)
	$(BIN)/tutelage doctor --bench

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --jobs=2 mypy pyright

mypy pyright:
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/$@

# The site, in build/site; a warning is an error.
docs: $(STAMP)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --builder html docs build/site

# Its pages as pictures, in build/photographs; needs chromium.
docs-photos: docs
	$(BIN)/python docs/photographs.py build/site build/photographs

# A release's files, in dist: built without the network, and looked into.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/distribution.py dist

# What is written from the settings, the presets and the models' sources: signatures for recipes, what `tutelage list` shows,
# arguments of timm's optimizers, the tables of keys, the pages of objectives and of results, and the JSON Schema of recipes.
generated: $(STAMP)
	$(BIN)/python -c "from tutelage.objectives import registry; print(registry.signatures_json(), end='')" > objectives.json
	mv objectives.json src/tutelage/config/objectives.json
	$(BIN)/python -c "from tutelage.models import registry; print(registry.listing_json(), end='')" > models.json
	mv models.json src/tutelage/models/models.json
	$(BIN)/python -c "from tutelage.training import library_optimizers as t; print(t.listing_json(), end='')" > optimizers.json
	mv optimizers.json src/tutelage/settings/timm_optimizers.json
	$(BIN)/python -c "from tutelage.models import registry; print(registry.catalogue_json(), end='')" > catalogue.json
	mv catalogue.json src/tutelage/models/catalogue.json
	$(BIN)/python -m tutelage.studies.overview > objectives.md
	mv objectives.md docs/objectives.md
	$(BIN)/python docs/key_tables.py
	$(BIN)/python docs/choosing_tables.py
	$(BIN)/python -m docs.results_tables
	$(BIN)/python -m docs.recipe_schema

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; type make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all,dev]"
	touch $(STAMP)

$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	grep -oE '"[A-Za-z-]+>=[0-9.]+"' pyproject.toml | grep -v setuptools | tr -d '"' | sed 's/>=/==/' > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[all,dev]" --constraint $(LOWEST)/lowest.txt
	touch $@

clean:
	rm -rf .venv $(LOWEST) .mypy_cache .ruff_cache build dist
