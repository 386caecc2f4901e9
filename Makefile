PYTHON ?= python3
BIN := .venv/bin
comma := ,
# One thread a process: the parallelism is in the test workers and in the runs of the demo.
export OMP_NUM_THREADS ?= 1

# Folder of a Detectron2 that this Python can import, if any: the tests of its plugin then run, and are skipped otherwise.
DETECTRON2 := $(shell $(PYTHON) -c "import importlib.util, pathlib; s = importlib.util.find_spec('detectron2'); \
	print(pathlib.Path(s.origin).parents[1] if s and s.origin else '')" 2>/dev/null)

.PHONY: help env test lint demo demo-retrieval compare-demo benchmark clean

help:
	@echo "make demo            train with and without GH on small data, and report: detectors on foggy streets (on"
	@echo "                     Detectron2 where it can be imported; ENGINE=torchvision takes torchvision), then retrieval"
	@echo "make demo-retrieval  image-text retrieval alone"
	@echo "make compare-demo    weightings compared over seeds, CDAN on embedded digits"
	@echo "make test            run the test suite"
	@echo "make lint            run ruff and mypy"
	@echo "make benchmark       measure what harmonization costs a training step"
	@echo "make clean           remove the environment and everything generated"

env: $(BIN)/.installed

$(BIN)/.installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev$(if $(DETECTRON2),$(comma)detectron2)]"
	$(if $(DETECTRON2),echo "$(DETECTRON2)" > "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/detectron2.pth")
	@touch $@

test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: env
	$(BIN)/python tools/demo.py --output outputs/demo $(if $(ENGINE),--engine $(ENGINE))

demo-retrieval: env
	$(BIN)/python tools/demo.py --output outputs/demo --only retrieval

compare-demo: env
	$(BIN)/python tools/compare.py --task digits --methods cdan --weightings sum,gh,gh++,gh++:adaptive --seeds 3 --output outputs/compare-demo

benchmark: env
	$(BIN)/python tools/benchmark.py $(if $(ENGINE),--engine $(ENGINE))

docs/harmonization.png: env
	$(BIN)/python -c "from gh_downstream.files import write_atomically; from gh_downstream.reporting import geometry, plots; \
		write_atomically('$@', plots.to_png(geometry.harmonization_figure()))"

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build datasets/mini_cityscapes datasets/mini_scenes outputs *.egg-info
