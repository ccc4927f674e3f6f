# Everything runs in one virtual environment, made on first use: `make demo` and `make test` need only Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Large buffers stay with the process instead of going back to the kernel after each step (page faults cost up to half of it),
# and each process that is started finds the package compiled, whatever the environment says of bytecode.
RUN := PYTHONDONTWRITEBYTECODE= MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184
# Tests run in so many processes, each of one thread and up to 3 GB: one more than two cores, as some tests wait.
WORKERS ?= 3
BESIDE := -n $(WORKERS) --dist worksteal

.PHONY: demo test test-slow test-oldest docs benchmarks lint clean

demo: $(VENV)/.installed
	$(RUN) $(BIN)/convspark demo

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(RUN) $(BIN)/python -m pytest -m "not slow" $(BESIDE)

test-slow: $(VENV)/.installed
	$(RUN) $(BIN)/python -m pytest -m slow

# The default tests with the oldest versions that pyproject.toml declares, in an environment of their own. What these
# versions say of libraries newer than themselves is no error.
test-oldest: .venv-oldest/.installed
	$(RUN) .venv-oldest/bin/python -m pytest -m "not slow" $(BESIDE) -W ignore::DeprecationWarning -W ignore::FutureWarning

.venv-oldest/.installed: pyproject.toml
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct --editable '.[dev]'
	touch $@

# The pages under docs/ as a site, in build/docs/index.html. Whatever leads nowhere is an error.
docs: $(VENV)/.installed
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs

# The tables of the README and docs/speed.md, about half an hour on two cores; PICTURES is a folder of photographs.
benchmarks: $(VENV)/.installed
	$(RUN) $(BIN)/python -m benchmarks.speed --again --parts encoder
	$(RUN) $(BIN)/python -m benchmarks.speed --again --precision bf16 resnet50
	$(RUN) $(BIN)/python -m benchmarks.steps
	$(RUN) $(BIN)/python -m benchmarks.kernels
	$(RUN) $(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.feeding $(PICTURES)
	$(RUN) $(BIN)/python -m benchmarks.scaling --again

lint: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest dist build
