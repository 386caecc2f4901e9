"""The mean teacher of the native engine: its views, its labels, what is learnt from them, and its state."""

import pytest
import torch

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")


from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.native import build_detector
from gh_downstream.detection.native.config import DatasetConfig, DetectionConfig
from gh_downstream.detection.native.data import StepBatches
from gh_downstream.detection.native.engine import build_trainer, evaluate_checkpoint
from gh_downstream.detection.native.model import adaptive_model
from gh_downstream.training import ConfigError, load_config
from gh_downstream.training.configs import find_config
from tests.detection.native.adaptive_models import SMALL_ALIGNMENT, images, losses_of, reached, small, targets, total
from tests.kill import lines_of

MINI = find_config("detection/native/mini")
ALONE = ("alignment=null", "harmonization.weighting=none")
LEARNT = {
    "faster_rcnn": {"loss_classifier", "loss_objectness"},
    "retinanet": {"loss_classification"},
    "fcos": {"loss_classification"},
}


def configured(streets, output, *more):
    """A few steps of the mini task, in which an untrained teacher finds labels."""
    changes = [f"{key}.root={streets}" for key in ("source", "target", "validation.foggy")]
    changes += [f"training.{key}" for key in ("steps=4", "log_every=1", "evaluate_every=4", "checkpoint_every=2")]
    changes += ["training.init_from=null", "training.ema=0.5", f"output={output}"]
    changes += ["teacher.score_threshold=0.1", "detector.score_threshold=0.0"]
    return load_config(DetectionConfig, MINI, [*changes, *more])


def trained(*arguments):
    trainer = build_trainer(configured(*arguments))
    trainer.run()
    return trainer


def lines(folder):
    return lines_of(folder, "total")


def model_of(name="faster_rcnn", alignment=None, harmonize_features=None, pseudo_weight=1.0):
    """A small detector that takes every anchor and region, so that nothing is left to random numbers."""
    torch.manual_seed(0)
    config = small(name=name, frozen_batch_norm=True, rpn_batch_size=10_000, roi_batch_size=10_000)
    return adaptive_model(build_detector(config), alignment, harmonize_features, pseudo_weight)


# Views


def test_the_strong_view_is_of_the_weak_one_and_a_function_of_seed_and_step(streets):
    dataset = DatasetConfig(root=str(streets)).load()
    plain, taught, again, other = (
        StepBatches(dataset, dataset, 4, True, seed, views) for seed, views in ((1, None), (1, 3), (1, 0), (2, 0))
    )
    assert taught(2, 0, 1).keys() == plain(2, 0, 1).keys() == plain(3, 0, 1).keys()
    batch = taught(3, 0, 1)
    pairs = list(zip(batch["target_images"], batch["target_weak_images"], strict=True))
    for (strong, weak), image in zip(pairs, plain(3, 0, 1)["target_images"], strict=True):
        assert torch.equal(weak, image)
        assert strong.dtype == torch.uint8
        assert strong.shape == weak.shape
        assert strong.is_contiguous()
    assert sum(not torch.equal(strong, weak) for strong, weak in pairs) >= 3
    for key in ("source_images", "target_images", "target_weak_images"):
        torch.manual_seed(0)
        parts = [again(3, rank, 2)[key] for rank in range(2)]
        for a, b in zip(batch[key], parts[0] + parts[1], strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(other(3, 0, 1)["target_images"][0], batch["target_images"][0])


# Labels


@pytest.mark.parametrize("name", LEARNT)
def test_labels_are_the_detections_above_the_threshold_of_their_class(name):
    model, batch = model_of(name).eval(), images(3)
    (model.detector.roi_heads if name == "faster_rcnn" else model.detector).score_thresh = 0.0
    found = model(batch)
    scores, classes = (torch.cat([image[key] for image in found]) for key in ("scores", "labels"))
    thresholds = [1.0] * 8
    first, second = classes.unique()[:2].tolist()
    thresholds[first], thresholds[second] = scores[classes == first].median().item(), 0.0
    labels = model.pseudo_labels(batch, thresholds)
    assert sum(len(image["labels"]) for image in labels) > 1
    for image, kept in zip(found, labels, strict=True):
        which = image["scores"] >= torch.tensor(thresholds)[image["labels"]]
        which &= (image["boxes"][:, 2:] > image["boxes"][:, :2]).all(1)
        assert all(torch.equal(image[key][which], kept[key]) for key in ("boxes", "labels", "scores"))
        assert not kept["scores"].requires_grad


def test_a_batch_is_labelled_by_the_average_of_the_steps_before(streets, tmp_path):
    trainer = build_trainer(configured(streets, tmp_path, *ALONE))
    given, expected = [], []
    trainer.module.register_forward_pre_hook(lambda module, _, batch: given.append(batch), with_kwargs=True)
    for step in range(3):
        batch = trainer.batches(step, 0, 1)
        expected.append(trainer._average.module.pseudo_labels(batch["target_weak_images"], [0.1] * 8))
        trainer.train_step(batch)
        for ours, strong in zip(given[step]["target_images"], batch["target_images"], strict=True):
            assert torch.equal(ours, strong)
        assert "target_weak_images" not in given[step]
        assert all(label.keys() == {"boxes", "labels"} for label in given[step]["target_labels"])
    for batch, labels in zip(given, expected, strict=True):
        assert sum(len(label["labels"]) for label in labels)
        for ours, theirs in zip(batch["target_labels"], labels, strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert trainer.callbacks[0].metrics() == {
        "teacher/pseudo_boxes": sum(len(label["scores"]) for label in labels) / 2,
        "teacher/score": pytest.approx(torch.cat([label["scores"] for label in labels]).mean().item()),
    }


# What is learnt


@pytest.mark.parametrize("name", LEARNT)
def test_classification_is_learnt_from_labels_as_from_those_of_source(name):
    model, target, labels = model_of(name, pseudo_weight=0.25), images(3), targets(3)
    source = images(2), targets(2)
    expected = losses_of(model, target, labels)["task"]
    losses = losses_of(model, *source, target, target_labels=labels)
    assert losses.keys() == {"task"}
    plain = losses_of(model, *source)["task"]
    assert plain.keys() == losses["task"].keys()
    for key, loss in losses["task"].items():
        if not key.endswith("_pseudo"):
            torch.testing.assert_close(loss, plain[key])
    assert {key for key in plain if key.endswith("_pseudo")} == {f"{key}_pseudo" for key in LEARNT[name]}
    for key in LEARNT[name]:
        torch.testing.assert_close(losses["task"][f"{key}_pseudo"], 0.25 * expected[key])
        assert plain[f"{key}_pseudo"] == 0


@pytest.mark.parametrize("name", LEARNT)
def test_images_may_have_no_label(name):
    model = model_of(name)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    for labels in ([nothing, *targets(1)], [nothing, nothing]):
        losses = model(images(2), targets(2), images(2), target_labels=labels)
        assert total(losses).isfinite()
        gradients = reached(sum(loss for key, loss in losses["task"].items() if "_pseudo" in key), model)
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert any(gradient.count_nonzero() for gradient in gradients.values())


def test_labels_need_a_weight_and_are_checked():
    with pytest.raises(ValueError, match="give the model a pseudo_weight"):
        model_of(pseudo_weight=None)(images(1), targets(1), images(1), target_labels=targets(1))
    wrong = [{"boxes": torch.tensor([[10.0, 10.0, 20.0, 20.0]]), "labels": torch.tensor([8])}]
    with pytest.raises(ValueError, match="target image 0 of the batch: label 8"):
        model_of()(images(1), targets(1), images(1), target_labels=wrong)


def test_the_fork_takes_the_losses_on_labels_as_the_task():
    aligned = AlignmentConfig(**SMALL_ALIGNMENT, source_share=1.0)
    task_alone = lambda gramian: torch.tensor([0.0, 1.0])  # noqa: E731
    plain, forked = (model_of(alignment=aligned, harmonize_features=weighting) for weighting in (None, task_alone))
    batch = images(2), targets(2), images(2)
    expected = reached(sum(losses_of(plain, *batch, target_labels=targets(2))["task"].values()), plain)
    losses = losses_of(forked, *batch, target_labels=targets(2))
    assert {"loss_classifier_pseudo", "loss_box_reg"} <= losses["task"].keys()
    assert losses["alignment"]
    found = reached(total(losses), forked)
    for key in (key for key in found if key.startswith("detector.backbone.")):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-6)


# Trainings


@pytest.mark.parametrize(
    "name", ["faster_rcnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("retinanet", "fcos"))]
)
@pytest.mark.parametrize("aligned", [False, True])
def test_a_teacher_trains_and_resumes_bit_for_bit(streets, tmp_path, name, aligned):
    """The burn-in ends after the first step; the training stops after two, and goes on."""
    more = [
        f"detector.name={name}",
        "teacher.burn_in_steps=1",
        "teacher.score_threshold=0.01",
        "detector.train_sizes=[96]",
    ]
    if aligned and name != "faster_rcnn":
        more += ["alignment.instance_weight=0", "alignment.consistency_weight=0"]
    more += ["harmonization.weighting=gh++"] if aligned else ALONE
    whole = trained(streets, tmp_path / "whole", *more)
    trained(streets, tmp_path / "parts", *more, "training.steps=2")
    parts = trained(streets, tmp_path / "parts", *more)
    ours, theirs = (
        [*trainer.module.state_dict().values(), *trainer._average.module.state_dict().values()]
        for trainer in (whole, parts)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    pseudo = {f"{key}_pseudo" for key in LEARNT[name]}
    for step, line in enumerate(lines(tmp_path / "whole")):
        assert {key for key in line if key.endswith("_pseudo")} == pseudo
        assert all((line[key] > 0) == (step > 0) for key in pseudo)
        assert ("teacher/pseudo_boxes" in line) == (step > 0)
        assert ("loss_image_domain" in line) == ("gh/gain" in line) == aligned
    assert lines(tmp_path / "whole")[-1]["teacher/pseudo_boxes"] > 0
    config = load_config(DetectionConfig, tmp_path / "whole" / "config.yaml", [f"output={tmp_path / 'again'}"])
    assert evaluate_checkpoint(config, tmp_path / "whole" / "last.pt")["foggy"].ap50 == whole.metrics["foggy/ap50"]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("weighting", ["gh", "gh++"])
def test_the_losses_on_labels_may_be_a_task_of_their_own(streets, tmp_path, weighting, aligned):
    tasks = "self_training: ['loss_*_pseudo'], task: []"
    if aligned:
        tasks = f"alignment: ['loss_*_domain', loss_consistency], {tasks}"
    more = [] if aligned else ["alignment=null"]
    more += [
        "teacher.burn_in_steps=2",
        f"harmonization={{weighting: {weighting}, warmup_steps: 2, tasks: {{{tasks}}}}}",
    ]
    trained(streets, tmp_path, *more)
    expected = {"self_training", "task"} | ({"alignment"} if aligned else set())
    for step, line in enumerate(lines(tmp_path)):
        measured = {key.removeprefix("gh/norm/") for key, value in line.items() if key.startswith("gh/norm/") and value}
        assert measured == (expected if step >= 2 else set())


def test_the_teacher_labels_in_float32_and_the_student_learns_in_bf16(streets, tmp_path):
    trainer = trained(streets, tmp_path, "training.mixed_precision=bf16", "training.steps=2")
    assert lines(tmp_path)[-1]["loss_classifier_pseudo"] > 0
    views = trainer.batches(0, 0, 1)["target_weak_images"]
    seen = []
    backbone = trainer._average.module.detector.backbone
    backbone.register_forward_hook(lambda module, given, maps: seen.append(maps["0"].dtype))
    trainer._average.module.pseudo_labels(views, [0.1] * 8)
    assert seen == [torch.float32]


def test_a_size_is_drawn_for_each_image_in_training_alone(streets, tmp_path):
    trainer = build_trainer(configured(streets, tmp_path, "detector.train_sizes=[64, 96]", *ALONE))
    sizes, transform = [], trainer.module.detector.transform
    transform.register_forward_hook(lambda module, given, found: sizes.append([h for h, _ in found[0].image_sizes]))
    for _ in range(2):
        trainer.step = 0
        for step in range(6):
            trainer.train_step(trainer.batches(step, 0, 1))
    assert sizes[:12] == sizes[12:]
    assert {size for batch in sizes for size in batch} == {64, 96, 128}
    sizes.clear()
    trainer._average.module.detector.transform.register_forward_hook(
        lambda module, given, found: sizes.append([h for h, _ in found[0].image_sizes])
    )
    trainer._average.module(trainer.batches(0, 0, 1)["target_weak_images"] * 4)
    assert sizes == [[128] * 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.ema=null"], "teacher is the average of the weights that training.ema keeps"),
        (["target=null"], "target and alignment belong together, or target and teacher"),
        (["target=null", "alignment=null"], "target and alignment belong together, or target and teacher"),
        (["teacher=null", "alignment=null"], "target and alignment belong together, or target and teacher"),
        (["teacher.score_threshold=1.5"], "teacher: score_threshold must be at least 0 and at most 1"),
        (["teacher.class_thresholds={car: -1}"], "teacher: class_thresholds.car must be at least 0 and at most 1"),
        (["teacher.burn_in_steps=-1"], "teacher: burn_in_steps must be at least 0"),
        (["alignment=null"], "harmonization needs a second loss"),
        (
            [
                "alignment=null",
                "harmonization={weighting: gh, tasks: {a: ['*_pseudo'], b: []}}",
                "teacher.burn_in_steps=2",
            ],
            "harmonization.warmup_steps",
        ),
    ],
)
def test_what_a_teacher_needs_is_said(streets, tmp_path, changes, message):
    with pytest.raises(ConfigError) as error:
        configured(streets, tmp_path, "harmonization.weighting=gh", *changes)
    assert message in str(error.value)


def test_thresholds_are_those_of_classes_that_there_are(streets, tmp_path):
    config = configured(streets, tmp_path, "teacher.class_thresholds={train: 0.5, rider: 0.25}")
    assert build_trainer(config).callbacks[0].thresholds == [0.1, 0.25, 0.1, 0.1, 0.1, 0.5, 0.1, 0.1]
    with pytest.raises(ValueError, match=r"teacher\.class_thresholds has 'tram', but the classes are person, rider"):
        build_trainer(configured(streets, tmp_path, "teacher.class_thresholds={tram: 0.5}"))
