# Targets: up, test, test-fast, interop, evaluation, wheel, lowest, containers, kernels, check, docs, format, bench,
# train, eval, lock, sbom, audit, clean. Each target installs its dependencies first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check
TORCH  := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# The versions in constraints.txt require Python 3.11. constraints-lowest.txt supports all versions of Python, but does
# not contain the packages for development.
USED_CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("constraints-lowest.txt" if sys.version_info < (3, 11) else "constraints.txt")')
# Without an NVIDIA GPU, the CPU build of torch saves a download of several gigabytes.
CPU_INDEX := https://download.pytorch.org/whl/cpu
# Tools with dependencies that the project does not need. They require Python 3.11 or newer.
SUPPLY_CHAIN := $(VENV)/supply-chain
# The lowest versions of dependencies, and the packages that the tests with these versions import.
LOWEST := $(VENV)/lowest
LOWEST_TOOLS := anthropic hypothesis jsonschema jsonschema-rs langchain-openai mypy ollama openai psutil pytest \
  pytest-cov pytest-timeout pytest-xdist pyyaml
# The documentation site, built in an environment of its own, because the tests do not need these packages.
DOCS := $(VENV)/docs
DOCS_TOOLS := mkdocs-material mkdocstrings-python ruff
# The version of Triton that torch 2.11 for CUDA requires. The development environment has a later one.
GPU_TRITON := 3.6.0
HAS_GPU   := $(shell command -v nvidia-smi 2>/dev/null)

# If this variable is set, every program that a test starts compiles all of its modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: up test test-fast interop evaluation wheel lowest containers kernels check docs format bench train eval lock sbom audit clean
.DEFAULT_GOAL := up

up: $(VENV)/.up
	@$(BIN)/llava-serve up $(ARGS)

# Many tests wait for processes and clocks, so three run in parallel on two cores. Each uses one compute thread,
# because multithreaded processes would compete for the same cores.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not e2e and not browser" $(ARGS)

# Tests the server with all third-party clients. Downloads about 800 MB of packages, most of them for benchmarks.
interop: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/interop --all-clients $(ARGS)

# Builds the wheel, installs it without a compiler in a new environment, tests the installation and prints the times.
wheel: $(VENV)/.dev
	$(BIN)/python -m pytest tests/wheel --wheel -o log_cli=true --log-cli-level=INFO $(ARGS)

# Runs lmms-eval with transformers' own model object, with a judge and with invalid datasets, and compares the results.
evaluation: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/client/cli/evaluation --evaluation $(ARGS)

# Builds the images, deploys docker-compose.yml with Podman, tests the deployment and prints a transcript.
containers: $(VENV)/.dev
	$(BIN)/python -m pytest tests/containers --containers -o log_cli=true --log-cli-level=INFO \
	  --log-cli-format='%(asctime)s %(message)s' --log-cli-date-format=%H:%M:%S $(ARGS)

# Tests the wheel with the lowest versions of dependencies that pyproject.toml allows, except those of torch and the test
# tools. The ignored tests require schemathesis, which needs a newer version of rich, or the newest versions of third-party clients.
LOWEST_IGNORED := openapi/test_api_cases.py openapi/test_response_shapes.py fields/test_request_fields.py \
  compatibility/test_vocabularies.py
lowest: $(LOWEST)/.done
	LLAVA_BUILD_KERNELS=none $(LOWEST)/bin/pip --disable-pip-version-check install -q --no-deps --force-reinstall .
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -W ignore::DeprecationWarning \
	  $(LOWEST_IGNORED:%=--ignore tests/server/api/%) \
	  tests/wire tests/client tests/server tests/worker/language tests/worker/engine/structured_output $(ARGS)

# Compiles all Triton kernels for all GPUs, with two versions of Triton, and writes the records to bench/results/gpu.
# Needs no GPU. Takes about 10 minutes; kernels that have not changed are in Triton's cache.
kernels: $(VENV)/.dev $(VENV)/triton-$(GPU_TRITON)/.done
	$(BIN)/python -m bench.gpu.aot
	PYTHONPATH=$(VENV)/triton-$(GPU_TRITON) $(BIN)/python -m bench.gpu.aot

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/proselint check --config .proselint.json --output-format compact *.md docs bench/README.md examples worker

# Builds the documentation site in dist/site, and tests it. Warnings are errors, unless mkdocs runs with --quiet.
docs: $(VENV)/.dev $(DOCS)/.done
	NO_MKDOCS_2_WARNING=1 PATH=$(DOCS)/bin:$$PATH mkdocs build --strict
	$(BIN)/python -m pytest tests/site --site $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(ARGS)

train: $(VENV)/.dev
	$(BIN)/python tools/train_tiny.py --out worker/llava_worker/tiny $(ARGS)

eval: $(VENV)/.dev
	$(BIN)/python tools/eval_tiny.py $(ARGS)

# Update deploy/requirements and constraints-lowest.txt after a change of pyproject.toml or constraints.txt.
lock: $(SUPPLY_CHAIN)/.done
	$(SUPPLY_CHAIN)/bin/python tools/lock_requirements.py $(ARGS)

# Write a software bill of materials (CycloneDX) for the Python packages of each image to dist.
sbom: $(SUPPLY_CHAIN)/.done
	mkdir -p dist
	cd deploy/requirements && for image in server.txt "worker.txt torch-cpu.txt" worker-cuda.txt; do \
	  cat $$image | ../../$(SUPPLY_CHAIN)/bin/python -W ignore -m cyclonedx_py requirements - \
	    --pyproject ../../pyproject.toml --mc-type application --output-reproducible --output-file ../../dist/sbom-$${image%%.*}.json || exit 1; \
	done

# Look up known vulnerabilities of the locked packages.
audit: $(SUPPLY_CHAIN)/.done
	$(SUPPLY_CHAIN)/bin/python tools/audit.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage dist build bench/work

$(VENV)/.torch: constraints.txt
	@echo "creating $(VENV) (once; takes about a minute)"
	@$(PYTHON) -c 'import sys; sys.exit("llava-serve requires Python 3.10 or newer, but this is " + sys.version.split()[0] + ". Run: make PYTHON=python3.12 up") if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
ifeq ($(HAS_GPU),)
	@$(PIP) install $(TORCH)+cpu --extra-index-url $(CPU_INDEX) --retries 1 -c $(USED_CONSTRAINTS) 2>/dev/null || $(PIP) install $(TORCH) -c $(USED_CONSTRAINTS)
else
	@$(PIP) install $(TORCH) -c $(USED_CONSTRAINTS)
endif
	@touch $@

$(VENV)/.up: $(VENV)/.torch pyproject.toml
	@$(PIP) install -c $(USED_CONSTRAINTS) -e '.[all]'
	@touch $@

# LiteLLM is installed without its dependencies, because boto3's botocore requires an older python-dateutil than this
# project. The dev extra contains the dependencies that LiteLLM imports when it calls llava-serve.
$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	$(PIP) install -q -c constraints.txt --no-deps litellm
	@touch $@ $(VENV)/.up

$(VENV)/triton-$(GPU_TRITON)/.done: $(VENV)/.dev
	$(PIP) install -q --no-deps --target $(VENV)/triton-$(GPU_TRITON) triton==$(GPU_TRITON)
	@touch $@

$(DOCS)/.done: constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip --disable-pip-version-check install -q -c constraints.txt $(DOCS_TOOLS)
	@touch $@

$(LOWEST)/.done: pyproject.toml constraints.txt constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install -q $(TORCH)+cpu --extra-index-url $(CPU_INDEX) --retries 1 2>/dev/null || $(LOWEST)/bin/pip install -q $(TORCH)
	LLAVA_BUILD_KERNELS=none $(LOWEST)/bin/pip install -q -c constraints-lowest.txt '.[all,otel]' $(LOWEST_TOOLS)
	@touch $@

$(SUPPLY_CHAIN)/.done: deploy/requirements/supply-chain.txt
	$(PYTHON) -m venv $(SUPPLY_CHAIN)
	$(SUPPLY_CHAIN)/bin/pip --disable-pip-version-check install -q --require-hashes -r deploy/requirements/supply-chain.txt
	@touch $@
