# make demo | test | test-slow | bench | check | generated
# Each target sets up .venv by itself; PYTHON names the interpreter that the environment is made of.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-slow bench check generated clean

demo: $(STAMP)
	$(BIN)/tutelage compare recipes/digits.yaml

# A file's tests stay in one process, as they share what is dear to make; each process has one thread.
test: $(STAMP) check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses logical --maxprocesses 4 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

bench: $(STAMP)
	$(BIN)/tutelage doctor --bench

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is written from the settings and the presets: their signatures for recipes, the tables of keys, and their page.
generated: $(STAMP)
	$(BIN)/python -c "from tutelage.objectives import registry; print(registry.signatures_json(), end='')" > objectives.json
	mv objectives.json src/tutelage/config/objectives.json
	$(BIN)/python -m tutelage.studies.overview > objectives.md
	mv objectives.md docs/objectives.md
	$(BIN)/python docs/key_tables.py

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; type make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all,dev]"
	touch $(STAMP)

clean:
	rm -rf .venv .mypy_cache .ruff_cache build
