# Everything that a fresh Debian or Ubuntu machine needs is installed on the way: system packages as
# root where they are missing, Python packages in .venv.

PYTHON ?= python3
MINUTES ?= 10
BIN := .venv/bin

# gcc, libc6-dev and python3-dev build python-iptables, which comes as source only.
PACKAGES := iptables nftables iproute2 ipset gcc libc6-dev python3-dev python3-venv

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench soak packages clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: .venv/installed ## See netsweep at work in a network namespace that is thrown away
	@$(BIN)/netsweep demo

test: lint ## Lint, check types and run all tests; those that need the kernel need root
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed-dev ## Measure netsweep against what it replaces, as root, in five minutes
	$(BIN)/python -m tests.benchmarks.bench

soak: .venv/installed-dev ## Sweep beside writers, kills and jobs for MINUTES=10, as root
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

.venv/installed: pyproject.toml | packages
	@echo "Installing netsweep in .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "Installing what lint and tests need"
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'  # the first that knows --group
	@$(BIN)/python -m pip install --quiet --group dev
	@touch $@

packages:
	@missing=; for package in $(PACKAGES); do \
	  dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>&1 | grep -qx installed || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ] || ! command -v apt-get >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "Missing packages; as root: apt-get install$$missing" >&2; exit 1; fi; \
	echo "Installing$$missing"; \
	apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null

clean: ## Remove what the other targets made
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache dist
