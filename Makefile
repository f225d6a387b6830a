# Needed before: Python 3.11, 3.12 or 3.13, git and make. PYTHON=NAME says which Python; else the one that .venv has, or
# the first that runs of python3, python3.13, python3.12, python3.11.

VENV := .venv
BIN := $(VENV)/bin
# The stages of dvc.yaml run with the first Python of the PATH that eqreg is installed in.
IN_VENV := PATH="$$PWD/$(BIN):$$PATH"
export DVC_NO_ANALYTICS := 1

.NOTPARALLEL:
.PHONY: help run test test-fast lint docs ui always

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.installed ## the environment, then the six stages, then what came out; what is up to date is not run again
	$(IN_VENV) dvc repro
	@$(IN_VENV) eqreg summary
	@echo 'go on      . $(BIN)/activate, then dvc and eqreg are commands: dvc exp run -S train.steps=500, eqreg --help'

test: $(VENV)/.installed-test ## all tests but the slow ones; PYTEST_ARGS='-k NAME' picks some
	$(BIN)/python -m pytest -m "not slow" -n 2 $(PYTEST_ARGS)

test-fast: $(VENV)/.installed-test ## the unit tests
	$(BIN)/python -m pytest -m unit -n auto $(PYTEST_ARGS)

lint: $(VENV)/.installed-test ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed ## docs/reference, written from the code
	$(BIN)/python -m docs.generate

ui: $(VENV)/.installed ## MLflow on this machine
	$(IN_VENV) eqreg ui

# Run each time: the times of files do not tell whether .venv was moved, broken off or made by another Python.
$(VENV)/.installed: always
	@.ci/venv.sh run '$(PYTHON)'

$(VENV)/.installed-test: always
	@.ci/venv.sh test '$(PYTHON)'
