# make demo        six mails through the gateway into the embedded database: no Odoo, no mail server
# make test        the tests that this machine allows; says at its end what it did not run, and why
# make test-odoo   the tests with a real Odoo 19, which they start themselves (the first time: 100 MB, a minute)
# make test-mta    the tests with a real Postfix and a real Exim, and with a real Odoo behind them (as root)
# make test-debian13  the tests and the trials on Debian 13, in a root of its own (as root, with mmdebstrap; no Odoo)
# make soak        thousands of messages through Postfix while everything fails at random (as root; twenty minutes)
# make check       types, style, and which way imports run
# make bench       CPU, memory and speed, as ratios, into docs/benchmarks.md (as root: with a real Postfix); five minutes
# make coverage    which lines the tests run

PYTHON ?= python3
VENV ?= .venv
FLAGS ?=

demo: $(VENV)/made
	$(VENV)/bin/python demo/run.py

test: $(VENV)/made
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(FLAGS)

test-odoo: $(VENV)/made
	$(VENV)/bin/python -m pytest --odoo -m odoo tests/test_odoo.py tests/test_odoo_ways.py tests/test_directory.py $(FLAGS)

test-mta: $(VENV)/made
	$(VENV)/bin/python -m pytest --mta --odoo -m mta $(FLAGS)

test-debian13: $(VENV)/made
	PYTHON=$(VENV)/bin/python .ci/debian13 $(FLAGS)

soak: $(VENV)/made
	$(VENV)/bin/python tests/soak.py $(FLAGS)

check: $(VENV)/made-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --config-file tests/mypy.ini
	$(VENV)/bin/lint-imports

bench: $(VENV)/made
	@status=0; for name in cpu memory service throughput database reading; do \
	    $(VENV)/bin/python benchmarks/$$name.py || status=1; done; exit $$status

coverage: $(VENV)/made-dev
	$(VENV)/bin/coverage run -m pytest $(FLAGS)
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage report

$(VENV)/made: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "needs Python's venv module: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/made-dev: $(VENV)/made
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -e '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage*

.PHONY: demo test test-odoo test-mta test-debian13 soak check bench coverage clean
