# Every target sets up .venv by itself; nothing else is needed than Python >= 3.11, git and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Byte code is kept, whatever the environment says: tests and benchmarks start hundreds of processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test torture lint bench bench-large docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)           ## snapshot, lose and restore the memory of 200 users on an embedded Postgres
	$(BIN)/coldstore demo

test: $(STAMP)           ## every test, on real Postgres, S3 and GCS servers that it starts itself
	$(BIN)/pytest -n 4 --dist worksteal

torture: $(STAMP)        ## half an hour of kills, faults, full disks and wrong bytes; see docs/RELIABILITY.md
	$(BIN)/python -m tests.torture

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/python docs/generate.py --check

docs: $(STAMP)           ## write the generated pages anew
	$(BIN)/python docs/generate.py

bench: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

bench-large: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks --large

clean:
	rm -rf $(VENV) coldstore-demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
