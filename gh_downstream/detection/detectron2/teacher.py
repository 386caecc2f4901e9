"""A mean teacher: an average of the student's weights over the training, which labels the target for the student.

Its pseudo-labels are those of :mod:`gh_downstream.detection.pseudo_labels`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gh_downstream.detection.detectron2.config import check_node
from gh_downstream.detection.detectron2.data import classes_of
from gh_downstream.detection.pseudo_labels import class_thresholds, confident, label_figures
from gh_downstream.files import atomic_file
from gh_downstream.harmonization.checks import check_numbers
from gh_downstream.integrations.detectron2.hook import move_before_readers

Batch = list[dict[str, Any]]

LOG_PERIOD = 20
"""Iterations between two entries in the event storage; that of Detectron2's writers."""


class MeanTeacher(HookBase):
    """Keeps a mean teacher of the model that a trainer trains, and gives the target images its pseudo-labels.

    ::

        trainer.register_hooks([MeanTeacher(burn_in_iters=2000)])

    With a LazyConfig, ``teacher = L(MeanTeacher)(momentum=0.999)`` and ``instantiate(cfg.teacher)`` in the list of
    hooks. It works with any model whose outputs in evaluation are Detectron2's (``[{"instances": Instances}]``), and
    with any trainer that gives its ``model`` the batches in training; loader, step and optimizer are not touched.

    The teacher begins at iteration ``burn_in_iters`` as a copy of the student, as in Adaptive Teacher. From then on
    each step moves its parameters: :math:`\\theta' \\leftarrow m \\theta' + (1 - m) \\theta` with the momentum
    :math:`m` (Mean Teacher, equation 2); buffers are those of the student. It is always in evaluation mode, without
    gradients, and no part of the student. All processes compute the same teacher from the same student.

    A batch is labelled when the student is given it. An image of the target (``"domain": "target"``) comes with two
    views of the same geometry: the teacher looks at ``"image_weak"``, and its detections with a score of at least
    ``score_threshold`` become ``"pseudo_instances"`` with ``gt_boxes`` in pixels of that view, and ``gt_classes``;
    there may be none. What the model never returns, such as scores below ``MODEL.ROI_HEADS.SCORE_THRESH_TEST``,
    cannot become a label.

    Every 20 iterations the main process writes to the event storage ``teacher/pseudo_boxes`` (for each image) and
    ``teacher/score`` (mean of the kept detections), both of its last batch. After a training that has come to its end
    it writes ``teacher_final.pth`` beside ``model_final.pth``; it loads wherever that does.

    Register the hook before a checkpoint is loaded, so that the teacher is loaded too. Wherever it is registered, it
    moves itself before the hooks that save and write.

    Args:
        momentum: Share of itself that the teacher keeps at each step, in [0, 1].
        score_threshold: Least score of a label, in [0, 1]; one number, or one for each class in their order.
        burn_in_iters: Iterations without a teacher, and so without pseudo-labels.

    Raises:
        ValueError: An argument is out of its range. In training: a batch has no image of the target, or one without
            a weak view of its shape.
    """

    def __init__(
        self, momentum: float = 0.9996, score_threshold: float | Sequence[float] = 0.8, burn_in_iters: int = 0
    ) -> None:
        settings = {"TEACHER.MOMENTUM": momentum, "TEACHER.SCORE_THRESHOLD": score_threshold}
        check_numbers(settings, **dict.fromkeys(settings, ">= 0, <= 1"))
        check_numbers({"DA.BURN_IN_ITERS": burn_in_iters})
        self.momentum = momentum
        self.score_threshold = score_threshold
        self.burn_in_iters = burn_in_iters
        self._average: AveragedModel | None = None
        self._scores: list[Tensor] | None = None  # Of the labels of each target image in the batch of this step.
        self._labelling = ExitStack()  # Ends the labelling of this step.

    @classmethod
    def from_config(cls, cfg: CfgNode) -> MeanTeacher:
        """Build a teacher from the node ``TEACHER`` and ``DA.BURN_IN_ITERS``.

        Raises:
            ValueError: ``TEACHER.CLASS_THRESHOLDS`` has a name that is none of the classes of ``DATASETS.TRAIN``.
        """
        check_node(cfg, "TEACHER")
        threshold, by_class = cfg.TEACHER.SCORE_THRESHOLD, cfg.TEACHER.CLASS_THRESHOLDS
        if by_class:
            classes = classes_of(cfg.DATASETS.TRAIN[0])
            threshold = class_thresholds(threshold, by_class, classes, "TEACHER.CLASS_THRESHOLDS")
        return cls(cfg.TEACHER.MOMENTUM, threshold, cfg.DA.BURN_IN_ITERS)

    @property
    def model(self) -> nn.Module | None:
        """The teacher, for evaluation; None before it begins."""
        return None if self._average is None else self._average.module

    @torch.no_grad()
    def label(self, batch: Batch) -> Batch:
        """Return a batch with the teacher's labels as it is now; the same batch before the teacher begins.

        The images keep their order, those of the target get ``"pseudo_instances"``; the given ones are not changed.

        Raises:
            ValueError: There is no image of the target, or one without a weak view of its shape.
        """
        places = [k for k, x in enumerate(batch) if x.get("domain") == "target"]
        _check_target([batch[k] for k in places])
        self._scores = []
        if self.model is None:
            return batch
        labelled = list(batch)
        for k, detected in zip(places, self.model([_weak(batch[k]) for k in places]), strict=True):
            found = detected["instances"]
            kept = found[confident(found.scores, found.pred_classes, self.score_threshold)]
            labels = Instances(kept.image_size, gt_boxes=kept.pred_boxes, gt_classes=kept.pred_classes)
            labelled[k] = batch[k] | {"pseudo_instances": labels}
            self._scores.append(kept.scores)
        return labelled

    def before_train(self) -> None:
        """Take the place before the hooks that save and write."""
        move_before_readers(self)

    def before_step(self) -> None:
        """Begin the teacher when it is time, and label what the student will be given."""
        if self._average is None and self.trainer.iter >= self.burn_in_iters:
            self._average = self._copy_of_student()
        self._scores = None
        # For this step alone: the teacher, a copy, must not label.
        self._labelling.callback(self._student.register_forward_pre_hook(self._label_inputs).remove)

    def after_step(self) -> None:
        """Move the teacher to the student, and write what it labelled.

        Raises:
            RuntimeError: The step did not give the model a batch.
        """
        self._labelling.close()
        if self._scores is None:
            raise RuntimeError(
                f"{self.trainer.__class__.__name__}.run_step gives its batch to another model than trainer.model, so "
                "that the mean teacher labels nothing: call trainer.model(batch) in it"
            )
        if self._average is None:
            return
        self._average.update_parameters(self._student)
        if (self.trainer.iter + 1) % LOG_PERIOD == 0 and comm.is_main_process():
            self.trainer.storage.put_scalars(**label_figures(self._scores), smoothing_hint=False)

    def after_train(self) -> None:
        """Write the teacher if the training has come to its end."""
        self._labelling.close()  # A step that failed has not come to that.
        savers = [hook.checkpointer for hook in self.trainer._hooks if isinstance(hook, hooks.PeriodicCheckpointer)]
        folder = savers[0].save_dir if savers else ""  # Without a folder a checkpointer saves nothing.
        finished = self.trainer.iter >= self.trainer.max_iter
        if self.model is not None and finished and folder and comm.is_main_process():
            with atomic_file(Path(folder) / "teacher_final.pth") as file:
                torch.save({"model": self.model.state_dict()}, file)

    def state_dict(self) -> Mapping[str, Any]:
        """What a checkpoint keeps, tensors by name; nothing before the teacher begins."""
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._average = self._copy_of_student()
        self._average.load_state_dict(state)

    def _copy_of_student(self) -> AveragedModel:
        average = AveragedModel(self._student, multi_avg_fn=get_ema_multi_avg_fn(self.momentum))
        average.update_parameters(self._student)  # The first update copies, the later ones average.
        return average.eval().requires_grad_(False)

    @property
    def _student(self) -> nn.Module:
        model = self.trainer.model
        return model.module if isinstance(model, DistributedDataParallel) else model

    def _label_inputs(self, student: nn.Module, inputs: tuple[Batch, ...]) -> tuple[Batch, ...]:
        if not student.training:
            return inputs
        batch, *others = inputs
        with torch.autocast(next(student.parameters()).device.type, enabled=False):
            return self.label(batch), *others


def teacher_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return the state dict of the teacher in a checkpoint of a trainer; None without a teacher."""
    state = checkpoint.get("trainer", {}).get("hooks", {}).get(MeanTeacher.__qualname__)
    prefix = "module."
    return state and {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}


def _weak(image: Mapping[str, Any]) -> dict[str, Any]:
    """What the teacher is given of an image; at the size of the view, so that boxes come in its pixels."""
    height, width = image["image_weak"].shape[-2:]
    return {**image, "image": image["image_weak"], "height": height, "width": width}


def _check_target(target: Batch) -> None:
    if not target:
        raise ValueError(
            'the mean teacher labels images of the target, but no dictionary of the batch has "domain": "target": name '
            "unlabelled data sets in DATASETS.TARGET, or set TEACHER.ENABLED False"
        )
    for image in target:
        if "image_weak" not in image or image["image_weak"].shape != image["image"].shape:
            raise ValueError(
                f'{image.get("file_name", "an image of the target")}: the mean teacher needs a view "image_weak" of '
                'the shape of "image": build the loader with TEACHER.ENABLED True, or map the target with '
                "TargetMapper(mapper, strong_view)"
            )
