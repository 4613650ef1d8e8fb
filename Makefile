# make demo   set up and run the demo search            make test       the test suite
# make lint   style, format and types                   make test-long  the tests that take minutes
# make docs   the site, into build/site                 make clean
# make bench  the figures in docs/                     make test-avx2  as on a processor without AVX512
#                                                      make bad-input-table  docs/bad-input.md
PYTHON ?= python3
LOCKED ?=
BIN := .venv/bin

.PHONY: demo test test-avx2 test-long lint docs bad-input-table bench clean

demo: .venv/.installed
	$(BIN)/expo-search --pair demo --trials 20

test: .venv/.installed
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

# the materializer's tests (or TESTS=tests) as on a processor without AVX512; the kernel goes to a cache of its own
TESTS ?= tests/test_materializer.py tests/test_cpu_kernel.py tests/test_dtypes.py tests/test_reward_model.py
test-avx2: .venv/.installed
	PYTHONPATH=$(CURDIR)/tests/avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	CFLAGS=-march=haswell $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(TESTS)

test-long: .venv/.installed
	$(BIN)/python -m pytest -m slow

lint: .venv/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# strict: a page that is not in the navigation, or a link to nothing, fails
docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bad-input-table: .venv/.installed
	WRITE_BAD_INPUT_TABLE=1 $(BIN)/python -m pytest -q tests/test_bad_input.py

bench: .venv/.installed
	$(BIN)/python benchmarks/switch.py 2>>expo-search.log
	$(BIN)/python benchmarks/generation.py 2>>expo-search.log
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/demo.py

.venv/.installed: pyproject.toml
	@LOCKED=$(LOCKED) .ci/setup $(PYTHON)

clean:
	rm -rf .venv build dist
