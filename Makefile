# `make demo` and `make test` need Python 3.11 and make, and set up everything else by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready

.PHONY: demo test check interop bench bench-http bench-split soak clean

demo: $(READY)
	$(BIN)/iris-kv demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/deptry server
	$(BIN)/iris-kv instructions check --strict instructions

interop: $(READY)
	$(BIN)/python -m tests.interop

# Ten minutes of faults at random moments and of inputs at random; the seeds are printed.
soak: $(READY)
	$(BIN)/python -m tests.soak

bench: $(READY) $(BENCH_READY)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/store.py

bench-http: $(READY)
	$(BIN)/python benchmarks/over_http.py

bench-split: $(READY)
	$(BIN)/python benchmarks/split.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

$(BENCH_READY): $(READY) benchmarks/constraints.txt
	$(BIN)/python -m pip install --quiet --require-hashes --requirement benchmarks/constraints.txt
	touch $(BENCH_READY)

clean:
	rm -rf $(VENV) .cache dist
