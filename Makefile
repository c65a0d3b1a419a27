# `make demo` and `make test` work on a fresh clone: each first makes or updates .venv from pyproject.toml.
PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.complete
DEMO   := runs/demo

.PHONY: help setup demo test test-all lint clean-venv
help:
	@echo 'make demo      phantom patients -> GAN -> U-Nets -> Dice table in $(DEMO) (14 to 16 minutes on two busy cores)'
	@echo 'make test      the tests; make test-all also runs the slow ones'
	@echo 'make setup     only make or update $(VENV)'
	@echo 'make lint      ruff'

setup: $(STAMP)

# The stamp is written last, so an interrupted installation is taken up again by the next call.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo 'error: no $(PYTHON): install Python 3.10 or newer, or call make PYTHON=/path/to/python3'; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $$($(PYTHON) --version) is too old: 3.10 or newer is needed; call make PYTHON=/path/to/python3"; exit 2; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { echo '[set-up] creating $(VENV)'; $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'error: could not create $(VENV); on Debian and Ubuntu: apt-get install python3-venv'; exit 2; }; }
	@echo '[set-up] installing what pyproject.toml lists into $(VENV); PyTorch is large, so the first time takes a few minutes'
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	@touch $(STAMP)
	@echo '[set-up] done'

demo: $(STAMP)
	$(VENV)/bin/python reproduce.py --preset=demo --outdir=$(DEMO)

test: $(STAMP)
	$(VENV)/bin/python -m pytest -m 'not slow'

test-all: $(STAMP)
	$(VENV)/bin/python -m pytest

lint: $(STAMP)
	$(VENV)/bin/python -m ruff check .

clean-venv:
	rm -rf $(VENV)
