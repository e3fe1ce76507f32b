# Every target sets up what it needs: a virtual environment in .venv, installed once per change of what is declared.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.alignstar-ready
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test check unit lint mutants bench picture clean

demo: $(READY)
	$(VENV)/bin/alignstar demo

# Lint, types and the whole suite; the slow tests run the mutants, and the built wheel in fresh environments.
test: lint
	$(PYTHON) -m pytest -q

check: lint unit

unit: $(READY)
	$(PYTHON) -m pytest -q -m "not slow and not gpu"

lint: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/basedpyright

mutants: $(READY)
	$(PYTHON) scripts/mutants.py

bench: $(READY)
	$(VENV)/bin/alignstar bench tq

# The README's picture of the demo.
picture: $(READY)
	$(VENV)/bin/alignstar demo --svg docs/demo.svg

clean:
	rm -rf $(VENV) dist build

$(READY): pyproject.toml constraints.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[hf,train,dev]'
	touch $@
