# make quickstart   install, train the embedded default, evaluate
# make test         everything that needs no GPU
# make lint         format, style, types
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUICKSTART := runs/quickstart

.PHONY: quickstart test lint format samples clean

$(VENV)/.run: setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "focaltune needs Python 3.11 or newer; choose one with make PYTHON=python3.12")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(VENV)/.run
	$(BIN)/python launcher/train.py recipes/quickstart.yaml
	$(BIN)/python launcher/evaluate.py $(QUICKSTART) data/samples/test_imbalanced.jsonl.gz
	@echo
	@echo "report       $(QUICKSTART)/report/test.md"
	@echo "adapter      $(QUICKSTART)/adapter"
	@echo "TensorBoard  $(BIN)/tensorboard --logdir $(QUICKSTART)/tensorboard"

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

samples: $(VENV)/.run
	$(BIN)/python data/samples/generate.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
