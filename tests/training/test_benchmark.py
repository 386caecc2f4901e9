"""The steps that the benchmark compares are those of the trainer, for every engine; no time is tested."""

import copy
import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")
pytest.importorskip("timm", reason="needs pip install 'gh_downstream[classification]'")
pytest.importorskip("sklearn", reason="needs pip install 'gh_downstream[classification]'")

from gh_downstream import GH, GHPlusPlus, GHPlusPlusOfficial, Harmonizer, Sum
from gh_downstream.classification.methods import METHODS
from gh_downstream.comparison.engines import find_engine
from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes
from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes
from gh_downstream.training import derive_seed
from gh_downstream.training.benchmark import FORK, training_steps
from gh_downstream.training.configs import find_config
from gh_downstream.training.costs import SWEEPS, Workload

pytestmark = pytest.mark.slow

PLAIN, PUBLISHED, PCGRAD = "plain sum", "GH++ as published, three backward passes", "PCGrad of TorchJD, exact"
PERIOD = "GH++, exact, period 4"
SIZE = 4


@dataclasses.dataclass
class Example:
    """Steps, and what they are made of."""

    engine: str
    config: Any
    workload: Workload

    @classmethod
    def build(cls, engine, config, *overrides):
        trained = find_engine(engine)
        settings = trained.load(find_config(config), overrides)
        return cls(engine, settings, training_steps(trained.module.build_trainer, settings, engine))

    def losses(self, harmonize_features=None):
        """The losses of the batch, the weights and the random numbers of a step, by side; nothing else of a step."""
        workload, config = self.workload, self.config
        workload.reset()
        step = config.training.steps // 2
        batch = find_engine(self.engine).module.build_trainer(config).batches(step, 0, 1)
        batch = {key: value for key, value in batch.items() if key not in ("file_names", "skipped")}
        workload.model.harmonize_features = harmonize_features
        set_seed(derive_seed(config.training.seed, "model", step, 0))
        return {side: sum(losses.values()) for side, losses in workload.model(**batch).items()}

    def by_hand(self, weighting, scope="shared"):
        """What a harmonizer measures, and the gradients that it leaves."""
        model = self.workload.model
        after = self.engine == "classification" and scope == "shared" and weighting != Sum()
        model.measured_tasks = {} if after else None
        harmonizer = Harmonizer(weighting, model.shared, model=model, scope=scope)
        report = harmonizer.backward(self.losses(), model.trade_offs)
        return report, self._taken()

    def forked_by_hand(self):
        sum(self.losses(GHPlusPlus()).values()).backward()
        return self._taken()

    def _taken(self):
        found = {name: parameter.grad for name, parameter in self.workload.model.named_parameters()}
        self.workload.model.zero_grad()
        return {name: gradient for name, gradient in found.items() if gradient is not None}


def gradients(workload, variant):
    """Run a step; the gradients that its last update gets."""
    found = {}

    def remember(*_):
        for name, parameter in workload.model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.clone()

    handle = register_optimizer_step_pre_hook(remember)
    workload.run(variant)
    handle.remove()
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # The published code sums in float32; a single entry may be all cancellation, and so a bias before a batch norm.
        error = torch.linalg.vector_norm(found[name] - gradient)
        assert error <= 1e-3 * torch.linalg.vector_norm(gradient) + 1e-5, name


@pytest.fixture
def any_precision():
    """accelerate holds one precision for each process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    """Small steps of each engine, whose gradient is not clipped."""
    root = tmp_path_factory.mktemp("data")
    scenes, streets = root / "scenes", root / "streets"
    make_mini_scenes(scenes, train=20, target=20, val=1, test=1)
    make_mini_cityscapes(streets, train=8, val=4, seed=3, height=96, width=192)
    sizes = ("min_size=64", "max_size=128", "rpn_post_nms_top_n=20", "roi_batch_size=8")
    common = (f"output={root / 'output'}", "training.init_from=null", "optimizer.clip_norm=null")
    return {
        "classification": [*common, f"batch_size={SIZE}"],
        "retrieval": [
            *common,
            *(f"source.path={scenes}/source/train.csv", f"target.path={scenes}/target/train.jsonl", "target.side=both"),
            *(f"validation.source.path={scenes}/source/test.csv", f"validation.target.path={scenes}/target/test.jsonl"),
            *("encoder_options={width: 32, layers: 1}", "batch_size=8"),
        ],
        "native": [
            *common,
            *(f"{name}.root={streets}" for name in ("source", "target", "validation.foggy")),
            *(f"detector.{size}" for size in sizes),
            "batch_size=1",
        ],
    }


EXAMPLES = {
    "classification": ("classification/digits", "method=dann"),
    "retrieval, image tower": ("retrieval/mini", "alignment.mmd.side=image"),
    "retrieval, both towers": ("retrieval/mini", "alignment.mmd.side=both"),
    "detection": ("detection/native/mini",),
}


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request, overrides):
    """Steps whose gradients conflict at the parameters and, where the model forks, at the features."""
    config, *options = EXAMPLES[request.param]
    engine = {"detection": "native"}.get(workload := config.partition("/")[0], workload)
    for seed in range(20):
        example = Example.build(engine, config, *overrides[engine], *options, f"training.seed={seed}")
        conflicting = bool(example.by_hand(GH())[0].conflict)
        if conflicting and engine == "retrieval":
            example.forked_by_hand()
            conflicting = bool(example.workload.model.measurements.report.conflict)
        if conflicting:
            return example
    raise AssertionError("no conflict in twenty seeds")


@pytest.mark.parametrize(
    ("variant", "weighting", "scope"),
    [
        (PLAIN, Sum(), "shared"),
        ("GH, exact", GH(), "shared"),
        ("GH++, exact", GHPlusPlus(), "shared"),
        (PERIOD, GHPlusPlus(), "shared"),
        (PUBLISHED, GHPlusPlusOfficial(), "all"),
        (PCGRAD, GH(), "shared"),  # Of two tasks they are the same.
    ],
)
def test_a_step_has_the_gradient_it_is_named_after(example, variant, weighting, scope):
    if variant not in example.workload.steps:
        pytest.skip("needs pip install 'gh_downstream[torchjd]'")
    _, expected = example.by_hand(weighting, scope)
    for _ in range(2):  # Each begins at the same state; the second time the period holds its weights.
        assert_same(gradients(example.workload, variant), expected)


def test_the_fork_is_a_variant_where_the_model_can(example):
    assert (FORK in example.workload.steps) == (example.engine != "classification")
    if FORK in example.workload.steps:
        assert_same(gradients(example.workload, FORK), example.forked_by_hand())


def test_only_the_published_recipe_weighs_private_parameters(example):
    workload = example.workload
    shared = tuple(f"{module}." for module in workload.model.shared)
    plain = gradients(workload, PLAIN)
    private = [name for name in plain if not name.startswith(shared)]
    assert private
    for variant in workload.steps:
        found = gradients(workload, variant)
        assert all(gradient.isfinite().all() for gradient in found.values()), variant
        kept = all(torch.allclose(found[name], plain[name], rtol=1e-4, atol=1e-6) for name in private)
        assert kept == (variant != PUBLISHED), variant
        assert any(not torch.equal(found[name], plain[name]) for name in plain) == (variant != PLAIN), variant


@pytest.mark.parametrize("config", sorted({config for config, *_ in EXAMPLES.values()}))
def test_a_step_clips_and_updates_and_begins_at_the_same_weights(config, overrides):
    engine = {"detection": "native"}.get(workload := config.partition("/")[0], workload)
    workload = Example.build(engine, config, *overrides[engine], "optimizer.clip_norm=0.01").workload
    workload.reset()
    initial = {name: value.clone() for name, value in workload.model.state_dict().items()}
    for variant in workload.steps:
        norm = torch.nn.utils.get_total_norm(gradients(workload, variant).values())
        assert norm.item() == pytest.approx(0.01, rel=1e-3), variant
        assert not all(torch.equal(value, initial[name]) for name, value in workload.model.state_dict().items())
        workload.reset()
        assert all(torch.equal(value, initial[name]) for name, value in workload.model.state_dict().items())


@pytest.mark.parametrize("config", ["classification/digits", "detection/native/mini", "retrieval/mini"])
def test_steps_run_in_the_precision_of_the_configuration(config, overrides, any_precision):
    engine = {"detection": "native"}.get(workload := config.partition("/")[0], workload)
    workload = Example.build(engine, config, *overrides[engine], "training.mixed_precision=bf16").workload
    types = set()
    layer = next(module for module in workload.model.modules() if isinstance(module, torch.nn.Conv2d))
    layer.register_forward_hook(lambda module, given, output: types.add(output.dtype))
    for variant in workload.steps:
        workload.run(variant)
    assert types == {torch.bfloat16}
    assert "bf16" in workload.description


# Image classification


def digits(overrides, method, *options):
    config = "classification/digits-ssrt" if method == "ssrt" else "classification/digits"
    chosen = (f"method={method}", *(["harmonization.weighting=none"] if method == "source_only" else []))
    return Example.build("classification", config, *overrides["classification"], *chosen, *options).workload


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_steps_and_harmonizing_costs_a_backward_pass(overrides, method):
    workload = digits(overrides, method)
    flops = {variant: workload.flops(variant) for variant in workload.steps}
    if method == "source_only":
        assert list(flops) == [PLAIN]
        assert workload.parameters()[1] == 0
        return
    assert flops["GH, exact"] == flops["GH++, exact"]
    assert flops[PLAIN] < flops[PERIOD] < flops["GH, exact"] < flops[PUBLISHED]


def backward_flops(*layers, inputs=None):
    """Of one backward pass through layers, from the images of both domains or from other inputs."""
    outputs = torch.randn(2 * SIZE, 1, 28, 28) if inputs is None else inputs.requires_grad_()
    for layer in layers:
        outputs = layer(outputs)
    with FlopCounterMode(display=False) as counter:
        outputs.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("method", "options", "passes"),
    [("dann", (), 1), ("mcd", ("method_options.mcd={generator_steps: 3, entropy_weight: 0}",), 3), ("gvb", (), 1)],
)
def test_harmonizing_adds_the_backward_pass_through_the_shared_part(overrides, method, options, passes):
    workload = digits(overrides, method, *options)
    model = workload.model
    shared = backward_flops(model.backbone)
    # Both losses come through the classifier and the bridge, that of the task with the source alone; or through both
    # classifiers, not trained in that update.
    for name in {"gvb": ["classifier", "bridge"], "mcd": ["classifier", "classifier2"]}.get(method, []):
        layer = copy.deepcopy(getattr(model, name)).requires_grad_(method == "gvb")
        rows = SIZE if method == "gvb" else 2 * SIZE
        shared += backward_flops(layer, inputs=torch.randn(rows, model.backbone.out_features))
    assert workload.flops("GH, exact") - workload.flops(PLAIN) == passes * shared > 0


def test_flops_of_the_plain_step_are_those_of_its_passes_forward_and_backward(overrides):
    workload = digits(overrides, "source_only")
    with FlopCounterMode(display=False) as counter:
        workload.model.classify(torch.randn(SIZE, 1, 28, 28)).sum().backward()
    assert workload.flops(PLAIN) == counter.get_total_flops() > 0


@pytest.mark.parametrize("method", ["mcd", "dwl"])
def test_a_step_has_all_phases(overrides, method):
    workload = digits(overrides, method)
    model, seen = workload.model, []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["phase"]), with_kwargs=True)
    for variant in workload.steps:
        seen.clear()
        workload.run(variant)
        assert seen == [phase.name for phase in model.phases], variant


def test_what_a_training_left_in_its_folder_is_neither_read_nor_changed(overrides, tmp_path):
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    digits(overrides, "dann", f"output={tmp_path}").run("GH, exact")
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == b"no checkpoint"


# Retrieval


@pytest.mark.parametrize("side", ["image", "both"])
def test_a_round_runs_backward_through_a_tower_as_often_as_documented(overrides, side):
    options = [*overrides["retrieval"], f"alignment.mmd.side={side}"]
    workload = Example.build("retrieval", "retrieval/mini", *options).workload
    counts = {"encoder.image": 0, "encoder.text": 0}

    def count(name, module, arguments, features):
        def counted(gradient):
            counts[name] += 1

        features.register_hook(counted)

    for name in counts:
        workload.model.get_submodule(name).register_forward_hook(partial(count, name))
    expected = {
        PLAIN: 4 * 2,  # source and target
        "GH, exact": 4 * 3,  # source and target for the alignment, source for the task
        "GH++, exact": 4 * 3,
        PERIOD: 3 + 3 * 2,
        FORK: 4 * 2,
        PUBLISHED: 4 * 5,  # as exact, and once more for the weighted loss
    }
    for variant, passes in expected.items():
        counts.update(dict.fromkeys(counts, 0))
        for _ in range(SWEEPS):
            workload.run(variant)
        # A text tower that nothing aligns is the task's alone.
        assert counts == {name: passes if name in workload.model.shared else 4 for name in counts}, variant


def test_the_realistic_configuration_shares_a_tower_or_both(overrides):
    path = find_config("retrieval/benchmark_ViT-B-32")
    assert find_engine("retrieval").load(path, []).encoder == "openclip:ViT-B-32"
    own = [option for option in overrides["retrieval"] if not option.startswith(("target.side", "batch_size"))]
    for on, expected in (("image", ["image"]), ("both", ["image", "text"])):
        options = [*own, "encoder=tiny", "init=random", f"alignment.mmd.side={on}"]
        workload = Example.build("retrieval", "retrieval/benchmark_ViT-B-32", *options).workload
        assert workload.model.shared == [f"encoder.{tower}" for tower in expected]
        for part in ("4 source images of 3 x 64 x 64", "4 source tokens", "4 target images", "4 target tokens"):
            assert part in workload.description


def test_a_damaged_image_is_skipped_as_in_training(overrides, tmp_path):
    make_mini_scenes(tmp_path / "scenes", train=8, target=8, val=1, test=1)
    next((tmp_path / "scenes" / "source" / "images" / "train").iterdir()).write_bytes(b"")
    data = [f"source.path={tmp_path}/scenes/source/train.csv", f"target.path={tmp_path}/scenes/target/train.jsonl"]
    options = [*overrides["retrieval"], *data]  # All images of the source.
    workload = Example.build("retrieval", "retrieval/mini", *options, "max_skipped=0.2").workload
    assert all(gradient.isfinite().all() for gradient in gradients(workload, "GH, exact").values())
    with pytest.raises(ValueError, match="images/train"):
        Example.build("retrieval", "retrieval/mini", *options, "max_skipped=0")


def test_a_training_that_aligns_nothing_has_the_plain_step_alone(overrides):
    options = [*overrides["retrieval"], "alignment.mmd.weight=0", "harmonization.weighting=none"]
    workload = Example.build("retrieval", "retrieval/mini", *options).workload
    assert list(workload.steps) == [PLAIN]
