# `make` alone lists the targets. deploy/setup.sh installs what a target needs: once, and again only when
# pyproject.toml or constraints.txt changed. Another Python: make serve PYTHON=python3.13

RUN := @exec sh deploy/setup.sh run --
DEV := @exec sh deploy/setup.sh dev --

.DEFAULT_GOAL := help
.PHONY: help serve test check lint format bench docs board pictures audit setup lock clean distclean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

serve: ## serve on http://127.0.0.1:8000; MODEL=name-or-path PORT=9000 ARGS="--any --flag"
	$(RUN) .venv/bin/samovar serve $(if $(MODEL),--model "$(MODEL)") $(if $(PORT),--port "$(PORT)") $(ARGS)

test: ## install the tests' dependencies and run all tests; ARGS="-k words -x"
	@exec sh deploy/setup.sh test -- .venv/bin/python -m tests $(ARGS)

check: ## run ruff, mypy and the unit tests (about a minute)
	$(DEV) .venv/bin/python -m pytest -m unit -n 2

lint: ## run ruff and mypy alone (the tests include both)
	$(DEV) sh -c '.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy'

format: ## fix style and format
	$(DEV) sh -c '.venv/bin/ruff check --fix . && .venv/bin/ruff format .'

bench: ## compare Samovar with llama-server, or run the benchmark BENCH=name (everything: all); ARGS="--load chat" selects a part
	$(DEV) .venv/bin/python -m benchmarks.$(or $(BENCH),compare) $(ARGS)

pictures: ## regenerate the pictures in docs/: the page in Chromium, the board on a real Prometheus
	@exec sh deploy/setup.sh test -- sh -c '.venv/bin/python -m tests.support.pictures && .venv/bin/python -m tests.support.board_pictures'

docs: ## regenerate docs/configuration.md from the settings
	$(DEV) sh -c '.venv/bin/python -m gateway.config.documentation > docs/configuration.md'

board: ## regenerate Grafana's dashboards in grafana/dashboards/ from grafana/board.py
	$(DEV) .venv/bin/python -m grafana

audit: ## look up every version in constraints.txt in the OSV database
	$(DEV) sh deploy/audit.sh

setup: ## install everything for development
	@exec sh deploy/setup.sh dev

lock: ## update constraints.txt to the newest versions that pyproject.toml allows
	@exec sh deploy/setup.sh lock

clean: ## remove caches and build results
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## also remove the virtual environment, which the next run installs again
	@rm -rf .venv
