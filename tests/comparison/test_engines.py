"""Which engine is chosen and alone imported, and what overrides mean for each."""

import dataclasses
import logging
import math
import re
import subprocess
import sys
import typing

import pytest

from gh_downstream.classification.methods import METHODS
from gh_downstream.classification.methods.base import HeadLayers
from gh_downstream.comparison.engines import ENGINES, LOOP_ENGINES, choose_detector, engine_of, find_engine
from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.native.config import DatasetConfig
from gh_downstream.detection.native.detector import DetectorConfig
from gh_downstream.detection.native.teacher import TeacherConfig
from gh_downstream.detection.strong_weak import StrongWeakConfig
from gh_downstream.harmonization import HarmonizationConfig
from gh_downstream.retrieval.augmentation import AugmentationConfig
from gh_downstream.retrieval.encoders import LoRAConfig
from gh_downstream.retrieval.encoders.tiny import TinyConfig
from gh_downstream.retrieval.objectives.config import AlignmentTermConfig, TaskConfig, TripletConfig
from gh_downstream.training import OptimizerConfig, TrainingConfig
from gh_downstream.training.configs import find_config, list_configs

MISSING = "import sys; sys.modules['detectron2'] = None"
BROKEN = """
import sys
class Broken:
    def find_spec(name, path, target=None):
        if name == "detectron2":
            raise AttributeError("module 'PIL.Image' has no attribute 'LINEAR'")
sys.meta_path.insert(0, Broken)
"""
SHOW = "import logging; logging.basicConfig(level='INFO', format='%(message)s')"
CHOOSE = "from gh_downstream.comparison.engines import choose_detector"
EXAMPLES = {
    "classification": "classification/digits",
    "retrieval": "retrieval/mini",
    "native": "detection/native/mini",
    "detectron2": "detection/mini/da",
}


def needs_detectron2():
    # Not "detectron2": the folder of its tests would pass for a namespace package of that name.
    pytest.importorskip("detectron2.engine", reason="needs Detectron2", exc_type=ImportError)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_loop_imports_no_workload():
    result = python("import gh_downstream.comparison.runs, sys; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    modules = set(result.stdout.split())
    assert "gh_downstream.comparison.presets" in modules
    workloads = {f"gh_downstream.{name}" for name in ("detection", "retrieval", "classification")}
    assert not modules & {"torchvision", "detectron2", *workloads}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_leaves_the_others_alone(name):
    if name == "detectron2":
        needs_detectron2()
    code = "import sys; from gh_downstream.comparison.engines import find_engine"
    result = python(f"{code}; find_engine('{name}').load('{find_config(EXAMPLES[name])}', []); print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    modules = set(result.stdout.split())
    packages = {
        "classification": "gh_downstream.classification",
        "retrieval": "gh_downstream.retrieval",
        "native": "gh_downstream.detection.native",
        "detectron2": "gh_downstream.detection.detectron2",
    }
    assert modules & set(packages.values()) == {packages[name]}


def test_native_is_taken_as_asked_for_without_a_look_at_detectron2():
    result = python(f"{SHOW}\n{CHOOSE}; import sys; choose_detector('native'); print(*sys.modules)")
    assert result.stderr.splitlines()[0] == "engine: native, as asked for"
    assert not set(result.stdout.split()) & {"detectron2", "gh_downstream.detection.detectron2"}


def test_detectron2_is_taken_where_it_can_be_imported(caplog):
    needs_detectron2()
    with caplog.at_level(logging.INFO):
        assert choose_detector() == "detectron2"
    (line,) = caplog.messages
    assert line.startswith("engine: detectron2, which can be imported here")


@pytest.mark.parametrize(
    ("state", "reason"),
    [(MISSING, "pip install --no-build-isolation 'git+https"), (BROKEN, "'PIL.Image' has no attribute 'LINEAR'")],
    ids=["missing", "broken"],
)
def test_native_is_taken_where_detectron2_cannot_be_imported(state, reason):
    result = python(f"{state}\n{SHOW}\n{CHOOSE}; print(choose_detector())")
    assert result.stdout.strip() == "native"
    (line,) = result.stderr.splitlines()
    assert line.startswith("engine: native, as Detectron2 cannot be imported here: ")
    assert reason in line


def test_an_unknown_engine_is_an_error():
    with pytest.raises(ValueError, match=r"no engine 'yolo': .*native, detectron2"):
        find_engine("yolo")


@pytest.mark.parametrize("name", ENGINES)
def test_every_key_of_an_engine_is_one_of_its_configurations(name, tmp_path):
    if name == "detectron2":
        needs_detectron2()
    engine = ENGINES[name]
    values = {"output": tmp_path, "seed": 7, "steps": 9, "weighting": "gh", "scope": "all", "weights": "w.pt"}
    if "method" in engine.keys:
        values["method"] = "dann"
    overrides = ["optimizer.warmup_steps=0"] if name in ("retrieval", "native") else []
    overrides += [engine.override(what, value) for what, value in values.items()]
    content = engine.content(engine.load(find_config(EXAMPLES[name]), overrides))
    for what, value in values.items():
        found = content
        for part in engine.keys[what].split("."):
            found = found[part]
        assert str(found) == str(value)


@pytest.mark.parametrize("name", ENGINES)
def test_a_metric_that_there_will_not_be_is_refused_before_the_training(name):
    if name == "detectron2":
        needs_detectron2()
    engine = ENGINES[name]
    engine.load(find_config(EXAMPLES[name]), [], engine.metric)
    with pytest.raises(ValueError, match="nowhere/nothing"):
        engine.load(find_config(EXAMPLES[name]), [], "nowhere/nothing")


@pytest.mark.parametrize("metric", ["bbox/AP", "bbox/AP75", "bbox/AP50-traffic light", "streets/bbox/AP50"])
def test_detectron2_has_the_metrics_of_its_evaluator(metric):
    needs_detectron2()
    ENGINES["detectron2"].load(find_config(EXAMPLES["detectron2"]), [], metric)


@pytest.mark.parametrize("metric", ["bbox/AP500", "bbox/APs", "bbox/AP-car", "bbox/AP50-", "AP50", "mybbox/AP50"])
def test_detectron2_has_no_other_metric(metric):
    needs_detectron2()
    with pytest.raises(ValueError, match=f"no metric '{metric}': there are bbox/AP, "):
        ENGINES["detectron2"].load(find_config(EXAMPLES["detectron2"]), [], metric)


def test_detectron2_takes_key_equals_value():
    needs_detectron2()
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER.*KEY=VALUE"):
        ENGINES["detectron2"].load(find_config(EXAMPLES["detectron2"]), ["SOLVER.MAX_ITER"])


def test_detectron2_takes_a_key_and_its_value_apart():
    needs_detectron2()
    overrides = ["GH.WEIGHTING", "cagrad:c=0.4", "SEED=3"]
    config = ENGINES["detectron2"].load(find_config(EXAMPLES["detectron2"]), overrides)
    assert (config.GH.WEIGHTING, config.SEED) == ("cagrad:c=0.4", 3)


def test_what_an_engine_has_not_cannot_be_set():
    with pytest.raises(ValueError, match="engine retrieval have no method"):
        ENGINES["retrieval"].override("method", "cdan")


def folder_of(name):
    """The engine that the folder of a configuration says."""
    workload, _, rest = name.partition("/")
    return {"detection": "native" if rest.startswith("native/") else "detectron2"}.get(workload, workload)


def test_every_packaged_configuration_has_the_engine_of_its_folder():
    names = list_configs()
    assert {name: engine_of(find_config(name)).name for name in names} == {name: folder_of(name) for name in names}


@pytest.mark.parametrize("engine", LOOP_ENGINES, ids=lambda engine: engine.name)
def test_the_keys_of_an_engine_are_its_own(engine):
    fields = {other.name: set(other.schema.__dataclass_fields__) for other in LOOP_ENGINES}
    assert engine.own_keys <= fields.pop(engine.name)
    assert not any(engine.own_keys & keys for keys in fields.values())
    assert hasattr(engine.module, "build_trainer")


def test_a_file_of_the_user_s_own(tmp_path):
    (tmp_path / "base.yaml").write_text("encoder: tiny\n")
    (tmp_path / "own.yaml").write_text("_base_: base.yaml\nbatch_size: 8\n")
    assert engine_of(tmp_path / "own.yaml") is find_engine("retrieval")
    (tmp_path / "own.yaml").write_text("MODEL: {DEVICE: cpu}\n")
    assert engine_of(tmp_path / "own.yaml") is find_engine("detectron2")


@pytest.mark.parametrize("content", ["batch_size: 8\n", "encoder: tiny\nbackbone: digits\n"])
def test_where_the_keys_do_not_tell_the_user_has_to(tmp_path, content):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"own\.yaml.*--engine"):
        engine_of(tmp_path / "own.yaml")


def sections(kind):
    """A dataclass, and those that stand in it."""
    parts = [part for hint in typing.get_type_hints(kind).values() for part in (hint, *typing.get_args(hint))]
    return {kind}.union(*(sections(part) for part in parts if dataclasses.is_dataclass(part)))


def numbers(kind):
    """The attributes of a dataclass that are numbers, or lists or mappings of them, with their types."""
    hints = typing.get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if re.search(r"\b(int|float)\b", str(hint))}


PARTS = {
    OptimizerConfig: {},
    TrainingConfig: {"steps": 3},
    HarmonizationConfig: {},
    AlignmentConfig: {},
    DetectorConfig: {},
    DatasetConfig: {"root": "x"},
    TaskConfig: {},
    TripletConfig: {"weight": 1.0},
    AugmentationConfig: {},
    AlignmentTermConfig: {"weight": 1.0},
    LoRAConfig: {"targets": ["x"]},
    TinyConfig: {},
    StrongWeakConfig: {},
    HeadLayers: {},
    TeacherConfig: {},
    **{method.Options: {} for method in METHODS.values() if method.Options is not None},
}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, True, "1", -3])
def test_no_number_of_any_configuration_is_taken_unseen(wrong):
    whole = {engine.schema: vars(engine.load(find_config(EXAMPLES[engine.name]), [])) for engine in LOOP_ENGINES}
    for kind, values in (PARTS | whole).items():
        for name, hint in numbers(kind).items():
            if (name, wrong) != ("logit_bias", -3):
                container = {"list": [1, wrong], "dict": {"x": wrong}}.get(getattr(hint, "__name__", ""), wrong)
                with pytest.raises(ValueError, match=rf"^{name}\S* must be "):
                    kind(**values | {name: container})


@pytest.mark.parametrize("engine", LOOP_ENGINES, ids=lambda engine: engine.name)
def test_those_are_all_sections_of_an_engine_that_have_numbers(engine):
    assert {kind for kind in sections(engine.schema) if numbers(kind)} - {engine.schema} <= PARTS.keys()
