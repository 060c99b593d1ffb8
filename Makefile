# make run: a gateway on http://127.0.0.1:8080.  make test: the whole test suite.  Both install what they need.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
QUIET := $(shell test -t 2 || echo --quiet)  # bars are for terminals
PIP := $(BIN)/python -m pip install $(QUIET) --disable-pip-version-check --constraint constraints.txt
PROTOCOL := --editable protocol
AGENT := --editable kernel-images/agent
SDK := --editable 'sdk[cli,jupyter]'
KUBE := --editable kube
OPERATOR := --editable operator

# Whatever an installation depends on; sources do not count, as all packages are editable.
DISTRIBUTIONS := setup.cfg pyproject.toml protocol/pyproject.toml kernel-images/agent/pyproject.toml sdk/pyproject.toml kube/pyproject.toml operator/pyproject.toml constraints.txt
SOURCES := llmsafespace_gateway protocol kernel-images/agent sdk kube operator tests benchmarks

.PHONY: help install install-dev run check unit test test-all test-cluster test-heavy bench images crds lint format docs constraints

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: $(VENV)/.installed ## a virtual environment in .venv with gateway, agent and SDK

install-dev: $(VENV)/.installed-dev ## the same with what tests, benchmarks and linters need

run: install ## start the gateway (ARGS="--port 9000 …")
	@exec $(BIN)/llmsafespace-gateway $(ARGS)

check: install-dev ## before each commit: lint and unit tests, side by side
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line lint unit

unit: install-dev ## unit tests alone, one process a core (some: ARGS="-k name …")
	@$(BIN)/python -m pytest tests/unit -q --numprocesses=auto $(ARGS)

test: install-dev ## all usual tests, as CI runs them; with KUBECONFIG set, on that cluster too. Some: ARGS="-k name …"
	@$(BIN)/python -m $(if $(ARGS),pytest $(ARGS),tests.groups)

test-all: install-dev ## tests by group, with a table at the end (GROUPS="heavy cluster …"; without: every group)
	@$(BIN)/python -m tests.groups $(or $(GROUPS),$$($(BIN)/python -m tests.groups --list | cut -d' ' -f1)) $(ARGS)

test-cluster: install-dev ## only what needs a cluster, which KUBECONFIG names
	@$(BIN)/python -m pytest tests/cluster $(ARGS)

test-heavy: install-dev ## the long forms of tests that make test runs briefly
	@$(BIN)/python -m pytest -m heavy $(ARGS)

bench: install-dev ## measure this gateway beside its peers (ARGS="--quick …")
	@$(BIN)/python -m benchmarks $(ARGS)

images: ## container images of gateway, operator, egress proxy and runtimes (ARGS="--help")
	@deploy/images/build $(ARGS)

crds: install-dev ## write the chart's CRDs and its values' schema from the types
	@$(BIN)/python -m llmsafespace_kube.resources
	@$(BIN)/python deploy/helm/schema.py

lint: install-dev ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=protocol:kernel-images/agent:sdk:kube:operator $(BIN)/mypy -p llmsafespace_protocol -p llmsafespace_gateway -p llmsafespace_agent -p llmsafespace -p llmsafespace_kube -p llmsafespace_operator -p benchmarks -p tests
	$(BIN)/lint-imports

format: install-dev ## bring all code into the one style, and write what is generated from it
	$(BIN)/python sdk/generate_sync.py
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install-dev ## write the generated references in docs/ from the types
	@$(BIN)/python docs/reference/generate.py

# With the oldest Python that is supported: some packages of newer ones do not install there.
constraints: install-dev ## write constraints.txt anew, from what is installed in .venv
	@$(BIN)/python -m pip --disable-pip-version-check freeze --exclude-editable --exclude pip --exclude setuptools \
		| grep -E '^[A-Za-z0-9._-]+==' > constraints.new
	@mv constraints.new constraints.txt

# A Python of version 3.11 or later, and on Debian and Ubuntu its venv package, which is not always there.
$(BIN)/python:
	@python=''; \
	for name in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
		if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo 'Python 3.11 or later is needed: install it, or name it with make PYTHON=/path/to/python' >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		package=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing $$package"; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$$package" >/dev/null; \
		else \
			echo "$$python cannot make virtual environments. On Debian and Ubuntu: sudo apt-get install $$package" >&2; \
			exit 1; \
		fi; \
	fi; \
	echo "making $(VENV) with $$("$$python" --version)"; \
	rm -rf $(VENV); \
	"$$python" -m venv $(VENV)

$(VENV)/.installed: $(DISTRIBUTIONS) | $(BIN)/python
	@echo 'installing gateway, agent and SDK'
	@$(PIP) $(PROTOCOL) $(AGENT) $(SDK) --editable .
	@touch $@
	@echo 'Installed. Next: make run starts a gateway; source $(VENV)/bin/activate puts llmsafespace and'
	@echo 'llmsafespace-gateway on your PATH; llmsafespace-gateway check says whether this machine can isolate sandboxes.'

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo 'installing what tests, benchmarks and linters need'
	@$(PIP) $(PROTOCOL) $(AGENT) $(SDK) $(KUBE) $(OPERATOR) --editable '.[kubernetes,postgres,dev,test,bench]'
	@touch $@
