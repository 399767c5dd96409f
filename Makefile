# What a new user types: `make test`. Everything is installed into .venv, once, and again only when something changed.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup test lint format lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(STAMP) ## create .venv and install

$(STAMP): pyproject.toml constraints.txt deploy/setup.sh
	@PYTHON=$(PYTHON) bash deploy/setup.sh $(VENV)
	@touch $@

test: setup ## install what the tests need and run them all
	@$(VENV)/bin/python -m pytest

lint: setup ## ruff and mypy alone
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

format: setup ## format the code
	@$(VENV)/bin/ruff format .

lock: setup ## renew constraints.txt from what is installed
	@{ head -n 1 constraints.txt; $(VENV)/bin/pip freeze --exclude-editable | grep -v '@' | sort -f; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## remove what was installed
	@rm -rf $(VENV)
