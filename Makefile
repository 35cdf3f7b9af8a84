# make demo       derain and score a small set with the weights in model/demo
# make weights    download the published weights to model/published (WEIGHTS_URL=...: from there)
# make test       check the style and run the tests
# make types      check the types with mypy
# make gpu-check  on a GPU: test and measure it all, and write gpu-check.md
# make notebook   run clean_image_generation.ipynb without a browser and save its outputs
# Each but weights, which needs Python alone, makes the virtual environment .venv first where it is
# missing or its requirements changed.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
NOTEBOOK := clean_image_generation.ipynb
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
  { echo "$(PYTHON) must be Python 3.10 or newer; name another: make PYTHON=python3.12 ..."; exit 2; }

.PHONY: help demo weights test types gpu-check notebook clean

help:
	@sed -n 's/^# //p' Makefile

demo: $(VENV)/.ready
	@$(PY) -m rain.synthetic_rain test -o demo
	@$(PY) main.py -a test -m demo --test-list demo/test.txt --result-dir demo/results --log-dir demo/logdir
	@echo "Open demo/results/index.html in your browser: every picture before and after."

weights:
	@$(CHECK_PYTHON)
	@$(PYTHON) -m system.weights $(if $(WEIGHTS_URL),"$(WEIGHTS_URL)")

test: $(VENV)/.ready-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest

types: $(VENV)/.ready-dev
	$(PY) -m mypy

gpu-check: $(VENV)/.ready-dev
	@$(PY) benchmarks/gpu_check.py

notebook: $(VENV)/.ready-dev
	$(PY) -c "import nbclient, nbformat; name = '$(NOTEBOOK)'; book = nbformat.read(name, 4); \
	  nbclient.NotebookClient(book, record_timing=False).execute(); nbformat.write(book, name)"

$(VENV)/.ready: requirements.txt requirements-cuda.txt
	@$(CHECK_PYTHON)
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || \
	  { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) install -q pip; } || \
	  { echo "$(PYTHON) could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@echo "Installing requirements.txt into $(VENV), once ..."
	@$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	@if nvidia-smi >/dev/null 2>&1; then \
	  echo "Found an NVIDIA GPU: installing requirements-cuda.txt too ..."; \
	  $(PY) -m pip install -q --disable-pip-version-check -r requirements-cuda.txt; fi
	@touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	@$(PY) -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) demo
