# Each target makes .venv and installs what it needs, once. Python 3.11 or newer and make are enough.

PYTHON ?= python3
VENV := .venv
PEERS := build/peers
BIN := $(VENV)/bin
PROJECTS := pyproject.toml clients/pyproject.toml
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -e clients

# The model that `make demo` leaves, or that `make serve` trains first: a file of your own instead
# with `make serve MODEL=mine.safetensors`. ARGS are passed on (`make serve ARGS="--shards 2"`).
MODEL ?= build/demo/co2.safetensors
CO2 := streamrnn/data/co2_mauna_loa.csv
# Pinned, so that it is always the same that we are compared with. For Linux on x86-64, PyPI's build
# brings CUDA (gigabytes); pip prefers a build for the CPU alone (2.13.0+cpu) where an index that it
# knows has one (PIP_EXTRA_INDEX_URL).
TORCH ?= torch==2.13.0

# Two installations at once in one .venv would trip over each other.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo demo-vad demo-agreement serve test peers check bench bench-training docs gpu gpu-wheels soak fuzz clean

help:
	@echo "make demo    train, serve, stream and compare, by itself"
	@echo "make demo-vad  bring a voice activity detector, serve 1,000 microphones, compare"
	@echo "make demo-agreement  let an LSTM carry a subject's number, draw the unit that does"
	@echo "make serve   serve MODEL ($(MODEL))"
	@echo "make test    run the tests on all cores; ARGS=--cov says what they cover,"
	@echo "             ARGS=\"-m 'not slow'\" runs the quick ones"
	@echo "make peers   install what the comparisons need: PyTorch, ONNX Runtime, OpenVINO, scikit-learn,"
	@echo "             and servers to be compared with, Triton too, into build/peers"
	@echo "make check   lint, format, types, who imports whom"
	@echo "make bench   measure against peers and the machine's limits: 5 minutes, a page of this"
	@echo "             machine in docs/measured; ARGS=\"throughput --rounds 21\" measures one thing"
	@echo "make bench-training  train on ten public series beside PyTorch, baselines and boosting"
	@echo "make docs    build the documentation into build/docs"
	@echo "make gpu     on a machine with a GPU: all that is to be seen, into build/gpu"
	@echo "make gpu-wheels  what a machine with a GPU and no network needs, into build/wheels"
	@echo "make soak    run the tests that take long"
	@echo "make fuzz    attack a live server in every way known, ten million messages"
	@echo "make clean   remove what was built, .venv too"

demo: $(VENV)/installed
	$(BIN)/streamrnn demo -o build/demo/co2.safetensors $(ARGS)

# Of the wheel the file of the network alone is used, not the packages that it depends on.
SILERO ?= silero-vad==6.2.3
demo-vad: $(VENV)/installed-vad build/silero
	$(BIN)/streamrnn demo vad --silero build/silero $(ARGS)

build/silero: | $(VENV)/bin/python
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $@ '$(SILERO)'

demo-agreement: $(VENV)/installed
	$(BIN)/streamrnn demo agreement -o build/demo/agreement.safetensors \
	    --plot build/demo/agreement.png $(ARGS)

serve: $(VENV)/installed $(MODEL)
	$(BIN)/streamrnn serve $(MODEL) $(ARGS)

build/demo/co2.safetensors: | $(VENV)/installed
	mkdir -p $(@D)
	rm -f $@.checkpoint
	$(BIN)/streamrnn train $(CO2) --predict co2 --time date -o $@

# A worker a core; a file's tests stay together, for they share servers. The order is conftest's.
# Byte code is written, wherever the environment forbids it: some 250 programs are started. A worker
# has one core: more threads of NumPy's would wait for each other in busy loops. A worker that crashes
# ends the run: xdist would give another one in its place files that are done, and wait for ever.
test: $(VENV)/installed-test
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart=0 $(ARGS)

peers: $(VENV)/installed-peers $(PEERS)/installed

soak: $(VENV)/installed-test
	$(BIN)/python -m pytest -m soak --timeout=0 $(ARGS)

fuzz: $(VENV)/installed-test
	$(BIN)/python -m tests.fuzz $(ARGS)

bench: $(VENV)/installed
	$(BIN)/streamrnn bench $(if $(ARGS),$(ARGS),all docs/measured)

# The tables come out of packages that are downloaded, not installed: see docs/training.md.
bench-training: $(VENV)/installed-peers
	mkdir -p build/training
	$(BIN)/streamrnn bench training --json build/training/outcomes.jsonl \
	    --markdown build/training/table.md $(ARGS)

# Beside cuDNN too, if PyTorch with CUDA is there. Without a network: with the folder WHEELS, which
# `make gpu-wheels` fills on another machine, PYTHON runs as it is and no .venv is made.
WHEELS ?= build/wheels
GPU_OUT ?= build/gpu
ifneq ($(wildcard $(WHEELS)/*.whl),)
gpu:
	PYTHON=$(PYTHON) bench/gpu/run.sh $(WHEELS) $(GPU_OUT) $(ARGS)
else
gpu: $(VENV)/installed-test
	PYTHON=$(BIN)/python bench/gpu/run.sh $(WHEELS) $(GPU_OUT) $(ARGS)
endif

gpu-wheels:
	$(PYTHON) bench/gpu/wheels.py collect $(WHEELS) $(ARGS)

check: $(VENV)/installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# A link that leads nowhere fails it.
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
	@echo "build/docs/index.html"

clean:
	rm -rf $(VENV) build dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# The stamps are younger than the project files they were installed from.
$(VENV)/installed: $(PROJECTS) | $(VENV)/bin/python
	$(INSTALL) -e '.[train]'
	touch $@

$(VENV)/installed-vad: $(PROJECTS) | $(VENV)/bin/python
	$(INSTALL) -e '.[train,vad]'
	touch $@ $(VENV)/installed

$(VENV)/installed-test: $(PROJECTS) | $(VENV)/bin/python
	$(INSTALL) -e '.[test]'
	touch $@ $(VENV)/installed

$(VENV)/installed-peers: $(PROJECTS) | $(VENV)/bin/python
	$(INSTALL) -e '.[peers,test]' '$(TORCH)'
	touch $@ $(VENV)/installed $(VENV)/installed-test

# Servers to be compared with, apart from what is measured. Of Triton the wheel brings the program;
# with NumPy 2 its Python backend answers with empty outputs.
$(PEERS)/installed: | $(VENV)/bin/python
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' 'onnx>=1.16' \
	    'onnxruntime>=1.18' 'pyzmq>=26' 'msgpack>=1.0.8' 'grpcio>=1.60' 'numpy<2'
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    'nvidia-pytriton==0.7.0'
	touch $@

$(VENV)/installed-check: $(PROJECTS) | $(VENV)/bin/python
	$(INSTALL) -e '.[check,test]'
	touch $@ $(VENV)/installed $(VENV)/installed-test

$(VENV)/installed-docs: $(PROJECTS) | $(VENV)/bin/python
	$(INSTALL) -e '.[docs]'
	touch $@ $(VENV)/installed
