# `make lab` opens the lessons, `make test` checks everything; what each needs is set up on first use.
# Variables: PYTHON=<a Python 3.11>, UPGRADE=1 (with lock), LESSON=<number, with lab>,
# ARGS=<more arguments for lab, unit, ui or bench>.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP := $(PY) -m pip --disable-pip-version-check install -q
TORCH := $(shell sed -n 's/^torch==//p' requirements.lock)
CPU_INDEX := https://download.pytorch.org/whl/cpu
PYENV_ROOT ?= $(HOME)/.pyenv
NOTEBOOKS := tutorials/*.ipynb
LESSON := 00
OPENED = $(firstword $(sort $(wildcard tutorials/$(LESSON)_*.ipynb)) tutorials)

# Small networks run many times slower when two torch threads contend for busy cores.
export OMP_NUM_THREADS := 1
# First in Jupyter's search order, so that the kernel "python3" is this environment's wherever else one is registered.
export JUPYTER_PATH := $(CURDIR)/$(VENV)/share/jupyter

.DEFAULT_GOAL := help
.PHONY: help lab test setup lint type unit bench notebooks binder ui site pages results lock clean
.NOTPARALLEL:

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

lab: setup  ## open the first lesson in JupyterLab, or another: make lab LESSON=02
	@$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/$(OPENED) $(ARGS)

# Binder's installation, one process, goes beside the lessons. Unit tests last: the output then ends with their closing line.
test: lint type bench  ## run all checks
	@$(MAKE) --no-print-directory -j 2 notebooks binder
	@$(MAKE) --no-print-directory ui unit

setup: $(STAMP)  ## make .venv with everything pinned

lint: setup  ## check format, style and stripped notebooks
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m nbstripout --verify $(NOTEBOOKS) || { \
	  echo "Strip them: $(PY) -m nbstripout $(NOTEBOOKS)" >&2; exit 1; }

type: setup  ## mypy --strict on the library
	@$(PY) -m mypy

unit: setup  ## unit tests, with shapes checked and warnings as errors, in two processes
	@$(PY) -m pytest -m "not benchmark and not ui" -n 2 --dist loadfile $(ARGS)

# Without the shape checks, which would be timed as well.
bench: setup  ## timing tests
	@$(PY) -m pytest -o addopts="--strict-markers --import-mode=importlib" tests/benchmarks $(ARGS)

# The filter is ours to keep for the library; what the notebook tools warn of between themselves is not.
notebooks: setup  ## run every lesson
	@$(PY) -m pytest -o addopts= -o filterwarnings=default --nbmake --nbmake-kernel=python3 --nbmake-timeout=60 \
	  -n 2 --durations=0 $(NOTEBOOKS)

# Its own lines in an environment of its own; PyTorch's index, if it cannot be reached, is not asked again and again.
# No kernel of .venv may run the lessons here, and no setting of pyproject.toml may show them the sources.
binder: setup  ## install as Binder does, in a folder of its own, and run the first lessons there
	@rm -rf build/binder && $(PY) -m venv build/binder
	@echo "Installing as Binder does: a minute or two"
	@export PATH="$(CURDIR)/build/binder/bin:$$PATH" JUPYTER_PATH= PIP_RETRIES=0 PIP_QUIET=2 \
	  PIP_DISABLE_PIP_VERSION_CHECK=1; set -e; \
	  pip install -r binder/requirements.txt; binder/postBuild; \
	  binder/start python -m pytest -c /dev/null --rootdir . -p no:cacheprovider -q --nbmake --nbmake-kernel=python3 \
	  tutorials/00_*.ipynb tutorials/01_*.ipynb
	@rm -rf build/binder

# What the browser tools warn of between themselves is not ours to keep either. No Chromium: a failure in CI, else skipped.
ui: setup  ## drive the lessons, saved pages and the site in Chromium; screenshots go to build/screenshots
	@$(PY) -m pytest -o addopts="--strict-markers --import-mode=importlib" -o filterwarnings=default \
	  -n 2 --dist loadscope --no-loadscope-reorder --durations=12 tests/ui $(ARGS)

site: setup  ## write the lessons as web pages that need neither kernel nor network, into build/site
	@rm -rf build/site
	@$(PY) -m safediffkit.lessons.site build/site

pages: setup  ## renew tutorials/equation_map.md, whose links name lines
	@$(PY) -m safediffkit.lessons.pages

RESULTS := tutorials/assets/results
PLANNERS := tcdp trebi cdd
WEIGHTS := $(foreach task,BallCircle CarCircle BallRun CarRun,$(RESULTS)/weights-Offline$(task)-v0.json \
  $(foreach name,$(PLANNERS),$(RESULTS)/weights-$(name)-Offline$(task)-v0.json))

results: setup $(WEIGHTS)  ## make the records and policies that are missing in tutorials/assets (hours for all)
	@$(PY) -m safediffkit.benchmark spi --jobs 2
	@$(PY) -m safediffkit.benchmark simplex --steps 1500 --jobs 2
	@$(PY) -m safediffkit.benchmark budgets --jobs 2
	@$(PY) -m safediffkit.benchmark landmarks --steps 1500 --jobs 2
	@$(PY) -m safediffkit.benchmark roles --jobs 2
	@$(PY) tutorials/assets/make_weights.py
	@test -e tutorials/assets/driving.npz || $(PY) tutorials/assets/make_driving.py
	@test -e tutorials/assets/planning.npz || $(PY) tutorials/assets/make_planning.py
	@test -e tutorials/assets/merge.npz || $(PY) tutorials/assets/make_merge.py

$(RESULTS)/weights-%.json:
	@$(PY) -m safediffkit.selection $* --out $@

define choose
$(RESULTS)/weights-$(1)-%.json:
	@$$(PY) -m safediffkit.selection $$* --method $(1) --budget 10 20 40 --out $$@
endef
$(foreach name,$(PLANNERS),$(eval $(call choose,$(name))))

lock:  ## renew requirements.lock from pyproject.toml
	@$(make_venv)
	@$(PY) .ci/lock.py

clean:  ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

# The stamp goes first and comes back last: an interrupted setup is taken up again, a finished one is not repeated.
$(STAMP): requirements.lock pyproject.toml
	@rm -f $@
	@$(make_venv)
	@echo "Installing the pinned packages into $(VENV): a minute or two, the first time"
ifeq ($(shell uname -s),Linux)
# A plain torch would want several GB of CUDA packages. Use a CPU build that pip knows of, or PyTorch's own.
	@$(PIP) --no-deps "torch==$(TORCH)+cpu" 2>/dev/null || \
	  $(PIP) --no-deps --index-url $(CPU_INDEX) "torch==$(TORCH)+cpu"
endif
	@$(PIP) --no-deps -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

define make_venv
set -e; usable='import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))'; \
if $(PY) -m pip --version >/dev/null 2>&1 && $(PY) -c "$$usable" 2>/dev/null; then exit 0; fi; \
for python in $(or $(PYTHON),python3.11 "$(PYENV_ROOT)"/versions/3.11*/bin/python python3 python); do \
  if "$$python" -c "$$usable" 2>/dev/null; then exec "$$python" -m venv --clear $(VENV); fi; \
done; \
echo "safediffkit needs Python 3.11 with venv (pybullet has no wheels for later ones): $(if $(PYTHON),$(PYTHON) is not one,none found)." >&2; \
echo "Get one:  Debian, Ubuntu: apt install python3.11 python3.11-venv   macOS: brew install python@3.11" >&2; \
echo "          anywhere: pyenv install 3.11   or   uv python install 3.11" >&2; \
echo "or name it: make setup PYTHON=/path/to/python3.11" >&2; \
exit 1
endef
