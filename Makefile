# make demo    the quickstart: train, quantize, fine-tune, export, verify; leaves build/quickstart/
# make test    every test: C++, CUDA compilation where nvcc is, Python
# make test-engines, test-sanitize, coverage, mutate, tidy, fuzz    slower checks: engines, sanitizers, covered lines, mutants, clang-tidy, libFuzzer
# make test-nightly    those, and more kills of runs than make test has time for
# make models  what torchqat does with a tiny model of every type that transformers has; writes docs/models.md
# make docs    the documentation as a site, build/site/
# make wheels  a wheel for this Python and torch, dist/
# make bench   what training costs, against peers and the limit; writes benchmarks/results/
# make format  clang-format and ruff
# make clean   remove what the build made, but not the cached models

VENV ?= .venv
BUILD := build/native
DEMO := build/quickstart
CUDA_BUILD := build/cuda
BIN := $(VENV)/bin
JOBS ?= $(shell nproc)
SETUP := $(VENV)/.torchqat
SOURCES := $(shell find ops qat python/bindings cmake -type f) CMakeLists.txt setup.py pyproject.toml tools/setup.sh
NVCC := $(shell command -v nvcc 2>/dev/null)

export PATH := $(abspath $(BIN)):$(PATH)
export TORCHQAT_CACHE ?= build/cache
export HF_HUB_OFFLINE ?= 1
export TORCHQAT_BUILD_DIR := $(abspath $(BUILD))
export MAX_JOBS := $(JOBS)
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

.PHONY: demo test test-cpp test-cuda test-python test-nightly test-transformers test-engines test-sanitize coverage mutate tidy fuzz models docs wheels bench format clean setup

setup: $(SETUP)

$(SETUP): $(SOURCES)
	tools/setup.sh $(VENV)
	@touch $@

demo: $(SETUP)
	torchqat run quickstart --output $(DEMO) --restart

test: test-cpp test-cuda test-python

test-cpp: $(SETUP)
	cmake --build $(BUILD) --parallel $(JOBS) --target all qat_all_tests
	ctest --test-dir $(BUILD) --output-on-failure --parallel $(JOBS)

# As beside a CUDA build of torch, but for one architecture and without linking. Running needs a GPU, where the Python tests use it.
test-cuda: $(SETUP)
ifneq ($(NVCC),)
	@mkdir -p $(CUDA_BUILD)
	cmake -S . -B $(CUDA_BUILD) -DCMAKE_PREFIX_PATH="$$(python -c 'import torch; print(torch.utils.cmake_prefix_path)')" \
	  -DQAT_BUILD_PYTHON=OFF -DQAT_CHECK_CUDA=ON -DQAT_CUDA_ARCHITECTURES=80-real \
	  > $(CUDA_BUILD)/configure.log || (cat $(CUDA_BUILD)/configure.log; exit 1)
	cmake --build $(CUDA_BUILD) --target qat_cuda --parallel $(JOBS)
else
	@echo "nvcc is not here: the CUDA sources were not compiled"
endif

# A file of tests at a time on each core, one thread each: threads that share cores wait for one another. Those few tests that
# need more threads shall not spin meanwhile.
test-python: $(SETUP)
	python -m ruff check python tests benchmarks examples setup.py
	$(ONE_THREAD) python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --durations 10

# All that takes too long for every change.
test-nightly: $(SETUP)
	$(ONE_THREAD) python -m pytest tests/python/test_faults.py tests/python/test_architectures.py --nightly
	$(MAKE) test-transformers test-sanitize coverage mutate fuzz test-engines

# Another minor version of transformers than the one that is installed.
OTHER_TRANSFORMERS ?= 5.12
test-transformers: $(SETUP)
	$(ONE_THREAD) tools/test_transformers.sh $(OTHER_TRANSFORMERS)

# Slower checks by the programs that serve the checkpoints; each in an environment of its own under build/engines.
test-engines: $(SETUP)
	tools/test_engines.sh

# The C++ tests under sanitizers; how much of the C++ they run; readers of files under a fuzzer for FUZZ_SECONDS each. For the night.
test-sanitize: $(SETUP)
	tools/sanitize.sh

coverage: $(SETUP)
	tools/coverage.sh

mutate: $(SETUP)
	python tools/mutate.py

tidy: $(SETUP)
	tools/tidy.sh

FUZZ_SECONDS ?= 600
fuzz: $(SETUP)
	tools/fuzz.sh $(FUZZ_SECONDS)

# Every model anew, about 5 minutes; then what changed is in the difference.
models: $(SETUP)
	PYTHONPATH=tests/python $(ONE_THREAD) python -m model_zoo build/models --again
	python tools/model_table.py build/models

# Links and anchors that lead nowhere are errors.
docs: $(SETUP)
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --quiet

wheels: $(SETUP)
	tools/wheels.sh python

# About 40 minutes on two cores, and the figures are only as good as the machine is quiet.
bench: $(SETUP)
	tools/bench.sh

format: $(SETUP)
	python -m ruff check --fix python tests benchmarks examples setup.py
	python -m ruff format python tests benchmarks examples setup.py
	clang-format -i $(shell find ops qat python/bindings tests examples -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

clean:
	rm -rf build/native build/cuda build/quickstart python/torchqat/lib python/torchqat/_C*.so
