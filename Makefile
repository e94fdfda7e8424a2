# Two targets set everything up on a fresh machine: `make demo` and `make test`.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
RUN := $(VENV)/bin
# The environment is made anew when what it must hold changes.
STAMP := $(VENV)/deps-$(shell sed -n "/^requires-python/p;/^dependencies/,/^\]/p;/^\[project.optional/,/^\[project.scripts/p" pyproject.toml | sha256sum | cut -c1-16)

.PHONY: demo test others slow lint types docs notebooks install picture tables clean

demo: install
	$(RUN)/geomerge demo

# A process for each core, one thread each; files stay whole, for the networks that their tests share.
test: install
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

# What another Python or NumPy may change: numbers, solvers, files, networks.
OTHERS := tests/steps tests/metrics tests/walks tests/paths tests/io tests/data tests/networks \
    tests/continual/test_merge.py tests/test_layout.py

others: install
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile $(OTHERS)

# Long tests one by one, so that no process is left with a whole file at the end.
slow: install
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -m slow -n auto --maxprocesses 4 --dist worksteal

lint: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: install
	$(RUN)/mypy
	$(RUN)/mypy --config-file benchmarks/mypy.ini

# The site, in build/docs/index.html; a warning is an error.
docs: install
	OMP_NUM_THREADS=1 $(RUN)/python -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs

# Every notebook from top to bottom, outputs into the files; they show MNIST with GEOMERGE_DATA.
notebooks: install
	$(RUN)/python notebooks/run.py

# Installing the checkout itself takes seconds, so that one environment may serve many checkouts.
install: $(STAMP)
	@$(RUN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .

$(STAMP):
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --upgrade pip "setuptools>=77"
	$(RUN)/pip install --quiet -e ".[dev]"
	touch $@

# The README's picture, which needs GEOMERGE_DATA; the tables of README and documentation.
picture: install
	$(RUN)/python benchmarks/picture.py

tables: install
	$(RUN)/python benchmarks/tables.py

clean:
	rm -rf build $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
