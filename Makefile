# Everything works from a fresh clone: each target first makes .venv, in seconds when nothing changed.
.DEFAULT_GOAL := help
.PHONY: help demo up down test test-services faults check bench clean format

ARGS ?=
# Where nothing may be compiled ahead, each of some ten processes compiles all that it imports, at each start.
unexport PYTHONDONTWRITEBYTECODE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## deploy, protect, exhaust, roll back and promote a real program (KEEP=1: leave it running)
	@scripts/environment base
	@.venv/bin/python scripts/demo.py $(ARGS)

up: ## the whole system on this machine, until Ctrl-C (PORTS=auto: on free ports)
	@scripts/environment base
	@exec .venv/bin/python manage.py up $(ARGS)

down: ## stop what runs in var/
	@scripts/environment base
	@.venv/bin/python manage.py down $(ARGS)

test: ## all suites on the embedded defaults
	@scripts/environment dev
	@.venv/bin/pytest -n auto --dist loadgroup -m "not services" $(ARGS)

test-services: ## the database suites and what needs real servers, on MariaDB, Redis and RabbitMQ
	@scripts/environment dev
	@scripts/test-services $(ARGS)

faults: ## hundreds of workflows under hundreds of faults, on SQLite and MariaDB (ARGS="--seed 7")
	@scripts/environment dev
	@scripts/environment mysql
	@for database in sqlite mariadb; do \
	  .venv/bin/python -m tests.faults --workflows 250 --faults 550 --database $$database $(ARGS) || exit 1; \
	done

check: ## format, lint, types, import laws, tenancy, migrations, deployment settings
	@scripts/environment dev
	@scripts/check

bench: ## all benchmarks, with their baselines
	@scripts/environment dev
	@.venv/bin/python -m benchmarks $(ARGS)

format: ## format, and mend what can be mended
	@scripts/environment dev
	@.venv/bin/ruff check --fix --quiet . ; .venv/bin/ruff format --quiet .

clean: ## stop what runs, and remove everything that was made here
	@if [ -x .venv/bin/python ]; then .venv/bin/python manage.py down; fi
	@rm -rf .venv .venv.lock var .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
