# Everything starts here; `make` lists it. Needs git, make and Python 3.11 to 3.14, nothing else.

PYTHON ?= python3
KILLS ?= 200
PLAYS ?= 5000
CONNECTIONS ?= 20
MINUTES ?= 30
SEED ?= 1
BIN := .venv/bin
STACK := atlas_dagster_tests/stack
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --universal --generate-hashes \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

.PHONY: help demo dev quick test test-rest try-python test-docker test-postgres test-browser dagster-versions lint format images docs texts bench \
	crash model soak lock audit sbom connectors clean

help: ## list what there is to make
	@sed -n 's/^\([a-z.-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15

demo dev: export DAGSTER_HOME := $(CURDIR)

demo: .venv ## run a real Airbyte connector into Delta tables under lake/
	$(BIN)/atlas discover --missing demo
	$(BIN)/atlas sync demo

dev: .venv ## start Dagster (web UI and daemon) on this code location
	-$(BIN)/atlas discover --missing
	exec $(BIN)/dagster dev -w workspace.yaml

QUICK_TESTS := not docker and not postgres and not browser and not pypi and not slow
# Folders without any of them.
NOT_QUICK := crash e2e model soak stack

# One file stays in one process, because fixtures of a module are shared. The limit counts CPU time,
# because other work on a machine would lengthen the rest.
IN_TWO := -n 2 --dist loadfile

quick: .venv ## run the tests that need no services and are not slow (ARGS="-k name" for some)
	@mkdir -p build; started=$$(date +%s); \
	$(BIN)/pytest -q $(IN_TWO) -m "$(QUICK_TESTS)" $(NOT_QUICK:%=--ignore atlas_dagster_tests/%) $(ARGS) || exit; \
	times >build/quick.times; \
	each=$$(awk 'END { split($$0, t, /[ms ]+/); print int((60 * (t[1] + t[3]) + t[2] + t[4]) / 2) }' build/quick.times); \
	echo "make quick took $$(($$(date +%s) - started)) s, with $$each CPU seconds on each of two cores."; \
	if [ $$each -gt $${QUICK_SECONDS:-$$each} ]; then \
		echo "That is over the limit of $$QUICK_SECONDS s: mark slow tests with pytest.mark.slow."; exit 1; \
	fi

# An environment of its own, so that the one of all other targets stays as it is.
OTHER := build/$(notdir $(PYTHON))
try-python: .venv ## run the quick tests with another Python (PYTHON=python3.13)
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(OTHER)
	$(BIN)/uv pip install --quiet --python $(OTHER)/bin/python --require-hashes -r requirements-dev.txt
	$(BIN)/uv pip install --quiet --python $(OTHER)/bin/python --no-deps --editable .
	$(OTHER)/bin/pytest -q $(IN_TWO) -p no:cacheprovider -m "$(QUICK_TESTS)" $(NOT_QUICK:%=--ignore atlas_dagster_tests/%) $(ARGS)

test-docker: .venv ## run the tests with containers (needs Docker and make images)
	ATLAS_REQUIRE=docker $(BIN)/pytest -m docker $(ARGS)

test-postgres: .venv ## run the tests with Postgres and without containers
	ATLAS_REQUIRE=postgres $(BIN)/pytest -m "postgres and not docker" $(ARGS)

test-browser: .venv ## run the tests with Chromium (needs Docker and make images)
	ATLAS_REQUIRE=browser,docker $(BIN)/pytest -m browser $(ARGS)

ifdef ARGS
test: .venv ## run all tests (ARGS="-k name" for some)
	$(BIN)/pytest $(ARGS)
else
test: quick test-rest
endif

# Tests with containers count what runs on the engine, so they run one by one. Beside them the others,
# and then the stack's, which mostly wait.
test-rest: .venv ## run the tests that make quick leaves out
	@mkdir -p build
	@($(BIN)/pytest $(IN_TWO) -m "(postgres or pypi or slow) and not docker and not browser" >build/tests.log 2>&1; code=$$?; \
	$(BIN)/pytest -p no:cacheprovider $(STACK) >>build/tests.log 2>&1 && exit $$code) & others=$$!; \
	$(BIN)/pytest -p no:cacheprovider -m "docker or browser" --ignore $(STACK); containers=$$?; \
	wait $$others; others=$$?; \
	echo "==== Those without containers, and the stack's:"; cat build/tests.log; \
	exit $$((others + containers))

# All but Dagster's packages stay as locked. The oldest are the lower bounds of pyproject.toml.
dagster-versions: .venv ## run the tests marked dagster with the oldest and the newest Dagster allowed
	@mkdir -p build
	@awk '/^[a-z]/ && !/^dagster/ { sub(/ *\\$$/, ""); print }' requirements-dev.txt >build/locked.txt
	@for versions in oldest newest; do \
		case $$versions in \
		oldest) pins=$$(sed -n 's/^    "\(dagster[a-z0-9-]*\)>=\([0-9.]*\),.*/\1==\2/p' pyproject.toml) ;; \
		newest) pins=$$(sed -n 's/^    "\(dagster[a-z0-9-]*\)>=.*/\1/p' pyproject.toml) ;; \
		esac; \
		$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/dagster-$$versions && \
		$(BIN)/uv pip install --quiet --upgrade --python build/dagster-$$versions/bin/python \
			-r build/locked.txt $$pins --editable . && \
		echo "==== Tests with $$(build/dagster-$$versions/bin/dagster --version)" && \
		build/dagster-$$versions/bin/python -m pytest -q -m "dagster and not docker and not browser and not postgres and not pypi" $(ARGS) || exit; \
	done

lint: .venv ## check format, lint, types and which room imports which
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv ## format the code and mend what ruff can
	$(BIN)/ruff check --fix --exit-zero
	$(BIN)/ruff format

images: .venv ## build the images for the tests (needs Docker, and root the first time)
	atlas_dagster_tests/connectors/build.sh

docs: .venv ## build the documentation into build/docs, every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/docs

texts: .venv ## write the file of all texts that users may see
	$(BIN)/python -m atlas_dagster_tests.texts

bench: .venv ## measure records per second, CPU and memory (ARGS="--only append" for some)
	$(BIN)/python benchmarks/run.py $(ARGS)

crash: .venv ## kill syncs anywhere (KILLS=200 SEED=1), compare tables with an undisturbed run
	$(BIN)/python -m atlas_dagster_tests.crash --count $(KILLS) --seed $(SEED) $(ARGS)

model: export ATLAS_MODEL_PLAYS = $(PLAYS)
model: export ATLAS_MODEL_SEED = $(SEED)
model: .venv ## play a source that changes at random against a model of its tables (PLAYS=5000 SEED=1)
	$(BIN)/pytest atlas_dagster_tests/model $(ARGS)

soak: .venv ## sync many connections every minute on the stack (CONNECTIONS=20 MINUTES=30), as root
	$(BIN)/python -m atlas_dagster_tests.soak --connections $(CONNECTIONS) --minutes $(MINUTES)

connectors: .venv ## run real connectors from PyPI, print all that Atlas says (ARGS="source-faker" for some)
	$(BIN)/python -m atlas_dagster_tests.survey $(ARGS)

lock: .venv ## write the requirements files from pyproject.toml (UPGRADE=1 for the newest)
	$(LOCK) --extra production --output-file requirements.txt
	$(LOCK) --extra production --group dev --output-file requirements-dev.txt

audit: .venv ## look up known vulnerabilities of all that is locked (asks PyPI)
	$(BIN)/pip-audit --strict --disable-pip --requirement requirements.txt --requirement requirements-dev.txt

# In an environment of its own: beside jsonschema, what it brings costs each import a CPU second.
sbom: .venv ## list what the image installs, as CycloneDX, into build/sbom.json
	@mkdir -p build
	$(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.json requirements.txt

clean: ## remove the environment and caches; lake/ and .dagster/ stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.PHONY: .venv
.venv: .venv/.stamp ## make the environment, exactly as locked

.venv/.stamp: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || \
		{ echo "Atlas needs Python 3.11 to 3.14; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	@awk '/^[^ #]/ { uv = /^uv==/ } uv && !/#/' requirements.txt > .venv/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements-dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@
