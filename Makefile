# Everything a user or CI runs; each target sets up what it needs.
.DEFAULT_GOAL := help
export UV_LINK_MODE := copy
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/embedfleet
UV := $(or $(shell command -v uv 2>/dev/null),$(CACHE)/uv/bin/uv)
PYTHON := .venv/bin/python

.PHONY: help demo test lint coverage chaos chaos-long chaos-bites model mutation bench bench-failures bench-bulk-load bench-peers containers manifests format schemas lock clean

help:  ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(CACHE)/uv/bin/uv:
	python3 -m venv $(CACHE)/uv
	$(CACHE)/uv/bin/pip install --quiet uv

.venv/installed: requirements.lock pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing .venv --python python3
	$(UV) pip sync --quiet --python $(PYTHON) --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation --editable .
	@touch $@

demo: .venv/installed  ## Run the main job on embedded Kafka, PostgreSQL and embeddings.
	.venv/bin/embedfleet demo

# A file's tests share servers, and run in one process.
test: .venv/installed lint  ## Check everything and run the tests, on all cores (4 at most).
	$(PYTHON) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: .venv/installed  ## Format check, ruff, mypy, import contracts.
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/installed  ## Format the code and sort its imports.
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

coverage: .venv/installed  ## Run the tests and show which lines they reach.
	$(PYTHON) -m coverage run -m pytest
	$(PYTHON) -m coverage report --skip-covered --sort=cover

chaos: .venv/installed  ## Hurt fleets of processes for minutes, and print what they bore.
	$(PYTHON) -m pytest -m chaos tests/chaos --ignore tests/chaos/test_planted.py

chaos-bites: .venv/installed  ## Plant bugs in a fleet, and see that the oracle names each.
	$(PYTHON) -m pytest -m chaos tests/chaos/test_planted.py

chaos-long: .venv/installed  ## The same for hours: 1,000 kills, faults of a minute, 20,000 seeds, a soak.
	EMBEDFLEET_TEST_SEEDS=20000 $(PYTHON) -m pytest tests/pipeline/test_simulation.py
	$(PYTHON) -m pytest -m long tests/chaos

model: .venv/installed  ## Check the model of the protocol with TLC; MODEL=--write keeps the results.
	$(PYTHON) -m tests.model.check $(MODEL)

mutation: .venv/installed  ## Change the core and see that its tests notice; M=offsets: one module.
	$(PYTHON) -m tests.mutation.run $(M)

bench: .venv/installed | $(UV)  ## Measure workers beside their peers; B="--only P7 --peers none": a part.
	UV=$(UV) $(PYTHON) -m tests.bench $(B)  # which installs the peers that it meets

bench-failures: .venv/installed  ## Measure what failures cost: storms of 429, errors, refused texts.
	$(PYTHON) -m tests.bench.failure_policy

bench-bulk-load: .venv/installed  ## Measure a load without an index against one under it.
	$(PYTHON) -m tests.bench.bulk_load

bench-peers: .venv/installed | $(UV)  ## Install whom the benchmark compares with, each apart.
	UV=$(UV) $(PYTHON) -m tests.bench.peers.registry

containers: .venv/installed  ## Build the images, bring compose up, hurt it; needs Docker and compose v2.
	$(PYTHON) -m tests.containers

manifests: .venv/installed  ## Try what users deploy with helm, kubectl, promtool, ..., as far as they are here.
	$(PYTHON) -m tests.manifests

schemas: .venv/installed  ## Write the generated JSON Schema, AsyncAPI and README tables anew.
	$(PYTHON) -m tests.support.generate

lock: | $(UV)  ## Resolve the dependencies anew.
	$(UV) pip compile --universal --all-extras --group dev --generate-hashes --no-emit-index-url --no-header --quiet pyproject.toml --output-file requirements.lock --upgrade
	for peer in naive faststream quix cocoindex; do \
	    $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	        --no-header --quiet tests/bench/peers/$$peer.in \
	        --output-file tests/bench/peers/$$peer.txt --upgrade || exit 1; done

clean:  ## Remove what the targets made here.
	rm -rf .venv build/peers .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
