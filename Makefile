PYTHON ?= python3
VENV ?= .venv
FLAGS ?=
AXE = 4.14.1

.DEFAULT_GOAL := help

help: ## Print this list.
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1 /p' Makefile | while read -r target sentence; do \
	    printf '  make %-15s %s\n' "$$target" "$$sentence"; done

demo: $(VENV)/made ## Send six mails through the gateway into the embedded database: no Odoo, no mail server (4 seconds).
	@$(VENV)/bin/python demo/run.py

try: $(VENV)/made ## Run the database with its pages, the gateway and a mail server, on this machine, until Ctrl-C: no Odoo.
	@$(VENV)/bin/python demo/trial.py

demo-picture: $(VENV)/made-dev ## Run the demo, and draw its output as docs/demo.svg (5 seconds).
	$(VENV)/bin/python demo/picture.py

try-pictures: $(VENV)/made-dev ## Take the tour of docs/try.md in a real Chromium, and its pictures anew (a minute).
	$(VENV)/bin/python -m pytest --browser -m browser --pictures -k try tests/test_tour.py $(FLAGS)

admin-pages: $(VENV)/made-dev ## Write the screens of docs/admin.md anew, and man pages and completions (a minute).
	$(VENV)/bin/python tests/admin_page.py

test: $(VENV)/made ## Run the tests that this machine allows, and say which were not run and why (10 minutes).
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(FLAGS)

test-odoo: $(VENV)/made ## Run the tests with a real Odoo 19 and 14, which they start themselves (12 minutes; the first time 3 more, 270 MB).
	$(VENV)/bin/python -m pytest --odoo -m odoo tests/test_odoo.py tests/test_odoo_ways.py tests/test_odoo14.py \
	    tests/test_directory.py tests/test_admin_check.py tests/test_admin_explain.py $(FLAGS)

test-mta: $(VENV)/made ## Run the trials with a real Postfix, a real Exim and a real Odoo behind them (as root; 15 minutes).
	$(VENV)/bin/python -m pytest --mta --odoo -m mta $(FLAGS)

test-mailboxes: $(VENV)/made ## Run the tests with a real Dovecot, whose mail goes into a real Odoo 19 (as root; 5 minutes).
	$(VENV)/bin/python -m pytest --mailboxes --odoo -m mailboxes $(FLAGS)

test-browser: $(VENV)/made $(VENV)/axe-core/made ## Run the tests of the database's pages in a real Chromium (as root, with a real Postfix; 7 minutes).
	$(VENV)/bin/python -m pytest --browser -m browser $(FLAGS)

test-debian13: $(VENV)/made ## Run the tests and the trials on Debian 13, in a root of its own (as root, needs mmdebstrap; 30 minutes).
	PYTHON=$(VENV)/bin/python .ci/debian13 $(FLAGS)

soak: $(VENV)/made ## Send 15,000 messages through Postfix while everything fails at random (as root; 80 minutes).
	$(VENV)/bin/python tests/soak.py $(FLAGS)

check: $(VENV)/made-dev ## Check style, types, and which way imports run (1 minute).
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --config-file tests/mypy.ini
	$(VENV)/bin/lint-imports

bench: $(VENV)/made ## Measure CPU, memory and speed as ratios, into docs/benchmarks.md (as root; 13 minutes).
	@status=0; for name in cpu memory service throughput database pages reading journal desk mailboxes odoo; do \
	    $(VENV)/bin/python benchmarks/$$name.py || status=1; done; exit $$status

install: ## Install the program and its service, and start it, as root; again for a new version (10 seconds).
	@systemd/install

uninstall: ## Stop the service, and remove it and the program; settings and mail stay (2 seconds).
	@systemd/install --remove

coverage: $(VENV)/made-dev ## Run the tests, and list the lines that none of them ran (20 minutes).
	$(VENV)/bin/coverage run -m pytest $(FLAGS)
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage report

clean: ## Remove the venv, and whatever else these commands have made.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage*

$(VENV)/made: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "needs Python's venv module: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/made-dev: $(VENV)/made
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -e '.[test,dev]'
	touch $@

# what Chromium checks the pages with: the rules of accessibility (WCAG). A new version is installed by a changed Makefile
$(VENV)/axe-core/made: Makefile | $(VENV)/made
	@command -v npm >/dev/null || { echo "needs npm: apt-get install npm" >&2; exit 1; }
	npm install --no-save --no-audit --no-fund --ignore-scripts --loglevel=error --prefix $(VENV)/axe-core axe-core@$(AXE)
	touch $@

.PHONY: help demo try demo-picture try-pictures admin-pages test test-odoo test-mta test-mailboxes test-browser test-debian13 soak check bench install uninstall coverage clean
