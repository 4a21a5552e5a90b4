# One command to an answer: `make ask`. One command to the tests: `make test`. `make help` lists the rest.

IMAGE ?= hub_card/examples/grid.png
QUESTION ?= What is in cell 5?

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
PYTEST := $(VENV)/bin/python -m pytest
# A test that waits for ever fails, with what each thread was doing; the longest takes 15 seconds on two cores.
SECONDS_PER_TEST := 600

# Handed to the recipes through the environment, so that a question may hold quotes.
export IMAGE QUESTION

.DEFAULT_GOAL := help
.PHONY: help venv install ask test test-slow test-floor test-newest quality style clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.created ## Create an empty environment in .venv

install: $(VENV)/.installed ## Install the package and what it needs, in an environment of its own
	@echo "==> shirg-lavida is installed in $(VENV)"

ask: $(VENV)/.installed ## Ask about an image: make ask IMAGE=photo.png QUESTION="What is written here?"
	@echo "==> Asking about $$IMAGE: $$QUESTION"
	@$(VENV)/bin/shirg ask "$$IMAGE" "$$QUESTION"

test: $(VENV)/.installed-test ## Run the tests, without the slow ones
	@echo "==> Running the tests (the slow ones are left to make test-slow)"
	@OMP_NUM_THREADS=1 $(PYTEST) -n auto --dist loadfile --timeout $(SECONDS_PER_TEST) -m "not slow"

test-slow: $(VENV)/.installed-test ## Run the slow tests
	@echo "==> Running the slow tests"
	@$(PYTEST) --timeout 3600 -m slow

# The oldest transformers that setup.cfg allows. FLOOR_TESTS is what continuous integration has the time for.
FLOOR := 5.20.0
FLOOR_TESTS ?= tests/test_fresh_process.py tests/test_hub.py tests/test_bundled.py tests/test_modeling.py tests/test_generation.py

test-floor: .venv-floor/.installed-test ## Run loading and generation at the oldest transformers; FLOOR_TESTS=tests is all
	@echo "==> Running $(FLOOR_TESTS) with transformers $(FLOOR)"
	@OMP_NUM_THREADS=1 .venv-floor/bin/python -m pytest -n auto --dist loadfile --timeout $(SECONDS_PER_TEST) -m "not slow" $(FLOOR_TESTS)

test-newest: ## Install as a user does, without constraints, in a fresh environment: answer, train, load as remote code
	@.ci/newest

quality: $(VENV)/.installed-test ## Check style and formatting, changing nothing
	@echo "==> Checking style and formatting"
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

style: $(VENV)/.installed-test ## Fix style and formatting where that can be done automatically
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

clean: ## Remove the environment, builds and caches
	rm -rf $(VENV) .venv-floor build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps below are what lets a second run reuse the environment: a step is repeated only when a file it names changed.
$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none was found. Name one: make ask PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "==> Creating an environment in $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# PyTorch comes first, alone: whatever needs it afterwards finds this build and does not fetch another.
$(VENV)/.torch: constraints.txt $(VENV)/.created
	@echo "==> Installing PyTorch (the largest download, once)"
	@$(PIP) torch
	@touch $@

$(VENV)/.installed: setup.cfg pyproject.toml $(VENV)/.torch
	@echo "==> Installing shirg-lavida and what it needs"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "==> Installing the test tools"
	@$(PIP) -e ".[test]"
	@touch $@

.venv-floor/.installed-test: setup.cfg pyproject.toml constraints.txt
	@echo "==> Creating an environment with transformers $(FLOOR) in .venv-floor"
	@$(PYTHON) -m venv .venv-floor
	@sed 's/^transformers==.*/transformers==$(FLOOR)/' constraints.txt > .venv-floor/constraints.txt
	@.venv-floor/bin/python -m pip --disable-pip-version-check install --quiet -c .venv-floor/constraints.txt torch
	@.venv-floor/bin/python -m pip --disable-pip-version-check install --quiet -c .venv-floor/constraints.txt -e ".[test]"
	@touch $@
