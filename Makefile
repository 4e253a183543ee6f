# All entry points for developers and CI. `make` alone lists them.

PYTHON ?= python3
BIN := .venv/bin
CHART := deploy/helm/generate.py
PROTOS := bridge/containerd/protos/generate.py
# Arguments for the program behind a target: make test ARGS="-k tracker", make run ARGS="--rounds 1"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test test-long fuzz bench lint testbed protos protos-check docs docs-check lock

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/installed ## install whalebridge, all sinks and the test tools into .venv (editable)

.PHONY: setup-runtime
setup-runtime: .venv/runtime ## install whalebridge and all sinks into .venv, without the test tools

run: setup-runtime ## publish events of the local containerd, or of a private one, to stdout (ARGS: --nats, --kafka)
	@$(BIN)/python -m examples.demo $(ARGS)

test: setup testbed ## run all tests, with real containerd, Kafka and NATS (repeated faults at a reduced count)
	$(BIN)/pytest --numprocesses 3 --dist worksteal $(ARGS)

.PHONY: simulate
SEEDS ?= 2000
simulate: setup ## run SEEDS random histories of a host with faults in virtual time, on all cores
	$(BIN)/python -m tests.simulator --seeds $(SEEDS) $(ARGS)

test-long: export WHALEBRIDGE_TEST_SCALE = full
test-long: test ## run all tests at the full count: hundreds of kills, brokers down for minutes

.PHONY: coverage
coverage: setup testbed ## run all tests, and list the lines and branches of the program that none of them reaches
	$(BIN)/pytest --numprocesses 3 --dist worksteal -p tests.coverage_of_processes \
	    --cov --cov-report=term-missing:skip-covered $(ARGS)

SECONDS ?= 600
fuzz: setup ## fuzz everything that parses bytes of other programs, on all cores for SECONDS=N (default: 600)
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

test-kubernetes: setup testbed-kubernetes ## test the image and the Helm chart on a real Kubernetes node
	$(BIN)/pytest tests/kubernetes $(ARGS)

VERSION = $(shell sed -n 's/__version__ = "\(.*\)"/\1/p' bridge/__init__.py)
IMAGE ?= whalebridge:$(VERSION)
image: ## build the image whalebridge:VERSION and its SBOM, build/whalebridge.cdx.json (needs Docker)
	docker build --file deploy/Dockerfile --tag $(IMAGE) --build-arg VERSION=$(VERSION) \
	    --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) \
	    --build-arg CREATED=$$(git show --no-patch --format=%cI HEAD 2>/dev/null || echo 1970-01-01T00:00:00Z) $(ARGS) .
	@$(MAKE) --no-print-directory image-sbom

.PHONY: image-sbom
image-sbom: setup
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements deploy/requirements-runtime.lock --pyproject pyproject.toml \
	    --mc-type application --output-reproducible --output-file build/whalebridge.cdx.json
	docker run --rm --network none --entrypoint python3.13 $(IMAGE) -ISc "import pathlib; \
	    print(*(f.read_text() for f in sorted(pathlib.Path('/var/lib/dpkg/status.d').iterdir())), sep='\n')" \
	    | $(BIN)/python deploy/sbom.py build/whalebridge.cdx.json

dist: setup ## build the files of a release in dist/: wheel, source, chart, SBOM, man page, completions, checksums
	@$(BIN)/python deploy/dist.py $(ARGS)

chart: setup ## regenerate the chart's schema, README and copied files
	$(BIN)/python $(CHART)

.PHONY: test-kubernetes image dist chart

bench: setup testbed ## measure CPU, latency, memory and start, also of `ctr events | kcat -P`
	@$(BIN)/python -m tests.bench $(ARGS)

.PHONY: bench-docs
bench-docs: .venv/bench testbed ## measure all five times (80 minutes), and write the results in docs/performance.md
	@$(BIN)/python -m tests.bench --rounds 5 --json build/bench.json --plot docs/performance.png --docs $(ARGS)

.PHONY: screenshots
screenshots: setup ## render the pictures of the documents, docs/images, from real output
	@$(BIN)/python -m tests.screenshots

.PHONY: newcomer
newcomer: setup ## measure the time to the first event on a minimal Debian, also through NATS and Kafka
	@$(BIN)/python -m tests.bench.first_run

lint: setup protos-check docs-check ## check format, types, imports, terminology, generated code and docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.terminology
	$(BIN)/python $(CHART) --check

testbed: ## install what the tests need (containerd 1.6 and 2.4, nerdctl, Docker, ...) into a cache outside the checkout
	@$(PYTHON) -m tests.testbed install

.PHONY: site
SITE := build/site-venv
site: $(SITE)/installed ## build the documentation as a web site in build/site, and check all of its links
	$(SITE)/bin/mkdocs build --quiet --strict --config-file deploy/site/mkdocs.yml

.PHONY: testbed-kubernetes
testbed-kubernetes: testbed ## install what test-kubernetes needs: Helm and a Kubernetes node (takes minutes to build)
	@$(PYTHON) -m tests.testbed install debian-13 helm kubernetes prometheus-operator-crds cilium-crds

protos: setup ## regenerate the Python code of the .proto files
	$(BIN)/python $(PROTOS)

protos-check: setup
	$(BIN)/python $(PROTOS) --check

docs: setup ## regenerate the settings reference in docs/configuration.md and the table of the state machine
	$(BIN)/python -m config.reference_docs docs/configuration.md
	$(BIN)/python -m tests.state_machine_table

docs-check: setup
	$(BIN)/python -m config.reference_docs docs/configuration.md --check
	$(BIN)/python -m tests.state_machine_table --check

lock: setup ## regenerate requirements.lock from pyproject.toml, and the lock files of image, site and bench
	$(BIN)/pip-compile --quiet --allow-unsafe --all-extras --generate-hashes --strip-extras --no-emit-index-url \
	    --no-emit-trusted-host --no-emit-find-links --output-file=requirements.lock pyproject.toml
	@# The image's lock files, for runtime and build, pin the same versions.
	$(BIN)/pip-compile --quiet --allow-unsafe --extra kafka --extra nats --generate-hashes --strip-extras \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --constraint requirements.lock \
	    --output-file=deploy/requirements-runtime.lock pyproject.toml
	$(BIN)/pip-compile --quiet --allow-unsafe --generate-hashes --strip-extras \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --constraint requirements.lock \
	    --output-file=deploy/requirements-build.lock deploy/requirements-build.in
	$(BIN)/pip-compile --quiet --allow-unsafe --generate-hashes --strip-extras \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	    --output-file=deploy/site/requirements.lock deploy/site/requirements.in
	$(BIN)/pip-compile --quiet --allow-unsafe --generate-hashes --strip-extras \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --constraint requirements.lock \
	    --output-file=tests/bench/requirements.lock tests/bench/requirements.in

# Messages go to standard error, because `make run` writes events to standard output.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is required; install it, or select one: make setup PYTHON=python3.12"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    test "$$(id -u)" = 0 && command -v apt-get >/dev/null && export DEBIAN_FRONTEND=noninteractive && \
	    { apt-get install -qy --no-install-recommends python3-venv || { \
	    apt-get update -q && apt-get install -qy --no-install-recommends python3-venv; }; } || { \
	    echo "$(PYTHON) cannot create virtual environments; run: sudo apt-get install python3-venv"; exit 1; } } >&2
	@$(PYTHON) -m venv --clear .venv >&2

# The lock files are complete. A resolver would reject requirements.lock (coverage[toml]) as soon as a newer version exists.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation

# requirements-build.lock comes first: it has the pip that installs the others, three times as fast as Debian 12's.
# Python compiles the modules that it imports; pip would compile all.
.venv/runtime: deploy/requirements-build.lock deploy/requirements-runtime.lock pyproject.toml | .venv/bin/pip
	@echo "setup: installing whalebridge into .venv ..." >&2
	@$(INSTALL) --no-compile --require-hashes -r deploy/requirements-build.lock >&2
	@$(INSTALL) --no-compile --require-hashes -r deploy/requirements-runtime.lock >&2
	@$(INSTALL) -e . >&2
	@touch $@

.venv/installed: .venv/runtime requirements.lock
	@echo "setup: installing the test tools into .venv ..." >&2
	@$(INSTALL) --require-hashes -r requirements.lock >&2
	@$(BIN)/pip check --quiet --disable-pip-version-check >&2
	@# Otherwise the first tests, which run concurrently, would all compile the packages of .venv/runtime.
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib >&2 || true # packages may contain invalid code for their tests
	@touch $@

.venv/bench: .venv/installed tests/bench/requirements.lock
	@$(INSTALL) --require-hashes -r tests/bench/requirements.lock
	@touch $@

# The tools of the site have an environment of their own.
$(SITE)/installed: .venv/runtime deploy/site/requirements.lock
	@$(PYTHON) -m venv --clear --without-pip $(SITE)
	@$(BIN)/pip --python $(SITE)/bin/python install --quiet --disable-pip-version-check --no-deps --require-hashes \
	    -r deploy/site/requirements.lock
	@touch $@
