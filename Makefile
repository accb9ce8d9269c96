# Everything happens in a virtual environment of its own, .venv-<version of Python>; `make help`
# lists the targets. PYTHON=... chooses the interpreter.

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv-$(VERSION)
RUN := $(VENV)/bin/python
# A worker loads JAX and compiles on one core; more of them than cores only swap places.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal
# What the slow tests of these rooms ask does not depend on how programs compile. The others compile
# as users do; one that trains for long would take minutes without optimisation.
QUICK := bottleneck costs data experiments frameworks launch program solvers training two_step
QUICK := $(QUICK:%=tests/%)
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check

help:
	@echo "make demo       train a small quantized network on the CPU and print its table"
	@echo "make report     its run beside those of every other method, as a page"
	@echo "make test       the default test suite (a few minutes); TESTS=... takes a part of it"
	@echo "make test-slow  the tests that are left out of it"
	@echo "make test-all   both"
	@echo "make dist       the wheel and the source archive, in dist/"
	@echo "make lint       formatting and lint, changing nothing"
	@echo "make types      the type checker"
	@echo "make docs       the documentation, its examples run, as pages in docs/_build/html"
	@echo "make pictures   draw the documentation's pictures anew, in docs/images"
	@echo "make bench      the headline measures, as the table benchmarks/measured.md (15 minutes)"
	@echo "make counts     what XLA made of ResNet-20's steps, over benchmarks/counts.json"
	@echo "make notebooks  execute notebooks/*.py and rewrite the .ipynb beside them (2 minutes)"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make clean      remove the environments and caches (runs/ stays)"
	@echo "PYTHON=... chooses the interpreter, 3.11 or newer; it is now $(PYTHON) ($(or $(VERSION),not found))."

demo: $(VENV)/.installed
	$(VENV)/bin/bitjax train digits/bitpruning --workdir runs/digits-bitpruning

report: $(VENV)/.installed
	$(VENV)/bin/bitjax compare $(wildcard runs/digits-*) results/digits --out runs/report.html

test: $(VENV)/.installed-test
	$(RUN) -m pytest $(PARALLEL) $(TESTS)

test-slow: $(VENV)/.installed-test $(VENV)/.installed-dev
	HYPOTHESIS_PROFILE=slow $(RUN) -m pytest -m slow $(PARALLEL) $(QUICK:%=--ignore=%)
	HYPOTHESIS_PROFILE=slow COMPILE_QUICKLY=1 $(RUN) -m pytest -m slow $(PARALLEL) $(QUICK)

test-all: test test-slow

dist: $(VENV)/.installed-dev
	rm -rf dist
	$(RUN) -m build --outdir dist .

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

types: $(VENV)/.installed-test $(VENV)/.installed-dev
	$(RUN) -m pyrefly check --python-interpreter-path $(RUN)

docs: $(VENV)/.installed-test $(VENV)/.installed-docs
	$(RUN) -m pytest --quiet docs
	$(RUN) -m sphinx -W --keep-going -b html docs docs/_build/html
	$(RUN) -m pytest --quiet -m browser tests/test_built_docs.py
	@echo "open $(CURDIR)/docs/_build/html/index.html"

pictures: $(VENV)/.installed-test
	$(RUN) -m experiments.gallery
	$(RUN) -m experiments.screenshots

bench: $(VENV)/.installed-test
	$(RUN) -m benchmarks $(if $(ONLY),--only $(ONLY))

counts: $(VENV)/.installed-test
	$(RUN) -m benchmarks.counts $(WRITE)

notebooks: $(VENV)/.installed-test
	$(RUN) -m notebooks.execute

lab: $(VENV)/.installed-notebooks
	$(RUN) -m jupyterlab notebooks

clean:
	rm -rf docs/_build docs/notebooks docs/tables .venv* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamps: an extra is installed again only when setup.cfg or the environment changed.
$(VENV)/.installed: $(VENV)/made-by setup.cfg pyproject.toml
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/made-by setup.cfg pyproject.toml
	$(PIP) --editable '.[$*]'
	@touch $@

# An environment belongs to one interpreter and one folder, and is made afresh for another. The
# recipe always runs, but what depends on made-by follows only when the file was rewritten.
$(VENV)/made-by: FORCE
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "bitjax needs Python 3.11 or newer; $(PYTHON) is $(or $(VERSION),not there)." \
	         "Choose another: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@made_by="$$($(PYTHON) -c 'import sys; print(sys.base_prefix, sys.version)' | tr '\n' ' ') $(CURDIR)"; \
	if [ "$$(cat $@ 2>/dev/null)" != "$$made_by" ]; then \
	    $(PYTHON) -m venv --clear $(VENV) && echo "$$made_by" > $@; \
	fi

FORCE:
.PHONY: help demo report test test-slow test-all dist lint types docs pictures bench counts notebooks lab clean FORCE
