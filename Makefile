# Every target sets up what it needs: a virtual environment, made once and installed into again only when
# pyproject.toml or constraints.txt change. `make demo` is the place to start.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin

.PHONY: help demo test test-nemo lint format notebooks bench gpu-check fuzz constraints clean
.SECONDARY:

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(VENV)/.installed-demo ## Load real photographs, some of them broken, and show what comes out
	@$(BIN)/curator-dali demo $(ARGS)

test: $(VENV)/.installed-test ## The tests; ARGS='-k tar -x' goes to pytest
	@$(BIN)/python -m pytest $(ARGS)

test-nemo: ## The tests inside NeMo Curator, in an environment of its own; ARGS goes to pytest
	@$(MAKE) --no-print-directory VENV=$(VENV)-nemo $(VENV)-nemo/.installed-test-nemo
	@$(VENV)-nemo/bin/python -m pytest tests/nemo $(ARGS)

lint: $(VENV)/.installed-dev ## Style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-dev ## Mend style and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

notebooks: $(VENV)/.installed-test ## Run the notebooks and keep their outputs
	@$(BIN)/python notebooks/run.py $(ARGS)

bench: $(VENV)/.installed-bench ## Against the peers, minutes; ARGS=--help tells what else it measures
	@$(BIN)/python -m tests.benchmarks.loading $(ARGS)

gpu-check: $(VENV)/.installed-test ## All that only a GPU can tell; without one: ARGS=--rehearse
	@$(BIN)/python -m tests.gpu_check $(ARGS)

fuzz: $(VENV)/.installed-test ## The mutation fuzzer, longer than in the tests; ARGS=--help
	@$(BIN)/python -m tests.fuzz $(or $(ARGS),--count 200000)

constraints: ## Rewrite constraints.txt with the newest releases (torch stays)
	@rm -rf $(VENV)-new && $(PYTHON) -m venv $(VENV)-new
	@$(VENV)-new/bin/pip install -qq --disable-pip-version-check \
		"$$(grep '^torch==' constraints.txt)" hatchling editables --editable '.[bench,dev]'
	@$(VENV)-new/bin/python .ci/constraints.py > constraints.new && mv constraints.new constraints.txt
	@rm -rf $(VENV)-new

clean: ## Forget the environment, the caches and the benchmark's corpora
	@rm -rf $(VENV) $(VENV)-nemo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The build back end is constrained too, hence the environment variable instead of -c.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing curator-dali[$*] into $(VENV), which takes minutes the first time"
	@PIP_CONSTRAINT=constraints.txt $(BIN)/pip install -qq --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -m venv $(VENV)
