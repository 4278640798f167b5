# A virtual environment in .venv is made once and renewed when pyproject.toml or constraints.txt change.
#   make demo | test | test-arviz1 | test-long | test-oldest | lint | types | imports | examples | docs | docs-quick | bench | clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The pins are for Python 3.11; elsewhere pip chooses.
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')
# ArviZ 1 wants Python 3.12 or later, and the room that knows ArviZ needs neither torch nor Pyro.
VENV_ARVIZ1 := .venv-arviz1
PYTHON312 ?= $(shell for python in python3.12 python3.13 python3.14 python3 $$HOME/.pyenv/versions/3.1[2-9].*/bin/python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$python && break; done)
EXAMPLES := $(wildcard examples/*.py)

.DELETE_ON_ERROR:
.PHONY: demo test test-arviz1 test-long test-oldest lint types imports examples docs docs-quick bench clean

demo: $(VENV)/with-examples
	@$(BIN)/python examples/eight_schools.py

test: $(VENV)/with-test $(VENV)/with-examples
	@$(BIN)/pytest $(PYTEST_ARGS)

# The tests that need no torch, against the newest ArviZ; those of the other tests may be older.
test-arviz1:
	@if [ -z "$(PYTHON312)" ]; then \
		echo "SKIPPED: test-arviz1 needs Python 3.12 or later, and found none; name one with PYTHON312=/path/to/python" >&2; \
	else \
		$(MAKE) --no-print-directory $(VENV_ARVIZ1)/made && \
		$(VENV_ARVIZ1)/bin/python -m pytest --noconftest tests/results/test_inference_data.py $(PYTEST_ARGS); \
	fi

# What test leaves out: very many fits of posteriors that are hard to explore, an hour or more.
test-long: $(VENV)/with-test $(VENV)/with-examples
	@$(BIN)/pytest -m long $(PYTEST_ARGS)

# The oldest versions that are promised, on the oldest Python: a part of the tests, in an environment of their own.
# Left out: what torch 2.6 cannot do, see docs/installing.md.
test-oldest: .venv-oldest/made
	@.venv-oldest/bin/pytest --quiet tests/stats/test_weights.py tests/model/test_graph.py tests/model/test_vmap.py \
		tests/results/test_inference_data.py tests/flow/test_coupling.py tests/test_kernel.py tests/results/test_compare.py \
		-k "not check_their_arguments and not one_bad_argument and not bernoulli_has_its_density" $(PYTEST_ARGS)

.venv-oldest/made: pyproject.toml constraints-oldest.txt
	@python3.10 -m venv --clear .venv-oldest
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,plot]' \
		-c constraints-oldest.txt
	@touch $@

lint: $(VENV)/with-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/with-dev
	@$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(VENV)/with-dev
	@$(BIN)/lint-imports

examples: $(VENV)/with-examples
	@for example in $(EXAMPLES); do echo "$$example"; $(BIN)/python docs/run_example.py $$example --smoke-test || exit 1; done

# The pages, in docs/_build/html; the short examples run for it. docs-quick shows their code only.
docs: $(VENV)/with-docs
	@$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html $(SPHINX_ARGS)

docs-quick: SPHINX_ARGS = --define plot_gallery=0
docs-quick: docs

bench: $(VENV)/with-bench
	@$(BIN)/pytest benchmarks $(PYTEST_ARGS)

clean:
	@rm -rf $(VENV) $(VENV_ARVIZ1) .venv-oldest build dist docs/_build docs/gallery docs/modules .pytest_cache .ruff_cache \
		.import_linter_cache

$(VENV)/made: pyproject.toml constraints.txt
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV_ARVIZ1)/made: Makefile
	@echo "installing ArviZ 1 into $(VENV_ARVIZ1)"
	@$(PYTHON312) -m venv --clear $(VENV_ARVIZ1)
	@$(VENV_ARVIZ1)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check 'arviz>=1' matplotlib h5netcdf h5py pytest
	@touch $@

# One stamp file per extra: with-test, with-examples, with-dev, with-bench, with-docs.
$(VENV)/with-%: $(VENV)/made
	@echo "installing the extra '$*' into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]' $(CONSTRAINTS)
	@touch $@
