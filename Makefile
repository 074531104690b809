# Everything that a fresh Debian or Ubuntu machine needs is installed on the way: system packages as
# root where they are missing, Python packages in .venv. The demo needs neither root nor a compiler.

PYTHON ?= python3
MINUTES ?= 10
PREFIX ?= /opt/netsweep
LINKS ?= /usr/local
BIN := .venv/bin
ROOT := $(filter 0,$(shell id -u))

# python-iptables comes as source only. Where PYTHON is the system's, Debian's package of it is used, which
# needs no compiler. Another Python cannot load that one; it has headers of its own.
OTHER_PYTHON := $(filter-out /usr/bin/% /bin/%,$(shell command -v $(PYTHON) 2>/dev/null))
VENV_PACKAGES := $(if $(OTHER_PYTHON),,python3-venv)
BINDINGS_PACKAGES := $(if $(OTHER_PYTHON),gcc libc6-dev,python3-iptables)
VENV_OPTIONS := $(if $(OTHER_PYTHON),,--system-site-packages)

# What tests, bench and soak run in their network namespaces, which only root can make; some tests compile a
# few lines of C. And what completion and the manual page are for.
KERNEL_PACKAGES := $(if $(ROOT),iptables nftables iproute2 ipset gcc libc6-dev sudo systemd fish zsh mandoc)

# Without root the tests that need the kernel are skipped, and coverage would miss what they cover.
COVERAGE := $(if $(ROOT),--cov)

# The requirements of the package, one in a line.
DEPENDENCIES := sed -n '/^dependencies = /,/^]/s/^ *"\(.*\)".*/\1/p' pyproject.toml

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
.PHONY: help demo test lint bench man pictures soak iptables kernel-packages clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: iptables .venv/installed ## See netsweep at work in a temporary network namespace
	@$(BIN)/netsweep demo

# PREFIX is a directory of netsweep's own. A link to its command is where sudo looks, and one to its man page where man does.
.PHONY: install
install: iptables ## Install netsweep in PREFIX=/opt/netsweep, with links in LINKS=/usr/local
	$(call install,$(VENV_PACKAGES))
	@if [ -e '$(PREFIX)' ] && [ ! -e '$(PREFIX)/pyvenv.cfg' ]; then \
	  echo '$(PREFIX) is not a directory of netsweep; choose another PREFIX' >&2; exit 1; fi
	@echo 'Installing netsweep in $(PREFIX)'
	@$(PYTHON) -m venv $(VENV_OPTIONS) '$(PREFIX)'
	@'$(PREFIX)/bin/python' -m pip --disable-pip-version-check install --quiet --upgrade .
	@mkdir -p '$(LINKS)/sbin' && ln -sf '$(PREFIX)/bin/netsweep' '$(LINKS)/sbin/'
	@for page in '$(PREFIX)'/share/man/*/netsweep*; do [ ! -e "$$page" ] || { \
	  section="$$(basename "$$(dirname "$$page")")"; \
	  mkdir -p "$(LINKS)/share/man/$$section" && ln -sf "$$page" "$(LINKS)/share/man/$$section/"; }; done
	@'$(LINKS)/sbin/netsweep' --version

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
	$(BIN)/python -m tests.benchmarks.leak --into docs

pictures: kernel-packages .venv/installed-dev ## Make the picture in the README from real output, as root
	$(BIN)/python -m tests.pictures

man: .venv/installed-dev ## Write the manual page, docs/netsweep.1, anew
	$(BIN)/python -m tests.manpage

soak: kernel-packages .venv/installed-dev ## Sweep beside writers, kills and jobs for MINUTES=10, as root
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

# Without root, python-iptables is left out where it can neither be found nor be built: nf_tables does not need it.
.venv/installed: pyproject.toml
	$(call install,$(VENV_PACKAGES) $(if $(ROOT),$(BINDINGS_PACKAGES)))
	@echo "Installing netsweep in .venv"
	@$(PYTHON) -m venv $(VENV_OPTIONS) .venv
ifneq ($(ROOT),)
	@$(BIN)/python -m pip install --quiet --editable .
else
	@$(BIN)/python -m pip install --quiet python-iptables >/dev/null 2>&1 || \
	  echo "Without python-iptables: it is not installed (Debian: python3-iptables), and could not be built"
	@$(DEPENDENCIES) | grep -v python-iptables | $(BIN)/python -m pip install --quiet --requirement /dev/stdin
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
endif
	@touch $@

.venv/installed-dev: .venv/installed
	$(call install,$(BINDINGS_PACKAGES))
	@$(BIN)/python -m pip install --quiet --editable .
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
