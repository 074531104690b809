# Everything that a fresh Debian or Ubuntu machine needs is installed on the way: system packages as
# root where they are missing, Python packages in .venv.

PYTHON ?= python3
MINUTES ?= 10
BIN := .venv/bin
ROOT := $(filter 0,$(shell id -u))

# python-iptables comes as source only. Where PYTHON is the system's, Debian's package of it is used, which
# needs no compiler. Another Python cannot load that one; it has headers of its own.
OTHER_PYTHON := $(filter-out /usr/bin/% /bin/%,$(shell command -v $(PYTHON) 2>/dev/null))
VENV_PACKAGES := $(if $(OTHER_PYTHON),gcc libc6-dev,python3-venv python3-iptables)
VENV_OPTIONS := $(if $(OTHER_PYTHON),,--system-site-packages)

# What tests, bench and soak run in their network namespaces, which only root can make; some tests compile a
# few lines of C.
KERNEL_PACKAGES := $(if $(ROOT),iptables nftables iproute2 ipset gcc libc6-dev)

# Without root the tests that need the kernel are skipped, and coverage would miss what they cover.
COVERAGE := $(if $(ROOT),--cov)

define install
@missing=; for package in $(1); do \
  dpkg-query --show --showformat='$${db:Status-Status}' $$package 2>&1 | grep -qx installed || missing="$$missing $$package"; \
done; \
if [ -z "$$missing" ] || ! command -v apt-get >/dev/null; then exit 0; fi; \
if [ "$$(id -u)" != 0 ]; then echo "Missing packages; as root: apt-get install$$missing" >&2; exit 1; fi; \
echo "Installing$$missing"; \
apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null
endef

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench soak iptables kernel-packages clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: iptables .venv/installed ## See netsweep at work in a network namespace that is thrown away
	@$(BIN)/netsweep demo

test: kernel-packages lint ## Lint, check types and run all tests; those that need the kernel need root
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(COVERAGE)

lint: .venv/installed-dev ## Check style, types, workflows, and that imports keep to the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/zizmor --offline --quiet --strict-collection --pedantic .github

bench: kernel-packages .venv/installed-dev ## Measure netsweep against what it replaces, as root, in twenty minutes
	@$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m tests.benchmarks.bench --into docs

soak: kernel-packages .venv/installed-dev ## Sweep beside writers, kills and jobs for MINUTES=10, as root
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

.venv/installed: pyproject.toml
	$(call install,$(VENV_PACKAGES))
	@echo "Installing netsweep in .venv"
	@$(PYTHON) -m venv $(VENV_OPTIONS) .venv
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "Installing what lint and tests need"
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'  # the first that knows --group
	@$(BIN)/python -m pip install --quiet --group dev
	@touch $@

iptables:
	$(call install,iptables)

kernel-packages:
	$(call install,$(KERNEL_PACKAGES))

clean: ## Remove what the other targets made
	rm -rf .venv .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .coverage .coverage.* dist
