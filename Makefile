# Two commands for a new machine: `make train` and `make test`. Both set up first and use again what is there.
# `make test COVER=--cov` also says which lines no test runs; before Python 3.12 that takes up to a third longer.

PYTHON ?= python3.11
ENVIRONMENT := .venv
FLAMINGO := $(ENVIRONMENT)/bin/flamingo
PIP := $(ENVIRONMENT)/bin/python -m pip install --quiet
BANDIT := $(ENVIRONMENT)/bin/bandit --quiet --recursive --configfile=pyproject.toml flamingo_jax launch data_pipelines configs

WHEEL := .wheel
CORE := $(patsubst %,tests/flamingo_jax/test_%.py,flamingo perceiver_resampler gated_cross_attention vit loop)

.PHONY: train test test-wheel security clean

train: $(ENVIRONMENT)/.ready
	$(FLAMINGO) quickstart

test: $(ENVIRONMENT)/.ready-to-test
	$(FLAMINGO) quickstart --prepare-only
	$(ENVIRONMENT)/bin/ruff check .
	$(ENVIRONMENT)/bin/ruff format --check .
	$(ENVIRONMENT)/bin/mypy
	$(BANDIT)
	$(ENVIRONMENT)/bin/python -m pytest --numprocesses=2 --dist=loadfile --max-worker-restart=0 $(COVER)

security: $(ENVIRONMENT)/.ready-to-test
	$(BANDIT)

# The wheel in an environment of its own, with what it asks for and no more; there, the tests of the core.
test-wheel: $(ENVIRONMENT)/.ready-to-test
	rm -rf $(WHEEL) && mkdir -p $(WHEEL)/tree
	$(ENVIRONMENT)/bin/python -m build --no-isolation --wheel --outdir=$(WHEEL) . > $(WHEEL)/build.log
	$(PYTHON) -m venv $(WHEEL)/environment
	$(WHEEL)/environment/bin/python -m pip install --quiet $(WHEEL)/*.whl pytest
	cp -r tests $(WHEEL)/tree
	cd $(WHEEL)/tree && ../environment/bin/flamingo --help > /dev/null
	cd $(WHEEL)/tree && ../environment/bin/python -m pytest -q $(CORE)
	rm -rf $(WHEEL) build

# Markers are written last: an installation that was interrupted is done again.
$(ENVIRONMENT)/.ready: setup.py flamingo_jax/__init__.py
	$(PYTHON) -m venv $(ENVIRONMENT)
	$(PIP) --upgrade pip
	$(PIP) --editable '.[quickstart]'
	touch $@

# Torch first and by version: the newest build would bring several gigabytes of CUDA.
# Other Flamingos come without what they ask for: they pin old libraries, and the tests run only their modules.
$(ENVIRONMENT)/.ready-to-test: $(ENVIRONMENT)/.ready
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[peers,dev]'
	$(PIP) --no-deps einops einops-exts open-flamingo==2.0.1 flamingo-pytorch==0.1.2 open-clip-torch==2.20.0 timm==1.0.20
	touch $@

clean:
	rm -rf $(ENVIRONMENT) $(WHEEL) data runs
