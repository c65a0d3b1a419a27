# `make demo` and `make test` work on a fresh clone: each first makes or updates .venv from pyproject.toml.
PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.complete
DEMO   := runs/demo

.PHONY: help setup demo test test-all lint types clean-venv
help:
	@echo 'make demo      phantom patients -> GAN -> U-Nets -> a page in $(DEMO) (about 14 minutes on two cores)'
	@echo 'make test      the tests; make test-all also runs the slow ones'
	@echo 'make setup     only make or update $(VENV); PYTHON=/path/to/python3 chooses of which Python'
	@echo 'make lint      ruff: rules and format; make types: mypy'

# What an environment is of; and whether it shall be of PYTHON: where nobody names one, the one that is there will do.
IDENTITY := import os, sys; print(sys.version.split()[0], "in", os.path.realpath(sys.base_prefix))
GIVEN    := $(filter-out file,$(origin PYTHON))

setup:
	@if [ -n "$(GIVEN)" ] || [ ! -f $(STAMP) ]; then \
	  command -v "$(PYTHON)" >/dev/null || { echo 'error: no $(PYTHON): install Python 3.10 or newer, or call make PYTHON=/path/to/python3'; exit 2; }; \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $$("$(PYTHON)" --version) is too old: 3.10 or newer is needed; call make PYTHON=/path/to/python3"; exit 2; }; \
	fi
	@if [ -e $(VENV) ] && ! $(VENV)/bin/python -c '' 2>/dev/null; then \
	  [ -f $(VENV)/pyvenv.cfg ] || rmdir $(VENV) 2>/dev/null || { echo 'error: $(VENV) is there, but is no environment of Python: move it away'; exit 2; }; \
	  [ ! -f $(STAMP) ] || { echo 'error: the Python of $(VENV) is gone, or is of another machine: make clean-venv removes it, make setup makes another'; exit 2; }; \
	  rm -rf $(VENV); \
	fi
	@if [ -n "$(GIVEN)" ] && [ -e $(VENV) ]; then \
	  there=$$($(VENV)/bin/python -c '$(IDENTITY)'); asked=$$("$(PYTHON)" -c '$(IDENTITY)'); \
	  [ "$$there" = "$$asked" ] || { echo "error: $(VENV) is of Python $$there, not of $$asked: make clean-venv removes it, or leave out PYTHON="; exit 2; }; \
	fi
	@if [ -s $(STAMP) ] && [ "$$(cat $(STAMP))" != "$$(pwd -P)" ]; then \
	  echo "[set-up] $(VENV) was made in $$(cat $(STAMP)), where its bin/activate leads: make clean-venv and make setup make another"; \
	fi
	@$(MAKE) --silent --no-print-directory $(STAMP)

# The stamp is written last, so an interrupted installation is taken up again by the next call.
$(STAMP): pyproject.toml
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { echo '[set-up] creating $(VENV)'; "$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); echo 'error: could not create $(VENV); on Debian and Ubuntu: apt-get install python3-venv'; exit 2; }; }
	@echo '[set-up] installing what pyproject.toml lists into $(VENV); PyTorch is large, so the first time takes a few minutes'
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	@pwd -P > $(STAMP)
	@echo '[set-up] done'

demo: setup
	$(VENV)/bin/python reproduce.py --preset=demo --outdir=$(DEMO)

test: setup
	$(VENV)/bin/python -m pytest -m 'not slow'

test-all: setup
	$(VENV)/bin/python -m pytest

lint: setup
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

types: setup
	$(VENV)/bin/python -m mypy

clean-venv:
	rm -rf $(VENV)
