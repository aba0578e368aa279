# Targets work on a machine that has only Python 3.11+ and make. Everything is installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint typecheck docs bench endurance replications clean

demo: $(VENV)/.installed
	$(BIN)/snellen audit demo demo --preset quick --out runs/demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check src tests replications benchmarks examples docs
	$(BIN)/ruff format --check src tests replications benchmarks examples docs
	$(BIN)/lint-imports

typecheck: $(VENV)/.installed-lint
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.installed-peers
	for file in benchmarks/[a-df-z]*.py benchmarks/engine.py; do $(BIN)/python $$file || exit 1; done

endurance: $(VENV)/.installed-test
	$(BIN)/python benchmarks/endurance.py

replications: $(VENV)/.installed
	$(BIN)/snellen replicate --record replications/results.json

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(INSTALL) --editable ".[$*]"
	case $* in test|peers) $(INSTALL) --no-deps torchattacks;; esac  # it pins an old requests that breaks others
	touch $@

clean:
	rm -rf $(VENV) runs site
