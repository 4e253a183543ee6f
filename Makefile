# Everything a person or CI calls. `make` alone tells what there is.

PYTHON ?= python3
BIN := .venv/bin
CHART := deploy/helm/generate.py
PROTOS := bridge/containerd/protos/generate.py
# More for the program behind a target: make test ARGS="-k tracker", make run ARGS="--rounds 1"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test test-long bench lint testbed protos protos-check docs docs-check lock

help: ## tell what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/installed ## whalebridge, every sink and the test tools, editable, in .venv

run: setup ## real events of real containers on standard output (your containerd's, or a private one's)
	@$(BIN)/python -m examples.demo $(ARGS)

test: setup testbed ## every test, on real peers; those that repeat a fault do so a few times
	$(BIN)/pytest --numprocesses 2 --dist worksteal $(ARGS)

test-long: export WHALEBRIDGE_TEST_SCALE = full
test-long: test ## the same at the full count: hundreds of kills, brokers dead for minutes

test-kubernetes: setup testbed-kubernetes ## the image and the chart, on a real node
	$(BIN)/pytest tests/kubernetes $(ARGS)

image: VERSION = $(shell sed -n 's/__version__ = "\(.*\)"/\1/p' bridge/__init__.py)
image: setup ## the image whalebridge:VERSION, and build/whalebridge.cdx.json, its SBOM (needs Docker)
	docker build --file deploy/Dockerfile --tag whalebridge:$(VERSION) --build-arg VERSION=$(VERSION) \
	    --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) $(ARGS) .
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements deploy/requirements-runtime.lock --pyproject pyproject.toml \
	    --mc-type application --output-reproducible --output-file build/whalebridge.cdx.json

chart: setup ## what of the chart is made of values, settings, alerts and dashboard
	$(BIN)/python $(CHART)

.PHONY: test-kubernetes image chart

bench: setup testbed ## whalebridge and `ctr events | kcat -P` side by side: loss, time, CPU, latency, memory
	@$(BIN)/python -m tests.bench $(ARGS)

.PHONY: newcomer
newcomer: setup ## how long the first event takes on a Debian with nothing, also through NATS and Kafka
	@$(BIN)/python -m tests.bench.newcomer

lint: setup protos-check docs-check ## formatting, types, the one way of imports, generated code and docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python $(CHART) --check

testbed: ## what the tests need: containerd 1.6 and 2.4, nerdctl, Docker, ... in a cache outside the checkout
	@$(PYTHON) -m tests.testbed install

.PHONY: testbed-kubernetes
testbed-kubernetes: testbed ## what the tests of image and chart need besides: Helm and a real Kubernetes node (minutes to build)
	@$(PYTHON) -m tests.testbed install python-image helm kubernetes

protos: setup ## the Python code of our .proto files
	$(BIN)/python $(PROTOS)

protos-check: setup
	$(BIN)/python $(PROTOS) --check

docs: setup ## the list of settings in docs/configuration.md
	$(BIN)/python -m config.reference docs/configuration.md

docs-check: setup
	$(BIN)/python -m config.reference docs/configuration.md --check

lock: setup ## requirements.lock from pyproject.toml
	$(BIN)/pip-compile --quiet --allow-unsafe --all-extras --generate-hashes --strip-extras --no-emit-index-url \
	    --no-emit-trusted-host --no-emit-find-links --output-file=requirements.lock pyproject.toml
	@# The image's own: what runs, and what builds it, at the same versions.
	$(BIN)/pip-compile --quiet --allow-unsafe --extra kafka --extra nats --generate-hashes --strip-extras \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --constraint requirements.lock \
	    --output-file=deploy/requirements-runtime.lock pyproject.toml
	$(BIN)/pip-compile --quiet --allow-unsafe --generate-hashes --strip-extras \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --constraint requirements.lock \
	    --output-file=deploy/requirements-build.lock deploy/requirements-build.in

# Its messages go to stderr: `make run` has nothing but events on standard output.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed: install it, or name another one: make setup PYTHON=python3.12"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -q && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3-venv || { \
	    echo "$(PYTHON) cannot make virtual environments: sudo apt-get install python3-venv"; exit 1; } } >&2
	@echo "setup: installing whalebridge and its tools into .venv ..." >&2
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv >&2
	@# The lock names everything; a resolver would only refuse it (coverage[toml]) once something newer is out.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock >&2
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . >&2
	@$(BIN)/pip check --quiet --disable-pip-version-check >&2
	@touch $@
