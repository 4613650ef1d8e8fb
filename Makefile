# make demo   set up and run the demo search            make test       the test suite
# make lint   ruff and mypy                             make bench      the figures in README.md
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/.installed
	$(BIN)/expo-search --pair demo --trials 20

test: .venv/.installed
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/.installed
	$(BIN)/python benchmarks/switch.py 2>>expo-search.log
	$(BIN)/python benchmarks/demo.py

.venv/.installed: pyproject.toml
	@.ci/setup $(PYTHON)

clean:
	rm -rf .venv build dist
