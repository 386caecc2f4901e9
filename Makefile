PYTHON ?= python3
BIN := .venv/bin
comma := ,
# Errors alone: where pip looks for packages first, and what it thinks of its own age, is no news here.
PIP = $(BIN)/python -m pip --quiet --quiet
# One thread a process: the parallelism is in the test workers and in the runs of the demo.
export OMP_NUM_THREADS ?= 1
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Folder of a Detectron2 that this Python can import, if any: the tests of its plugin then run, and are skipped otherwise.
DETECTRON2 := $(shell $(PYTHON) -c "import importlib.util, pathlib; s = importlib.util.find_spec('detectron2'); \
	print(pathlib.Path(s.origin).parents[1] if s and s.origin else '')" 2>/dev/null)

.PHONY: help env test test-all lint docs demo demo-full compare-demo benchmark gpu-check constraints wheel clean

help:
	@echo "make env           make the environment .venv, with the versions of constraints.txt"
	@echo "make test          run the tests that a change needs; make test-all runs the slow ones too"
	@echo "make lint          run ruff, mypy and import-linter"
	@echo "make docs          build the site in build/site"
	@echo "make demo          train with and without GH on small data, and report: detectors on foggy streets (on"
	@echo "                   Detectron2 where it can be imported; ENGINE=native takes the native engine), then retrieval;"
	@echo "                   make demo-full takes longer trainings"
	@echo "make compare-demo  weightings compared over seeds, CDAN on embedded digits"
	@echo "make benchmark     measure what harmonization costs a training step"
	@echo "make gpu-check     check on a GPU, in 8 minutes, that harmonization is exact and what it costs"
	@echo "make wheel         build dist/*.whl, which holds the configurations too"
	@echo "make constraints   renew constraints.txt, for every platform and Python that is supported"
	@echo "make clean         remove the environment and everything generated"

env: $(BIN)/.installed

$(BIN)/.installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --upgrade pip
	$(PIP) install --constraint constraints.txt --editable ".[dev$(if $(DETECTRON2),$(comma)detectron2)]"
	$(if $(DETECTRON2),echo "$(DETECTRON2)" > "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/detectron2.pth")
	@touch $@

test: env
	$(PYTEST) -m "not slow"

test-all: test
	$(PYTEST) -m slow

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

demo: env
	$(BIN)/gh-downstream demo --output outputs/demo $(if $(ENGINE),--engine $(ENGINE))

demo-full: env
	$(BIN)/gh-downstream demo --full --output outputs/demo-full $(if $(ENGINE),--engine $(ENGINE))

compare-demo: env
	$(BIN)/gh-downstream compare --task digits --methods cdan --weightings sum,gh,gh++,gh++:adaptive --seeds 3 --output outputs/compare-demo

benchmark: env
	$(BIN)/gh-downstream benchmark $(if $(ENGINE),--engine $(ENGINE))

gpu-check: env
	$(BIN)/gh-downstream gpu-check

constraints:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip --quiet --quiet install uv
	build/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --no-annotate \
		--custom-compile-command "make constraints" --extra dev --extra detectron2 --output-file constraints.txt pyproject.toml

wheel: env
	rm -rf build/lib  # what was removed since would come along
	$(PIP) wheel --no-deps --wheel-dir dist .

docs/harmonization.png: env
	$(BIN)/python docs/harmonization.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist datasets/mini_cityscapes datasets/mini_scenes outputs *.egg-info
