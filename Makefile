# Two commands need nothing before them but Python 3.11, git and make: `make run` and `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export DVC_NO_ANALYTICS := 1
# The stages are called by name from dvc.yaml.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test lint ui

run: $(VENV)/.installed
	dvc repro
	@eqreg summary

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: $(VENV)/.installed
	eqreg ui

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# pip's own configuration decides which build of torch is installed; see the README.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): some minutes the first time"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing the test tools"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
