"""The mean teacher: its weights, its labels, its state, and its place in trainers that exist."""

import copy
import itertools

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn

from gh_downstream.detection.detectron2 import add_adaptation_config
from gh_downstream.detection.detectron2.teacher import MeanTeacher
from gh_downstream.detection.detectron2.trainer import load_cfg
from gh_downstream.integrations.detectron2 import GradientHarmonizationHook
from tests.detection.detectron2.adaptive_models import model_of, source, target
from tests.integrations.detectron2.toy_detectors import toy_cfg, weights

HEIGHT, WIDTH = 8, 12


class Toy(nn.Module):
    """Detects two boxes in each image, with scores near 1/2; learns from labels and pseudo-labels."""

    def __init__(self, norm=True, pseudo=True):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Tanh())
            self.head = nn.Linear(4, 2)
            self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.pseudo = pseudo
        self.seen = []  # Numbers of pseudo-labels in each batch, or None.

    def forward(self, batch):
        scores = self.head(self.backbone(torch.stack([x["image"] for x in batch])).mean((2, 3))).sigmoid()
        if not self.training:
            return [{"instances": detections(s, x["height"], x["width"])} for s, x in zip(scores, batch, strict=True)]
        labels = [x.get("pseudo_instances") for x in batch if x.get("domain") == "target"]
        self.seen.append(None if None in labels else [len(found) for found in labels])
        wanted = torch.stack([x["wanted"] for x in batch if "wanted" in x])
        losses = {"loss_cls": (scores[: len(wanted)] - wanted).square().mean()}
        if self.pseudo and None not in labels:
            given = torch.stack([torch.bincount(found.gt_classes, minlength=2).float() for found in labels])
            losses["loss_cls_pseudo"] = (scores[len(wanted) :] - given).square().mean()
        return losses


def detections(scores, height, width):
    boxes = Boxes(torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 1.0, 10.0, 8.0]]))
    return Instances((height, width), pred_boxes=boxes, scores=scores, pred_classes=torch.arange(2))


def batches(start=0, first=0):
    """Two images of source, two of target; the same for everybody, from the batch numbered ``start`` on.

    Bright images hold an object of class 0, dark ones of class 1.
    """
    for k in itertools.count(start):
        generator = torch.Generator().manual_seed(first + k)
        light = torch.randn(4, 1, 1, 1, generator=generator)
        images = light + torch.randn(4, 3, HEIGHT, WIDTH, generator=generator)
        wanted = torch.stack([light.flatten() > 0, light.flatten() < 0], dim=1).float()
        yield [
            *({"image": image, "wanted": w} for image, w in zip(images[:2], wanted[:2], strict=True)),
            *(
                {"image": 0.8 * weak, "image_weak": weak, "domain": "target", "height": 999, "width": 999}
                for weak in images[2:]
            ),
        ]


def simple_trainer(*added, model=None, data=None, kind=SimpleTrainer, **options):
    model = model or Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    trainer = kind(model, batches() if data is None else data, optimizer, **options)
    trainer.register_hooks(list(added))
    return trainer


class Record(HookBase):
    """Copies of the student before each step and after the last, as state dicts; of the teacher too, if there is."""

    def __init__(self, teacher=None):
        self.teacher = teacher
        self.students, self.teachers = [], []

    def before_step(self):
        self.students.append(state_of(self.trainer.model))
        if self.teacher is not None and self.teacher.model is not None:
            self.teachers.append(state_of(self.teacher.model))

    def after_train(self):
        self.before_step()


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# The weights


@pytest.mark.parametrize("burn_in", [0, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.75, 1.0])
def test_the_teacher_is_the_average_of_the_students_since_the_burn_in(burn_in, momentum):
    teacher = MeanTeacher(momentum, 0.5, burn_in)
    record = Record()
    simple_trainer(teacher, record).train(0, burn_in + 5)
    first, *later = record.students[burn_in:]
    assert len(later) == 5
    parameters = dict(teacher.model.named_parameters())
    for name, value in teacher.model.state_dict().items():
        if name not in parameters:
            assert torch.equal(value, record.students[-1][name])
            continue
        expected = momentum**5 * first[name].double()
        for k, student in enumerate(later):
            expected += (1 - momentum) * momentum ** (4 - k) * student[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(teacher.model.frozen.weight, first["frozen.weight"])
    assert not torch.equal(record.students[-1]["head.weight"], first["head.weight"])


def test_there_is_no_teacher_before_the_burn_in_is_over():
    teacher = MeanTeacher(0.9, 0.0, burn_in_iters=3)
    began = []
    watch = hooks.CallbackHook(after_step=lambda trainer: began.append(teacher.model is not None))
    trainer = simple_trainer(teacher, watch)
    assert teacher.model is None
    trainer.train(0, 5)
    assert began == [False, False, False, True, True]
    assert trainer.model.seen == [None, None, None, [2, 2], [2, 2]]


def test_the_teacher_neither_trains_nor_is_trained():
    teacher = MeanTeacher(0.9, 0.5)
    modes = []

    def watch(trainer):
        if trainer.iter == 0:
            for module in teacher.model.modules():
                module.register_forward_hook(
                    lambda module, inputs, output: modes.append(module.training or torch.is_grad_enabled())
                )

    trainer = simple_trainer(teacher, hooks.CallbackHook(after_step=watch))
    student = trainer.model
    trainer.train(0, 5)
    assert len(modes) == 4 * 6  # Itself and five modules inside.
    assert not any(modes)
    assert all(not p.requires_grad and p.grad is None for p in teacher.model.parameters())
    addresses = {p.data_ptr() for p in itertools.chain(student.parameters(), student.buffers())}
    assert addresses.isdisjoint(
        p.data_ptr() for p in itertools.chain(teacher.model.parameters(), teacher.model.buffers())
    )
    assert "frozen.weight" in dict(teacher.model.named_parameters())
    assert student.training
    assert student.head.weight.requires_grad


def test_a_student_that_does_not_look_at_the_labels_trains_as_without_a_teacher():
    plain = simple_trainer(model=Toy(pseudo=False))
    taught = simple_trainer(MeanTeacher(0.9, 0.5), model=Toy(pseudo=False))
    for trainer in (plain, taught):
        trainer.train(0, 5)
    assert_same(state_of(plain.model), state_of(taught.model))
    gradients = [[p.grad for p in trainer.model.parameters()] for trainer in (plain, taught)]
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# The labels


@pytest.mark.parametrize("kind", ["fpn", "retinanet", "fcos"])
@pytest.mark.parametrize("threshold", [0.0, None, 1.0])
def test_labels_are_the_detections_of_the_weak_view_above_the_threshold(kind, threshold):
    """``None`` is the median of the scores."""
    model = model_of(kind)
    for name, parameter in model.named_parameters():
        if "cls_score" in name:
            nn.init.normal_(parameter, std=0.01)  # so that an untrained model detects something
    weak, strong = target(2, seed=7), target(2, seed=8)
    trainer = simple_trainer(model=model)
    teacher = MeanTeacher(0.9)
    trainer.register_hooks([teacher])
    trainer.iter = 0
    teacher.before_step()
    found = [x["instances"] for x in teacher.model([{**x, "height": 64, "width": 128} for x in weak])]
    scores = torch.cat([x.scores for x in found])
    assert len(scores.unique()) > 10
    teacher.score_threshold = threshold = (
        scores.sort().values[len(scores) // 2].item() if threshold is None else threshold
    )
    # The height and width of the file, which are those of no view, must not count.
    batch = [
        *source(2),
        *(s | {"image_weak": w["image"], "height": 640, "width": 1280} for s, w in zip(strong, weak, strict=True)),
    ]
    labelled = teacher.label(batch)
    assert [list(x) for x in batch[:2]] == [list(x) for x in labelled[:2]]
    for x, original, instances in zip(labelled[2:], batch[2:], found, strict=True):
        kept = instances.scores >= threshold
        labels = x["pseudo_instances"]
        assert labels.image_size == (64, 128)
        assert len(labels) == kept.sum()
        torch.testing.assert_close(labels.gt_boxes.tensor, instances.pred_boxes.tensor[kept], rtol=0, atol=0)
        assert torch.equal(labels.gt_classes, instances.pred_classes[kept])
        assert "pseudo_instances" not in original
        assert all(x[key] is original[key] for key in original)
    kept = sum(len(x["pseudo_instances"]) for x in labelled[2:])
    assert kept == {0.0: len(scores), 1.0: 0}.get(threshold, (scores >= threshold).sum())


def test_each_class_has_a_threshold_of_its_own():
    found = {}
    for threshold in (0.0, [0.0, 1.0], [1.0, 0.0]):
        teacher = MeanTeacher(0.9, threshold)
        simple_trainer(teacher).train(0, 1)
        labels = [x["pseudo_instances"].gt_classes for x in teacher.label(next(batches()))[2:]]
        found[str(threshold)] = torch.cat(labels).unique().tolist()
    assert found == {"0.0": [0, 1], "[0.0, 1.0]": [0], "[1.0, 0.0]": [1]}


def test_thresholds_of_classes_are_set_by_their_names():
    cfg = load_cfg(
        "configs/detection/mini/mean-teacher.yaml",
        ["TEACHER.CLASS_THRESHOLDS.train", "0.25", "TEACHER.CLASS_THRESHOLDS.person", "0.5"],
    )
    assert MeanTeacher.from_config(cfg).score_threshold == [0.5, 0.7, 0.7, 0.7, 0.7, 0.25, 0.7, 0.7]
    cfg = load_cfg("configs/detection/mini/mean-teacher.yaml", ["TEACHER.CLASS_THRESHOLDS.tram", "0.25"])
    with pytest.raises(ValueError, match=r"TEACHER\.CLASS_THRESHOLDS has 'tram', but the classes are person, rider"):
        MeanTeacher.from_config(cfg)


def test_each_batch_is_labelled_by_the_teacher_of_its_step():
    """Though the loader keeps its batches, and has them ready long before."""
    ready = list(itertools.islice(batches(), 2)) * 5
    teacher = MeanTeacher(0.5, 0.5)
    record = Record(teacher)
    trainer = simple_trainer(record, teacher, model=Toy(), data=ready)
    trainer.train(0, 10)
    expected = []
    for batch, state in zip(ready, [state_of(Toy()), *record.teachers], strict=False):
        model = Toy().eval()
        model.load_state_dict(state)
        weak = [{"image": x["image_weak"], "height": HEIGHT, "width": WIDTH} for x in batch[2:]]
        expected.append([int((x["instances"].scores >= 0.5).sum()) for x in model(weak)])
    assert trainer.model.seen == expected
    assert expected[:2] != expected[-2:]  # The same images, later.


@pytest.mark.parametrize("kind", [SimpleTrainer, AMPTrainer])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_alignment_harmonization_and_pseudo_labels_together(kind, threshold):
    model = model_of()
    data = [[*source(2), *({**x, "image_weak": x["image"]} for x in target(2))]] * 2
    options = {}
    if kind is AMPTrainer:
        options = {"grad_scaler": torch.amp.GradScaler("cpu", enabled=False), "precision": torch.bfloat16}
    teacher = MeanTeacher(0.9, threshold)
    harmonization = GradientHarmonizationHook(weighting="gh++", log_period=1)
    trainer = simple_trainer(teacher, harmonization, model=model, data=data, kind=kind, **options)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-3
    trainer.train(0, 2)
    written = trainer.storage.histories()
    assert {"loss_cls_pseudo", "loss_image_domain", "gh/cosine"} <= set(written)
    assert all(torch.isfinite(value).all() for value in teacher.model.state_dict().values())
    assert teacher.model.state_dict().keys() == model.state_dict().keys()


def test_the_log():
    teacher = MeanTeacher(0.9, 0.5, burn_in_iters=20)
    trainer = simple_trainer(teacher)
    trainer.train(0, 65)
    boxes = trainer.storage.history("teacher/pseudo_boxes").values()
    assert boxes == [(sum(trainer.model.seen[k]) / 2, k) for k in (39, 59)]
    assert all(0.5 <= score <= 1 for score, _ in trainer.storage.history("teacher/score").values())
    teacher = MeanTeacher(0.9, 1.0)
    trainer = simple_trainer(teacher)
    trainer.train(0, 20)
    assert trainer.storage.history("teacher/pseudo_boxes").values() == [(0, 19)]
    assert "teacher/score" not in trainer.storage.histories()


# The state


class ToyTrainer(DefaultTrainer):
    start = 0

    @classmethod
    def build_model(cls, cfg):
        return Toy()

    @classmethod
    def build_train_loader(cls, cfg):
        return batches(cls.start)


def default_trainer(folder, burn_in):
    cfg = toy_cfg(folder, "SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.BASE_LR", "0.5")
    trainer = ToyTrainer(cfg)
    teacher = MeanTeacher(0.8, 0.5, burn_in)
    trainer.register_hooks([teacher])
    return trainer, teacher


@pytest.mark.parametrize("done", [2, 3, 4, 6, 8], ids="after {} steps".format)
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, done):
    """The burn-in is over after 3 steps."""
    whole, teacher = default_trainer(tmp_path, 3)
    whole.resume_or_load(resume=False)
    whole.train()
    expected = state_of(whole.model), state_of(teacher.model)
    saved = tmp_path / ("model_final.pth" if done == 8 else f"model_{done - 1:07}.pth")
    state = torch.load(saved, weights_only=True)["trainer"]
    assert ("MeanTeacher" in state.get("hooks", {})) == (done > 3)
    (tmp_path / "last_checkpoint").write_text(saved.name)
    (tmp_path / "teacher_final.pth").unlink()
    monkeypatch.setattr(ToyTrainer, "start", done)
    resumed, teacher = default_trainer(tmp_path, 3)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == done
    assert (teacher.model is not None) == (done > 3)
    resumed.train()
    assert_same(state_of(resumed.model), expected[0])
    assert_same(state_of(teacher.model), expected[1])
    assert_same(torch.load(tmp_path / "teacher_final.pth", weights_only=True)["model"], expected[1])
    assert any(resumed.model.seen) or done == 8


def test_a_teacher_that_is_added_to_a_training_begins_as_a_copy(tmp_path):
    plain = ToyTrainer(toy_cfg(tmp_path, "SOLVER.MAX_ITER", "4"))
    plain.train()
    trainer, teacher = default_trainer(tmp_path, 2)
    trainer.resume_or_load(resume=True)
    record = Record(teacher)
    trainer.register_hooks([record])
    trainer.train()
    assert_same(record.teachers[0], state_of(plain.model))


def test_the_teacher_is_written_beside_the_last_checkpoint_and_loads_as_it_does(tmp_path):
    trainer, teacher = default_trainer(tmp_path, 2)
    evaluated = []
    evaluation = hooks.EvalHook(0, lambda: evaluated.append((tmp_path / "teacher_final.pth").is_file()))
    trainer.register_hooks([evaluation])
    trainer.train()
    assert evaluated == [True]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    for name, expected in {"teacher_final.pth": teacher.model, "model_final.pth": trainer.model}.items():
        model = Toy()
        unmatched = DetectionCheckpointer(model).load(str(tmp_path / name))
        assert unmatched == {} or "model" not in unmatched
        assert_same(state_of(model), state_of(expected))
    assert not torch.equal(teacher.model.head.weight, trainer.model.head.weight)


@pytest.mark.parametrize(("burn_in", "fails"), [(8, False), (2, True)], ids=["before the teacher begins", "failed"])
def test_nothing_is_written_by_a_training_without_a_teacher_or_one_that_failed(tmp_path, burn_in, fails):
    trainer, _ = default_trainer(tmp_path, burn_in)

    def fail(trainer):
        if fails and trainer.iter == 7:
            raise RuntimeError("stopped")

    trainer.register_hooks([hooks.CallbackHook(before_step=fail)])
    try:
        trainer.train()
    except RuntimeError:
        assert fails
    assert (tmp_path / "model_0000006.pth").is_file()
    assert not (tmp_path / "teacher_final.pth").exists()


# Its place in a trainer


def test_training_twice_goes_on():
    once, twice = (simple_trainer(MeanTeacher(0.9, 0.5, 2)) for _ in range(2))
    once.train(0, 6)
    twice.train(0, 3)
    twice.train(3, 6)
    assert_same(state_of(once.model), state_of(twice.model))
    assert once.model.seen == twice.model.seen


def test_an_evaluation_within_a_step_and_a_failed_step_are_no_trouble():
    trainer = simple_trainer(MeanTeacher(0.9, 0.0))
    given = [{"image": x["image"], "height": HEIGHT, "width": WIDTH} for x in next(batches())]

    def evaluate(trainer):
        if trainer.iter == 2:
            raise RuntimeError("stopped")
        trainer.model.eval()(given)
        trainer.model.train()

    trainer.register_hooks([hooks.CallbackHook(before_step=evaluate)])
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.train(0, 3)
    trainer.model(next(batches()))
    assert trainer.model.seen == [[2, 2], [2, 2], None]


def test_it_goes_before_the_hooks_that_save(tmp_path):
    trainer, _ = default_trainer(tmp_path, 0)
    order = []
    trainer.register_hooks([hooks.CallbackHook(after_step=lambda t: order.append([type(h) for h in t._hooks]))])
    trainer.train()
    assert order[0].index(MeanTeacher) < order[0].index(hooks.PeriodicCheckpointer)
    assert order[0].count(MeanTeacher) == 1


def test_a_trainer_with_a_step_of_its_own_is_labelled_and_one_that_passes_by_its_model_is_told():
    class Own(TrainerBase):
        def __init__(self):
            super().__init__()
            self.model, self.batches = Toy(), batches()
            self.run = self.model

        def run_step(self):
            self.run(next(self.batches))

    trainer = Own()
    trainer.register_hooks([MeanTeacher(0.9, 0.0)])
    trainer.train(0, 2)
    assert trainer.model.seen == [[2, 2], [2, 2]]
    trainer.run = Toy()
    with pytest.raises(RuntimeError, match=r"Own.run_step .*trainer.model\(batch\)"):
        trainer.train(2, 3)


def test_lazy_config_config_and_copies():
    cfg = get_cfg()
    with pytest.raises(ValueError, match="add_adaptation_config"):
        MeanTeacher.from_config(cfg)
    add_adaptation_config(cfg)
    cfg.merge_from_list(["TEACHER.MOMENTUM", "0.9", "TEACHER.SCORE_THRESHOLD", "0.25", "DA.BURN_IN_ITERS", "7"])
    lazy = LazyCall(MeanTeacher)(momentum=0.9, score_threshold=0.25, burn_in_iters=7)
    for teacher in (MeanTeacher.from_config(cfg), instantiate(lazy), copy.deepcopy(instantiate(lazy))):
        assert (teacher.momentum, teacher.score_threshold, teacher.burn_in_iters) == (0.9, 0.25, 7)
        assert teacher.model is None
        assert not teacher.state_dict()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"momentum": 1.5}, "TEACHER.MOMENTUM"),
        ({"score_threshold": -0.1}, "TEACHER.SCORE_THRESHOLD"),
        ({"score_threshold": [0.5, 1.5]}, r"TEACHER.SCORE_THRESHOLD\[1\]"),
        ({"burn_in_iters": -1}, "DA.BURN_IN_ITERS"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        MeanTeacher(**arguments)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x.pop("image_weak"), "street.png: .*TEACHER.ENABLED True.*TargetMapper"),
        (lambda x: x.update(image_weak=x["image_weak"][:, :5]), "street.png: .*shape"),
        (lambda x: x.pop("domain"), "DATASETS.TARGET"),
    ],
    ids=["no weak view", "another geometry", "no target"],
)
def test_batches_that_cannot_be_labelled_are_refused_from_the_first_step_on(change, expected):
    batch = next(batches())
    for x in batch[2:]:
        x["file_name"] = "street.png"
        change(x)
    trainer = simple_trainer(MeanTeacher(burn_in_iters=100), data=[batch])
    with pytest.raises(ValueError, match=expected):
        trainer.train(0, 1)


def test_it_goes_before_an_evaluation_too():
    """As in the processes that save nothing: the teacher they evaluate is that of the first process."""
    teacher = MeanTeacher(0.5, 0.5)
    evaluated = []
    evaluation = hooks.EvalHook(1, lambda: evaluated.append(state_of(teacher.model)))
    record = Record(teacher)
    simple_trainer(evaluation, teacher, record).train(0, 4)
    for found, expected in zip(evaluated, record.teachers[-4:], strict=True):
        assert_same(found, expected)


# Two processes


def work(rank, folder):
    teacher = MeanTeacher(0.8, 0.5, 2)
    # The normalization of a process is of its own images, with or without a teacher.
    model = create_ddp_model(Toy(norm=False), device_ids=None, broadcast_buffers=False)
    trainer = simple_trainer(teacher, model=model, data=batches(first=1000 * rank))
    if comm.is_main_process():
        checkpointer = DetectionCheckpointer(model, str(folder), trainer=trainer)
        trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 100)])
    trainer.train(0, 6)
    return {"student": weights(trainer), "teacher": state_of(teacher.model), "seen": model.module.seen}


def test_two_processes_have_one_teacher_which_is_that_of_one_process_on_the_joined_batch(ranks, tmp_path):
    first, second = ranks(work, tmp_path)
    assert torch.equal(first["student"], second["student"])
    assert_same(first["teacher"], second["teacher"])
    assert_same(torch.load(tmp_path / "teacher_final.pth", weights_only=True)["model"], first["teacher"])
    assert not any(name.startswith("module.") for name in first["teacher"])
    joined = ([*a[:2], *b[:2], *a[2:], *b[2:]] for a, b in zip(batches(), batches(first=1000), strict=True))
    teacher = MeanTeacher(0.8, 0.5, 2)
    trainer = simple_trainer(teacher, model=Toy(norm=False), data=joined)
    trainer.train(0, 6)
    assert trainer.model.seen == [a and a + b for a, b in zip(first["seen"], second["seen"], strict=True)]
    for name, value in state_of(teacher.model).items():
        torch.testing.assert_close(first["teacher"][name], value, rtol=1e-4, atol=1e-6)
