# make help says what there is. Every target sets up what it needs first; done steps are skipped.
MPI ?= embedded
PYTHON ?= python3
TORCH_SPEC ?= torch==2.13.0
REDUCER ?= horovod
export JOBS

ifeq ($(MPI),site)
venv := .venv-site
else ifeq ($(MPI),embedded)
venv := .venv
else
$(error MPI=$(MPI): expected MPI=embedded (the default) or MPI=site)
endif
ifeq ($(filter $(REDUCER),horovod mpi),)
$(error REDUCER=$(REDUCER): expected REDUCER=horovod (the default) or REDUCER=mpi)
endif
bin := $(CURDIR)/$(venv)/bin
# An environment keeps its Python unless another one is asked for.
chosen := $(if $(filter command environment,$(origin PYTHON)),--chosen)
setup_here := $(PYTHON) tools/setup.py $(chosen) --mpi $(MPI) --torch '$(TORCH_SPEC)'
run_setup := $(setup_here) --reducer $(REDUCER)
# The demo waits for Horovod, minutes of compiling, only where it is asked for.
demo_reducer := $(if $(filter command environment,$(origin REDUCER)),$(REDUCER))
lint_setup := $(PYTHON) tools/setup.py $(chosen) --torch '$(TORCH_SPEC)' --for lint
wheel_setup := $(PYTHON) tools/setup.py $(chosen) --for wheel
# Two processes of pytest: one begins with the tests that start jobs, which keep no core busy all the time, the other
# with half of the unit tests; who is done takes over from the other's end. More would let jobs disturb each other.
spread := -n 2 --dist worksteal
python_folders := $(wildcard src tests tools benchmarks datasets)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-frames fuzz chaos soak native-test sanitize sanitize-fast lint format errors wheel try-wheel bench-peers clean distclean

help:
	@echo 'make demo     train a model on real data under mpiexec: servers, workers, trainers'
	@echo 'make test     C++ and Python tests (ARGS="-k ring -x" is handed to pytest; ARGS="-n 0" is one process)'
	@echo 'make test-fast  C++ tests and those of Python that start no jobs (tests/unit, tests/native)'
	@echo 'make test-frames  tests of frames of pandas and Arrow, which it installs for them in build/frames'
	@echo 'make fuzz     damages files for five minutes and checks every command (ARGS="--seconds 60 --seed 2")'
	@echo 'make chaos    kills jobs at 100 random moments and checks what they end with (ARGS="--kills 1000")'
	@echo 'make soak     disturbs one job for ten minutes: stopped ranks, new files (ARGS="--minutes 60")'
	@echo 'make sanitize C++ tests and tests/native under ASan, UBSan, TSan;  make sanitize-fast  only the C++ tests'
	@echo 'make lint     ruff, mypy, clang-format, import rules;  make format  applies what can be applied'
	@echo 'make errors   writes docs/errors.md anew, when a message has changed'
	@echo 'make wheel    a manylinux wheel of the package, in dist/;  make try-wheel  trains from it without a compiler'
	@echo 'make setup    only the environment ($(venv)), logs in build/setup-*.log'
	@echo 'make bench-peers  TorchRec and Paddle, for persia-hpc bench train and benchmarks/preprocessing.py'
	@echo 'make clean    removes builds and caches;  make distclean  the environments too'
	@echo
	@echo 'MPI=site      the mpicc and mpicxx on PATH instead of the embedded MPICH (environment: .venv-site)'
	@echo 'PYTHON=...    another interpreter, 3.10 or newer (now: $(PYTHON))'
	@echo 'TORCH_SPEC=.. another PyTorch, as a pip requirement (now: $(TORCH_SPEC))'
	@echo 'REDUCER=mpi   builds no Horovod: tests of several trainers use train.reducer = "mpi", as make demo does'
	@echo '              where there is none;  make demo REDUCER=horovod  builds it first'
	@echo 'JOBS=...      compilers at a time (default: the cores, at most 8)'

setup:
	@$(run_setup)

demo:
	@$(setup_here) --for demo --reducer $(or $(demo_reducer),mpi)
	@PATH="$(bin):$$PATH" persia-hpc demo $(if $(demo_reducer),--set train.reducer=$(demo_reducer))

test: setup native-test
	@PATH="$(bin):$$PATH" PERSIA_HPC_TEST_REDUCER=$(REDUCER) $(bin)/python -m pytest $(spread) --durations=20 $(ARGS)

test-fast: setup native-test
	@PATH="$(bin):$$PATH" $(bin)/python -m pytest $(spread) tests/unit tests/native $(ARGS)

test-frames: setup
	@$(bin)/python -m pip install --quiet --upgrade --no-deps --target build/frames pandas==3.1.1 pyarrow==26.0.1
	@PYTHONPATH=build/frames $(bin)/python -c 'import pandas, pyarrow'
	@PYTHONPATH=build/frames $(bin)/python -m pytest tests/unit/test_preprocess_table_in_memory.py $(ARGS)

fuzz: setup
	@PATH="$(bin):$$PATH" $(bin)/python -m tests.fuzz $(ARGS)

soak: setup
	@PATH="$(bin):$$PATH" $(bin)/python -m tests.support.soak $(ARGS)

chaos: setup
	@PATH="$(bin):$$PATH" $(bin)/python -m tests.support.chaos $(ARGS)

native-test: setup
	@PATH="$(bin):$$PATH" bash tools/native_tests.sh

sanitize: setup
	@PATH="$(bin):$$PATH" bash tools/sanitize.sh all

sanitize-fast: setup
	@PATH="$(bin):$$PATH" bash tools/sanitize.sh cpp

lint:
	@$(lint_setup)
	@PATH="$(CURDIR)/.venv/bin:$$PATH" PYTHON_FOLDERS="$(python_folders)" bash tools/lint.sh

format:
	@$(lint_setup)
	@.venv/bin/ruff check --fix $(python_folders)
	@.venv/bin/ruff format $(python_folders)
	@find native -name '*.cpp' -o -name '*.h' -o -name '*.cu' | xargs .venv/bin/clang-format -i

errors:
	@$(PYTHON) tools/error_catalogue.py --write

wheel:
	@$(wheel_setup)
	@bash tools/wheel.sh .venv/bin/python

try-wheel:
	@$(wheel_setup)
	@bash tools/try_wheel.sh .venv/bin/python '$(TORCH_SPEC)'

bench-peers:
	@bash benchmarks/peers/setup.sh $(PYTHON) '$(TORCH_SPEC)'

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/persia_hpc/_native*.so
	find $(python_folders) -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-site
