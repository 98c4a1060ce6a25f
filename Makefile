# `make run`: text -> a trained GPT -> generated text. `make test`: lint and the whole test suite. Both build .venv first.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: run test test-all test-environments test-versions lowering install clean

run: install
	@$(PY) train.py

test: install-dev
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(PY) -m pytest -n auto --dist loadfile

# Also the exhaustive ones, which make test leaves out: a quarter of an hour on two cores.
test-all: install-dev
	@LATHE_EXHAUSTIVE=1 $(PY) -m pytest -n auto --dist loadfile

# The quick tests under what users may have in their environment: an hour on two cores.
test-environments: install-dev
	@$(PY) tests/environments.py

# The suite under every torch and Python that requirements.txt claims, before a release: some hours.
test-versions: install-dev
	@$(PY) tests/versions.py

# What the compiler makes for an H100, counted without one; triton, 700 MB, lies beside .venv for that.
lowering: install-dev
	@$(PY) -m pip install --quiet --no-deps --upgrade --target .triton -r requirements-lower.txt
	@$(PY) -m pytest -rs tests/cuda/test_lowered.py

install: $(VENV)/.installed

.PHONY: install-dev
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.txt
	@$(PYTHON) scripts/install.py $(VENV) requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@$(PYTHON) scripts/install.py $(VENV) requirements.txt requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) .versions .triton .pytest_cache .ruff_cache .hypothesis
