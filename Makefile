# Two commands do everything on a fresh machine with Python >= 3.10, g++ >= 11 and make:
#
#     make demo     installs, compiles, trains a Glow on digits, samples it, measures the fused op
#     make test     installs, compiles, runs every test
#
# A Python whose torch imports is used as it is (its torch, its GPU, no network needed); otherwise .venv gets the
# torch pinned below. PYTHON=/path/to/python chooses another one.

TORCH ?= torch==2.13.0
PYTHON ?=
VENV := .venv
RUN := $(VENV)/bin/python
EXTRAS := recipes,metrics,test
OUT ?= demo

# A few threads that spin briefly: with OpenMP's default a busy neighbour stalls every parallel region.
export GOMP_SPINCOUNT ?= 2000

.PHONY: help demo test quick-test build lint format bench gpu clean

help:
	@echo "make demo        install, compile, train a small Glow, sample it, measure (OUT=demo)"
	@echo "make test        install, compile, run every test"
	@echo "make quick-test  the tests without the emulation's own and without processes"
	@echo "make build       install and compile only"
	@echo "make bench       measure every op and model against its rivals"
	@echo "make gpu         on a GPU: its tests, again under compute-sanitizer, and the measurements"
	@echo "make lint        check the format and lint of Python and C++"
	@echo "make format      apply the format"
	@echo "make clean       remove what was built (the environment stays)"
	@echo
	@echo "PYTHON=python3.12 chooses the Python, TORCH=torch==2.12.0 the torch of a new environment."

# The first Python that has torch >= 2.11, else the first that is >= 3.10. Where that Python is a virtual environment
# itself, its packages are no "system" ones, and a .pth file leads to them.
$(VENV)/bin/python:
	@candidates="$(PYTHON)"; [ -n "$$candidates" ] || candidates="python3 python python3.13 python3.12 python3.11 python3.10"; \
	for python in $$candidates; do \
	  if $$python -c 'import torch; assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)' 2>/dev/null; then \
	    echo "Using the torch of $$python."; \
	    $$python -m venv --system-site-packages $(VENV) && \
	    $$python -c 'import sys, sysconfig; sys.prefix == sys.base_prefix or print(sysconfig.get_path("purelib"))' \
	      > "$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_from.pth"; exit; \
	  fi; \
	done; \
	for python in $$candidates; do \
	  if $$python -c 'import sys; assert sys.version_info >= (3, 10)' 2>/dev/null; then \
	    echo "No Python here has torch >= 2.11: making an environment with $(TORCH)."; \
	    $$python -m venv $(VENV) && $(RUN) -m pip install --quiet "$(TORCH)" || { rm -rf $(VENV); \
	      echo "deepgen_ext: $(TORCH) could not be installed: see pip's message above."; exit 1; }; \
	    exit; \
	  fi; \
	done; \
	echo "deepgen_ext: no Python >= 3.10 found: install one, or name it with PYTHON=/path/to/python."; exit 1

# Without a network pip still succeeds where nothing is missing; where something is, the kernels are built all the same.
$(VENV)/.tools: pyproject.toml | $(VENV)/bin/python
	@$(RUN) -c 'import setuptools, wheel, ninja' 2>/dev/null || \
	  $(RUN) -m pip install --quiet "setuptools>=64" wheel ninja || \
	  echo "deepgen_ext: setuptools, wheel and ninja are not all there and cannot be installed; trying without."
	@touch $@

SOURCES := $(wildcard csrc/*.* csrc/*/*.*) setup.py pyproject.toml

build: $(VENV)/.built

$(VENV)/.built: $(SOURCES) | $(VENV)/.tools
	@echo "Compiling deepgen_ext (a few minutes the first time)."
	@$(RUN) -m pip install --quiet --no-build-isolation --editable ".[$(EXTRAS)]" || { \
	  echo "deepgen_ext: trying again without the optional packages, which cannot be installed here."; \
	  $(RUN) -m pip install --quiet --no-build-isolation --no-deps --editable .; }
	@touch $@

demo: build
	@$(RUN) -m deepgen_ext.cli demo --out $(OUT)

test: build
	@OMP_NUM_THREADS=2 $(RUN) -m pytest

quick-test: build
	@OMP_NUM_THREADS=2 $(RUN) -m pytest --ignore tests/emulation --ignore tests/recipes --ignore tests/test_build.py

bench: build
	@$(RUN) benchmarks/run.py

# Without torch's cache of memory the sanitizer knows each tensor's own bounds.
gpu: build
	@$(RUN) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make gpu: torch sees no CUDA device")'
	@$(RUN) -m pytest -m gpu
	@for tool in memcheck racecheck synccheck initcheck; do \
	  echo "compute-sanitizer --tool $$tool"; \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(RUN) -m pytest -q -m gpu tests/ops || exit 1; \
	done
	@$(RUN) benchmarks/run.py --device cuda --save

CXX_FILES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/emulation/*.h' 'tests/emulation/*.cu')

$(VENV)/.lint: pyproject.toml | $(VENV)/.tools
	@$(RUN) -m pip install --quiet $$($(RUN) -c 'import re; print(*re.findall(r"(?:ruff|clang-format)==[\d.]+", open("pyproject.toml").read()))')
	@touch $@

lint: $(VENV)/.lint
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.lint
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .
	@$(VENV)/bin/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist *.egg-info deepgen_ext/_C.*.so deepgen_ext/_build.json $(VENV)/.built
