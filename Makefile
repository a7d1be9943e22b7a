# Every target sets up what it needs by itself; see README.md.
.DEFAULT_GOAL := help
.PHONY: help setup ready demo test check bench lock clean
PY := .venv/bin/python

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

setup: ## virtual environment, dependencies, sandbox binary, bus server
	@setup/setup.sh

ready:
	@setup/setup.sh -q

demo: ready ## one chain node, one broker, three providers, two requesters; ARGS="--json" or "--keep"
	@.venv/bin/tally demo $(ARGS)

test: ready ## static checks, then every test but the long ones
	@rc=0; setup/static.sh || rc=1; $(PY) -m pytest -q -m "not check" || rc=1; exit $$rc

check: ready ## the long tests
	@$(PY) -m pytest -q -m check

bench: ready ## figures; ONLY=name for one, JSON=1 for one JSON object, RAY=1 to time Ray beside (installed apart)
	@$(if $(RAY),setup/ray.sh)
	@$(PY) -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(JSON),--json)

lock: ready ## renew the hashed lock in requirements/
	@$(PY) setup/lock.py

clean: ## remove everything that set-up, tests and builds have made
	@rm -rf .venv .venv-bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find chain broker provider requester tests setup -name __pycache__ -type d -prune -exec rm -rf {} +
