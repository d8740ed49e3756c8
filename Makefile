PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
BIN := $(VENV)/bin

.PHONY: demo test lint

# Warm start, then GRPO, IAPO paper and IAPO to_go from one checkpoint.
demo: $(VENV)/.installed
	$(BIN)/python experiments/demo.py

# Everything that is checked: style and the test suite. What needs torch or the
# compiler for TPUs skips unless it is there: make test EXTRAS=test,parity,tpu
test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  --max-worker-restart=0

lint: $(VENV)/.installed
	$(BIN)/ruff check .

$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@
