# A virtual environment in .venv is made once and renewed when pyproject.toml or constraints.txt change.
#   make demo | test | test-long | test-oldest | lint | types | imports | examples | docs | docs-quick | bench | clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The pins are for Python 3.11; elsewhere pip chooses.
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')
EXAMPLES := $(wildcard examples/*.py)

.DELETE_ON_ERROR:
.PHONY: demo test test-long test-oldest lint types imports examples docs docs-quick bench clean

demo: $(VENV)/with-examples
	@$(BIN)/python examples/eight_schools.py

test: $(VENV)/with-test $(VENV)/with-examples
	@$(BIN)/pytest $(PYTEST_ARGS)

# What test leaves out: very many fits of posteriors that are hard to explore, an hour or more.
test-long: $(VENV)/with-test $(VENV)/with-examples
	@$(BIN)/pytest -m long $(PYTEST_ARGS)

# The oldest versions that are promised, on the oldest Python: a part of the tests, in an environment of their own.
# Left out: what torch 2.6 cannot do, see docs/installing.md.
test-oldest: .venv-oldest/made
	@.venv-oldest/bin/pytest --quiet tests/test_importance.py tests/test_capture.py tests/test_compat.py \
		tests/test_inference_data.py tests/test_flow_map.py tests/test_kernel.py tests/test_compare.py \
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
	@for example in $(EXAMPLES); do echo "$$example --smoke-test"; $(BIN)/python $$example --smoke-test || exit 1; done

# The pages, in docs/_build/html; the short examples run for it. docs-quick shows their code only.
docs: $(VENV)/with-docs
	@$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html $(SPHINX_ARGS)

docs-quick: SPHINX_ARGS = --define plot_gallery=0
docs-quick: docs

bench: $(VENV)/with-bench
	@$(BIN)/pytest benchmarks $(PYTEST_ARGS)

clean:
	@rm -rf $(VENV) .venv-oldest build dist docs/_build docs/gallery docs/rooms .pytest_cache .ruff_cache .import_linter_cache

$(VENV)/made: pyproject.toml constraints.txt
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# One stamp file per extra: with-test, with-examples, with-dev, with-bench, with-docs.
$(VENV)/with-%: $(VENV)/made
	@echo "installing the extra '$*' into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]' $(CONSTRAINTS)
	@touch $@
