# Two commands for a new machine: `make train` and `make test`. Both set up first and use again what is there.

PYTHON ?= python3.11
ENVIRONMENT := .venv
FLAMINGO := $(ENVIRONMENT)/bin/flamingo
PIP := $(ENVIRONMENT)/bin/python -m pip install --quiet

.PHONY: train test clean

train: $(ENVIRONMENT)/.ready
	$(FLAMINGO) quickstart

test: $(ENVIRONMENT)/.ready-to-test
	$(FLAMINGO) quickstart --prepare-only
	$(ENVIRONMENT)/bin/ruff check .
	$(ENVIRONMENT)/bin/ruff format --check .
	$(ENVIRONMENT)/bin/python -m pytest

# Markers are written last: an installation that was interrupted is done again.
$(ENVIRONMENT)/.ready: setup.py flamingo_jax/__init__.py
	$(PYTHON) -m venv $(ENVIRONMENT)
	$(PIP) --upgrade pip
	$(PIP) --editable '.[quickstart]'
	touch $@

# Torch first and by version: the newest build would bring several gigabytes of CUDA.
$(ENVIRONMENT)/.ready-to-test: $(ENVIRONMENT)/.ready
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[peers,dev]'
	touch $@

clean:
	rm -rf $(ENVIRONMENT) data runs
