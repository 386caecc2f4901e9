"""Average precision in Detectron2's evaluation loop, class by class."""

import hashlib
import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from gh_downstream.detection.detectron2.data.register import ImageDict, dataset_of
from gh_downstream.detection.evaluation import (
    RESULTS,
    Detection,
    ap_table,
    detections_of,
    evaluate_detections,
    write_detections,
)

logger = logging.getLogger(__name__)

WITHOUT_EFFECT = (
    "OUTPUT_DIR",
    "VIS_PERIOD",
    "CUDNN_BENCHMARK",
    "MODEL.DEVICE",
    "DATASETS.TEST",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "GH.LOG_PERIOD",
)
"""Keys of a configuration that change what is written and when, or how fast, but not the result."""


class APEvaluator(DatasetEvaluator):
    """Measures the average precision of boxes on a registered data set, by the COCO convention.

    It prints the table with the AP50 of every class and returns ``{"bbox": {"AP", "AP50", "AP75", "AP50-CLASS", ...}}``
    in percent. With an output folder it writes ``detections/NAME.json`` and its row of ``results.json`` and
    ``results.md``, beside the rows of other data sets; see :class:`~gh_downstream.reporting.ResultStore`.

    In several processes all of them have to call :meth:`evaluate`; the first one measures.

    Args:
        dataset_name: Name of the data set in Detectron2's catalog, of this package or not.
        output_dir: Output folder; None writes nothing.
        config_hash: Names the configuration in the table, such as :func:`config_hash_of` returns.

    Raises:
        FileNotFoundError, ValueError: The data are not there, not registered, or without labels.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path | None = None, config_hash: str = "") -> None:
        self.dataset_name = dataset_name
        self.output_dir = Path(output_dir) if output_dir else None
        self.config_hash = config_hash
        self._images: list[int | str] = []
        self._detections: list[Detection] = []
        if comm.is_main_process():
            self._dataset = dataset_of(dataset_name)
            if self._dataset.num_boxes == 0:
                raise ValueError(f"data set {dataset_name} has no labels, and so no average precision")

    def reset(self) -> None:
        """Forget all detections."""
        self._images, self._detections = [], []

    def process(self, inputs: Sequence[ImageDict], outputs: Sequence[dict[str, Any]]) -> None:
        """Collect the detections of a batch: boxes in pixels of the original image in ``"instances"`` of an output."""
        for image, output in zip(inputs, outputs, strict=True):
            self._images.append(image["image_id"])
            found = output["instances"]
            self._detections += detections_of(
                image["image_id"], found.pred_boxes.tensor.double(), found.pred_classes, found.scores
            )

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Measure the detections of all processes, and return the metrics in the first of them.

        Raises:
            ValueError: An image was evaluated twice, or a detection does not fit the data set.
        """
        images = list(chain(*comm.gather(self._images)))
        detections = list(chain(*comm.gather(self._detections)))
        if not comm.is_main_process():
            return OrderedDict()
        self._check_images(images)
        result = evaluate_detections(self._dataset, detections)
        ap_table({self.output_dir.name if self.output_dir else "model": result}, config_hash=self.config_hash).show()
        if self.output_dir:
            write_detections(self.output_dir / "detections", self.dataset_name, detections)
            RESULTS.write(self.output_dir, self.config_hash, {self.dataset_name: result})
        per_class = {f"AP50-{name}": ap for name, ap in result.ap50_per_class.items()}
        return OrderedDict(bbox={"AP": result.ap, "AP50": result.ap50, "AP75": result.ap75} | per_class)

    def _check_images(self, images: list[int | str]) -> None:
        if twice := [image for image, times in Counter(images).items() if times > 1]:
            raise ValueError(
                f"{len(twice)} images of {self.dataset_name}, such as {twice[0]!r}, were evaluated more than once, and "
                "their detections would count as often: the loader has to give each image once"
            )
        if len(images) < len(self._dataset):
            evaluated = f"{len(images)} of {len(self._dataset)} images"
            logger.warning(f"{self.dataset_name}: {evaluated} were evaluated; the others count as without detections")


def config_hash_of(cfg: CfgNode) -> str:
    """Return 12 hexadecimal digits that name what a configuration makes, whatever its keys :data:`WITHOUT_EFFECT`."""
    content = yaml.safe_load(cfg.dump())
    for key in WITHOUT_EFFECT:
        *nodes, name = key.split(".")
        section = content
        for node in nodes:
            section = section.get(node, {})
        section.pop(name, None)
    if tasks := [*cfg.get("GH", {}).get("TASKS", {})]:
        content["TASKS"] = tasks  # Their order counts.
    return hashlib.sha256(yaml.safe_dump(content, sort_keys=True).encode()).hexdigest()[:12]
