PYTHON ?= python3
BIN := .venv/bin
# One thread a process: the parallelism is in the test workers and in the runs of the demo.
export OMP_NUM_THREADS ?= 1

.PHONY: help env test lint demo benchmark clean

help:
	@echo "make demo       train a domain-adaptive detector with and without GH on small foggy streets, and report"
	@echo "make test       run the test suite"
	@echo "make lint       run ruff and mypy"
	@echo "make benchmark  measure what harmonization costs a training step"
	@echo "make clean      remove the environment and everything generated"

env: $(BIN)/.installed

$(BIN)/.installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: env
	$(BIN)/python tools/demo.py --output outputs/demo

benchmark: env
	$(BIN)/python tools/benchmark.py

docs/harmonization.png: env
	$(BIN)/python -c "from gh_downstream.reporting import geometry, plots, write_atomically; \
		write_atomically('$@', plots.to_png(geometry.harmonization_figure()))"

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build data outputs *.egg-info
