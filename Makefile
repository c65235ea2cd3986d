# Two commands on a fresh machine: `make demo` and `make test`. `make help` lists the others.
# PYTHON is the interpreter that makes .venv (3.11 or newer); `make gpu` runs in it directly.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help venv demo test check bench gpu clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-7s %s\n", $$1, $$2}'

venv: $(READY)  ## make .venv with the versions of constraints.txt (once, and again when they change)

# The stamp is written last, so an interrupted installation is taken up again. By a path (compat):
# a script beside this folder would take the folder itself, if it is called bintally, for the package.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bintally needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@echo "making .venv (about 7 GB with CUDA, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat -e '.[dev]'
	@touch $@

demo: $(READY)  ## render a bucket, shard it from a local S3 server, train, evaluate, predict, report
	@$(BIN)/python demo.py

test: $(READY)  ## pass the tests
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

check: $(READY)  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# PEERS_PYTHON is the interpreter of an environment with benchmarks/peers.txt.
bench: $(READY)  ## measure us beside the alternatives (QUICK=1: roughly)
	@$(BIN)/python -m benchmarks all $(if $(QUICK),--quick) $(if $(PEERS_PYTHON),--peers-python $(PEERS_PYTHON))

gpu:  ## is it right on a GPU, and how fast: a quarter of an hour, in $(PYTHON)'s own environment
	@$(PYTHON) -m benchmarks.gpu

clean:  ## remove what make made here
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
