# The commands of the project; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q
# One worker a core: most tests keep one busy. An idle one takes over tests of the others. What tests build they keep
# under build/, where the workers share it.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal
KERNELS := $(wildcard csrc/*.* csrc/*/*.*)
# Where it is set, each of the hundreds of processes that tests start compiles the modules that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo demo-check test compat compat-oldest proof bench bench-full gpu-check wheel lint format docs clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "%-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The environment with the pinned dependencies, and the package built into the checkout (editable install). Of 20,000
# modules a few thousand are ever imported: compiling them all, one after the other, would take a minute.
$(VENV)/dependencies.stamp: requirements.txt
	@echo "Once: installing the packages of $< into $(VENV) (6 GB); this takes minutes, mostly of downloading"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --requirement requirements.txt
	touch $@

$(VENV)/package.stamp: $(VENV)/dependencies.stamp setup.py pyproject.toml $(KERNELS)
	@echo "Once, and after changes in csrc: compiling the package's kernels; this takes about 3 minutes on 2 cores"
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

demo: $(VENV)/package.stamp  ## train SimCLR on the embedded digits and show what was learned (about 4 minutes)
	$(BIN)/python -m simclr_fast pretrain demo

demo-check: $(VENV)/package.stamp  ## train the demo by its variants, fine-tune and detect with it, and judge the results (half an hour)
	$(PYTEST) -m demo

test: $(VENV)/package.stamp  ## run the test suite
	$(PYTEST) $(PARALLEL)
	$(PYTEST) $(PARALLEL) -m interpret

compat compat-oldest: $(VENV)/package.stamp  ## build and run fast tests with other versions of torch and Python (7 GB each; -oldest: the first)
	$(PYTHON) -m tools.compat $(if $(filter %-oldest,$@),--oldest)

proof: $(VENV)/package.stamp  ## run the slow proofs: generated code, sanitizers, mutants
	$(PYTEST) $(PARALLEL) -m proof

$(VENV)/peers.stamp: $(VENV)/package.stamp requirements-bench.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-bench.txt
	touch $@

bench bench-full: $(VENV)/peers.stamp  ## benchmark against PyTorch and the peers (15 minutes; -full: hours), write a report
	$(BIN)/python -m benchmarks.run --scale $(if $(filter %-full,$@),full,quick)

gpu-check: $(VENV)/dependencies.stamp  ## on a machine with a GPU: tests on the device, compute-sanitizer, figures, one report (9 minutes)
	$(BIN)/python -m tools.gpu_check

wheel: $(VENV)/dependencies.stamp  ## build the source distribution and the manylinux wheel into dist/, and try the wheel
	$(BIN)/python -m tools.wheel

lint: $(VENV)/dependencies.stamp  ## check formatting and style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

format: $(VENV)/dependencies.stamp  ## format Python, C++ and CUDA
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

docs: $(VENV)/dependencies.stamp  ## build the documentation's site (look at it: python3 -m http.server --directory site)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:  ## remove what was built
	rm -rf build dist *.egg-info simclr_fast/_C*.so $(VENV)/package.stamp
