# make demo   set up and run the demo search            make test       the test suite
# make lint   ruff and mypy                             make test-long  the tests that take minutes
# make bench  the figures in README.md                 make bad-input-table  docs/bad-input.md
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long lint bad-input-table bench clean

demo: .venv/.installed
	$(BIN)/expo-search --pair demo --trials 20

test: .venv/.installed
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-long: .venv/.installed
	$(BIN)/python -m pytest -m slow

lint: .venv/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bad-input-table: .venv/.installed
	WRITE_BAD_INPUT_TABLE=1 $(BIN)/python -m pytest -q tests/test_bad_input.py

bench: .venv/.installed
	$(BIN)/python benchmarks/switch.py 2>>expo-search.log
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/demo.py

.venv/.installed: pyproject.toml
	@.ci/setup $(PYTHON)

clean:
	rm -rf .venv build dist
