# Everything the project does, in one place. `make demo` and `make test` need Python >= 3.11, git and make, nothing else.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
UV_VERSION := 0.13.8
# uv from the path if it is there, else one of our own under .tools.
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
RUN := $(UV) run --no-sync
NEWEST := .venv-newest

.PHONY: help
help: ## Show what can be made.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.tools/bin/uv:
	@echo "uv is not on the path: installing uv $(UV_VERSION) under .tools"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; say which with PYTHON=...") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv .tools
	@.tools/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.PHONY: setup
setup: $(if $(findstring .tools,$(UV)),.tools/bin/uv) ## Install everything that is needed, as locked.
	@$(UV) sync --quiet --locked --python $(PYTHON)

.PHONY: demo
demo: setup ## Run a small agent service and show what comes out (ARGS=--help for more).
	@$(RUN) jeeves-otel demo $(ARGS)

# DOCKER=1: the images of compose.yaml instead, which have the web pages, and Grafana.
.PHONY: stack
stack: $(if $(DOCKER),,setup) ## Run the demo behind a real Collector, Prometheus, Jaeger and Alertmanager, until Ctrl-C (ARGS=--help, DOCKER=1).
ifdef DOCKER
	docker compose up --build $(ARGS)
else
	@$(RUN) python -m jeeves_otel.demo.stack $(ARGS)
endif

.PHONY: traces
traces: setup ## Send 10,000 requests through the demo, and see whether every sampled trace is whole (about 3 min).
	@$(RUN) jeeves-otel demo --requests 10000 --sampled 0.1 $(ARGS)

.PHONY: kills
kills: setup ## Send 200 SIGTERMs to each of eight servers under load: nothing acknowledged is lost (about 90 min).
	JEEVES_KILLS=200 $(RUN) pytest --timeout 7200 -p no:randomly tests/integration/test_servers.py -k acknowledged $(ARGS)

.PHONY: recycles
recycles: setup ## Recycle 50 workers and kill 20 with -9, under load, of each of four servers: no page goes back (about 10 min).
	JEEVES_RECYCLES=50 JEEVES_KILL9=20 $(RUN) pytest --timeout 3600 -p no:randomly tests/integration/test_servers.py -k recycled $(ARGS)

.PHONY: forks
forks: setup ## Fork 200 times while eight threads record: no child hangs, none has its parent's counts (about 2 min).
	JEEVES_FORKS=200 $(RUN) pytest --timeout 1200 tests/integration/test_forks.py -k eight $(ARGS)

.PHONY: endpoints
endpoints: setup ## See what an application notices of OTLP endpoints that misbehave (about 20 min; ARGS=--help for more).
	@$(RUN) python -m tests.integration.endpoints $(ARGS)

.PHONY: outage
outage: setup collector ## See what the sidecar loses when backends fail in every way (about 20 min; ARGS=--help for more).
	@$(RUN) python -m tests.integration.outages $(ARGS)

.PHONY: fire-drill
fire-drill: setup ## Let what objectives are about fail, and time how long it takes until somebody is told (about 11 min).
	@$(RUN) python -m jeeves_otel.demo.drill $(ARGS)

.PHONY: mutants
mutants: setup prometheus ## Put every slip into the shipped rules, and see whether the generated tests notice (about 30 min; ARGS=--help for more).
	@$(RUN) python -m tests.integration.mutants $(ARGS)

.PHONY: previews
previews: setup collector prometheus alertmanager ## Draw every dashboard in an incident, with what Prometheus answers, into docs/images (about 1 min).
	@$(UV) run --locked --group previews python -m tests.integration.previews

.PHONY: test
test: check test-all test-newest ## Lint, types, layers, generated files, and all tests, on the locked and the newest SDK.

.PHONY: check
check: setup ## Lint, types, layer rules and generated files.
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) jeeves-otel check

.PHONY: test-all
test-all: setup ## All tests on the locked versions.
	$(RUN) pytest

.PHONY: test-fast
test-fast: setup ## Only the tests that start no processes.
	$(RUN) pytest -m "not integration and not slow"

# The contrib packages for SQLAlchemy and Starlette lag behind the SDK and would drag it back, so they stay out here, and
# with them the tests that need them. SQLAlchemy itself is 2.0 here and 2.1 in the lock file: both are supported.
$(NEWEST)/.stamp: pyproject.toml uv.lock | setup
	@$(UV) venv --quiet --clear --python $(PYTHON) $(NEWEST)
	@VIRTUAL_ENV=$(NEWEST) $(UV) pip install --quiet --upgrade -e '.[cli,demo,genai,grpc]' 'sqlalchemy[asyncio]<2.1' aiosqlite asyncpg 'psycopg[binary]' 'anthropic<3' websockets celery gunicorn uvicorn-worker opentelemetry-instrumentation-asgi opentelemetry-instrumentation-grpc hypothesis pytest pytest-randomly pytest-timeout
	@touch $@

.PHONY: test-newest
test-newest: $(NEWEST)/.stamp ## Everything but demo, Collector, containers and twins of instrumentations, on the newest SDK, with SQLAlchemy 2.0.
	@$(NEWEST)/bin/python -c 'from importlib.metadata import version; print("newest opentelemetry-sdk:", version("opentelemetry-sdk"), "with sqlalchemy", version("sqlalchemy"))'
	$(NEWEST)/bin/python -m pytest -m "not slow" --ignore tests/unit/test_container.py --ignore tests/unit/test_kubernetes.py tests/unit tests/property tests/conformance tests/contract $(addprefix tests/integration/test_,asgi_seam.py context.py exit.py forks.py grpc.py grpc_wiring.py http.py launcher.py llm_clients.py llm_layers.py privacy.py servers.py shared_page_processes.py sqlalchemy.py termination.py)

.PHONY: grafana-types
grafana-types: ## Install Grafana's own types, with which tests compile the dashboards (needs npm).
	@npm ci --silent --no-audit --no-fund --prefix tests/grafana

.PHONY: render
render: setup ## Write everything that is generated from the registry.
	@$(RUN) jeeves-otel render

.PHONY: bench
bench: setup ## Time recording beside the stock SDK and prometheus_client, in one run (ARGS=--help for more).
	@$(RUN) python -m bench $(ARGS)

# Real parts, each built from Go modules into the user's cache, by version and modules.
.PHONY: collector jaeger prometheus alertmanager pint sloth
collector: ## Build the Collector, with the components that its configurations use.
	@collector/build.sh
jaeger: ## Build Jaeger v2.
	@collector/build.sh jaeger
prometheus: ## Build Prometheus 3 and promtool.
	@collector/build.sh prometheus
alertmanager: ## Build Alertmanager and amtool.
	@collector/build.sh alertmanager
pint: ## Build pint, which judges rules.
	@collector/build.sh pint
sloth: ## Build sloth, whose rules ours are compared with.
	@collector/build.sh sloth

.PHONY: fmt
fmt: setup ## Format the code and mend what can be mended.
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

.PHONY: clean
clean: ## Remove everything that was installed or cached here.
	rm -rf .venv $(NEWEST) .tools .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .bench dist build
