# make test | test-slow | first-hour | fuzz | table | check | lint | types | format | demo | docs | clean.  Every target
# makes .venv first, once per change of pyproject.toml.
PYTHON ?= python3
# Of the demo, whose models are tiny (more would wait for one another), and test files at a time
THREADS ?= 2
BIN := .venv/bin
CODE := d2v modalities scripts benchmarks tests docs dev

.PHONY: test test-slow first-hour fuzz table check lint types format demo docs clean

# Tests start many processes, each of which would compile torch and transformers for ten seconds: bytecode is kept.
test test-slow fuzz: export PYTHONDONTWRITEBYTECODE =
test test-slow fuzz: export PYTHONPYCACHEPREFIX = $(CURDIR)/.venv/bytecode

# Files in the order of tests/conftest.py: the longest first, so that no worker is left with one at the end.
test: .venv/.installed
	$(BIN)/python -m pytest -n $(THREADS) --dist loadfile --no-loadscope-reorder --durations=25

# What pytest -m slow selects, a few minutes on two cores. In pieces: make test-slow SLOW="tests/test_loop.py -k text"
SLOW ?= tests
test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow -n $(THREADS) --dist worksteal $(SLOW)

# The wheel in an empty environment, and the README's commands on plain folders; trainings of 60 steps, about a quarter of
# an hour on two cores. The recipes' own length: make first-hour FIRST_HOUR="steps=0"
FIRST_HOUR ?=
first-hour: .venv/.installed
	$(BIN)/python tests/first_hour.py $(FIRST_HOUR)

# Hostile settings and damaged files through the scripts, about half an hour on two cores. In pieces: make fuzz FUZZ="settings=100 files=0"
FUZZ ?= settings=4000 files=3000
fuzz: .venv/.installed
	PYTHONPATH=tests:. $(BIN)/python -m fuzz $(FUZZ)

# All methods on one trunk in equal minutes, into docs/results.md; some hours, and it goes on where it was stopped.
# make table TABLE="image=cifar10/ speech=fsdd/ text=banking77/ minutes=3"
table: .venv/.installed
	PYTHONPATH=benchmarks:. $(BIN)/python benchmarks/table.py $(TABLE)

check: lint types test

lint: .venv/.installed
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

# Takes a minute or more, and fetches its own program on first use.
types: .venv/.installed
	$(BIN)/pyright

format: .venv/.installed
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

# One short run per modality on data that the installed packages bring, then what its features are worth. On the CPU, without network.
demo: .venv/.installed
	OMP_NUM_THREADS=$(THREADS) $(BIN)/d2v demo

# The pages of docs/ into site/; those of settings and the API are made from the code first.
docs: .venv/.docs
	$(BIN)/python docs/generate.py --methods
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/.docs: .venv/.installed
	$(BIN)/python -m pip install --quiet --no-compile -e '.[docs]'
	@touch $@

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("d2v needs Python 3.10 or newer; make PYTHON=python3.11" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build site docs/settings/methods *.egg-info .pytest_cache .ruff_cache runs/demo_*
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
