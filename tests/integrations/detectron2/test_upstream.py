"""Detectron2's own tests of its trainers, from its checkout where there is one, with the hook in every trainer."""

import importlib.util
import unittest
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import META_ARCH_REGISTRY

from gh_downstream.integrations.detectron2 import GradientHarmonizationHook
from tests.integrations.detectron2 import toy_detectors as common_detectors  # noqa: F401  # it skips where Detectron2 is missing

CASES = Path(detectron2.__file__).parents[1] / "tests" / "test_engine.py"
if not CASES.is_file():
    pytest.skip("Detectron2 is not imported from a checkout: its tests are not there", allow_module_level=True)


def load():
    spec = importlib.util.spec_from_file_location("upstream_test_engine", CASES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problems_of(module, name):
    result = unittest.TestResult()
    module.TestTrainer(name).run(result)
    for _, reason in result.skipped:
        pytest.skip(reason)
    return [text for _, text in result.failures + result.errors]


@pytest.fixture(scope="module")
def plain():
    module = load()
    # Their model is registered by its name, and it is loaded twice.
    del META_ARCH_REGISTRY._obj_map["_SimpleModel"]
    return module


@pytest.fixture(scope="module")
def harmonized(plain):
    module, reports = load(), []

    class Model(module._SimpleModel):
        """Their model has one loss."""

        def forward(self, x):
            return super().forward(x) | {"loss_da_img": self.mod.weight.square().mean()}

    class Hook(GradientHarmonizationHook):
        def after_step(self):
            super().after_step()
            reports.append(self._step.measurements.report)

    class HarmonizedTrainer(SimpleTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_hooks([Hook(weighting="gh", shared=["mod"], log_period=5)])

    module._SimpleModel, module.SimpleTrainer = Model, HarmonizedTrainer
    return module, reports


def names():
    return [line.split("(")[0].split()[1] for line in CASES.read_text().splitlines() if "    def test_" in line]


@pytest.mark.parametrize("name", names())
def test_case(plain, harmonized, name):
    module, reports = harmonized
    reports.clear()
    problems = problems_of(module, name)
    if problems and problems_of(plain, name):
        pytest.skip(f"it fails here without the hook too: {problems[0].splitlines()[-1]}")
    assert not problems, problems[0]
    if name not in ("test_default_trainer", "test_setup_config"):  # These two take no step.
        assert reports
        assert all(isinstance(report.weights, torch.Tensor) for report in reports)
