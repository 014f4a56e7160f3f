# `make` lists what there is to do. Everything happens in .venv, which `make setup` fills from deploy/*.lock.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := .venv/bin
INSTALLED := .venv/installed
MEASURED := .venv/installed-peers
# Python may keep what it compiles: a job is many processes.
export PYTHONDONTWRITEBYTECODE :=
SOTU := examples/data/sotu
# Two processes of tests, each file whole in one of them: much of a test's time is waiting for processes to start.
TWO_AT_ONCE := --numprocesses=2 --dist=loadfile

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(INSTALLED) ## Make .venv with everything that is pinned
	@:

$(INSTALLED): deploy/install $(wildcard deploy/*.lock) pyproject.toml
	@echo "Installing the pinned packages into .venv (once, a minute or two) ..."
	@PYTHON="$(PYTHON)" deploy/install "$(CURDIR)/.venv" --dev
	@$(RUN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: train
train: setup $(SOTU)/corpus.json ## Train the quickstart model on real text and evaluate it
	$(RUN)/pkm train examples/quickstart.yaml --run runs/quickstart --overwrite

$(SOTU)/corpus.json: examples/data/sotu.parquet | $(INSTALLED)
	$(RUN)/pkm data prepare $< --vocab-size 4096 --out $(SOTU)

.PHONY: test
test: setup ## Run the tests that take seconds
	$(RUN)/pytest $(TWO_AT_ONCE) -m "not slow and not cluster and not compose"

.PHONY: test-slow
test-slow: setup ## Run the tests that take minutes
	$(RUN)/pytest $(TWO_AT_ONCE) -m slow

.PHONY: test-all
test-all: setup ## Run every test
	$(RUN)/pytest $(TWO_AT_ONCE) -m "not cluster and not compose"

.PHONY: cluster-test
cluster-test: setup ## Run a job on three hosts made of network namespaces, and kill one (root, iproute2, openssl)
	tests/cluster/with-namespaces $(RUN)/pytest -m cluster tests/cluster

.PHONY: compose-test
compose-test: setup ## Bring docker-compose.yml up for real, and kill a host under a job
	tests/deploy/with-engine $(RUN)/pytest -m compose tests/deploy

.PHONY: chaos
SEEDS ?= 10000
chaos: setup ## Simulate clients, shards, logs and networks under faults (SEEDS=10000)
	$(RUN)/python -m tests.simulation --seeds $(SEEDS)

.PHONY: chaos-kills
KILLS ?= 50
chaos-kills: setup ## Kill shards, trainers and drivers of a real job and compare bytes (KILLS=50)
	$(RUN)/python -m tests.chaos --kills $(KILLS)

.PHONY: kill-points
kill-points: setup ## Kill a shard at each of its writes, syncs and renames, and look at what is left
	$(RUN)/python -m tests.kill_points

.PHONY: fuzz
INPUTS ?= 1000000
fuzz: setup ## Feed every decoder inputs that nobody would send (INPUTS=1000000)
	$(RUN)/python -m tests.fuzz --inputs $(INPUTS)

.PHONY: bench
bench: $(MEASURED) ## Measure everything against its peers and write docs/performance.md
	$(RUN)/python -m benchmarks all
	$(RUN)/python -m benchmarks report

.PHONY: findings
findings: setup ## Train what the paper compared, and write docs/results.md (hours of one core; goes on where it was)
	$(RUN)/python -m findings run all
	$(RUN)/python -m findings report

$(MEASURED): $(INSTALLED)
	@PYTHON="$(PYTHON)" deploy/install "$(CURDIR)/.venv" --bench
	@touch $@

.PHONY: lint
lint: setup ## Check style and formatting
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

.PHONY: types
types: setup ## Check types
	$(RUN)/mypy
	$(RUN)/pyright

.PHONY: docs
docs: setup ## Build the documentation site in site/
	$(RUN)/zensical build --clean --strict

.PHONY: reference
reference: setup ## Write docs/reference/ from the code, and draw the figures of docs/method.md
	$(RUN)/python docs/generate.py
	$(RUN)/python docs/figures.py

.PHONY: protos
protos: setup ## Generate the modules of protos/*.proto
	$(RUN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. protos/*.proto

.PHONY: lock
lock: ## Derive deploy/*.lock from pyproject.toml (UPGRADE=--upgrade moves every pin)
	$(PYTHON) deploy/lock $(UPGRADE)
