# Each target does the set-up it needs; a second call does only what is left to do.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo btcv test lint types docs constraints

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
DOCS := $(VENV)/.set-up-docs
# Some libraries reset the locale, and with it the encoding of text files.
export PYTHONUTF8 := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

help:  ## show this list
	@grep -hE '^[a-z]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 14

setup: $(STAMP)  ## install labelloop and the tested versions of all it needs into .venv

demo: results/demo/phantom/cases.csv  ## run the whole workflow on a synthetic data set
	snakemake --cores all --configfile config/demo.yaml

btcv: $(STAMP)  ## run it on real CT: DATA=FOLDER with BTCV images and labels
	@[ -n "$(DATA)" ] || { echo "Where are the scans? make btcv DATA=FOLDER (<case>_0000.nii.gz and <case>.nii.gz)" >&2; exit 1; }
	python benchmarks/btcv/cases.py $(DATA) results/btcv/scans/cases.csv
	snakemake --cores all --configfile config/btcv.yaml

test: $(STAMP)  ## run the tests: the quick ones first, as `pytest` alone does, then all others
	pytest
	pytest -n 3 -rfEs -m "slow or training or workflow or slurm"

lint: results/demo/phantom/cases.csv  ## check style and workflow
	ruff check
	ruff format --check
	snakefmt --check Snakefile workflow
	snakemake --lint --configfile config/demo.yaml

types: $(STAMP)  ## check types
	mypy

docs: $(DOCS)  ## write the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet # the warning names a successor of the theme

constraints: $(STAMP) $(DOCS)  ## write down the versions in .venv as the tested ones
	{ sed '/^[^#]/,$$d' envs/constraints.txt; pip freeze --all --exclude pip --exclude-editable; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt envs/constraints.txt

$(DOCS): pyproject.toml envs/constraints.txt | $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint envs/constraints.txt --editable '.[docs]'
	@touch $@

results/demo/phantom/cases.csv: | $(STAMP)
	labelloop phantom $(@D) --cases 24 --seed 1

# A Python counts as found when it runs: pyenv, for one, puts a `python3.13` on the PATH that only prints an error.
$(STAMP): pyproject.toml envs/constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
			if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		[ -n "$${found:-}" ] || { echo "labelloop needs Python 3.11 or newer, and none was found. Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }; \
		echo "Setting up $(VENV) with $$($$found --version)"; \
		$$found -m venv $(VENV); \
	fi
	@echo "Installing into $(VENV): about 4 minutes and 6 GB (PyTorch)"
	@( while sleep 15; do echo "  installing: $$(du -sh $(VENV) | cut -f1) so far"; done ) & life=$$!; trap "kill $$life 2>/dev/null || true" EXIT; \
	$(BIN)/python -m pip install --quiet --constraint envs/constraints.txt --editable '.[dev,slurm]'
	@touch $@
	@echo "Done. Next: make demo, or: source $(VENV)/bin/activate && labelloop --help"
