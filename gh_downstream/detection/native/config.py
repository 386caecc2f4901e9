"""What a training or an evaluation with the native engine is configured by."""

from dataclasses import dataclass, field
from typing import Any

from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.data import CITYSCAPES_CLASSES, DetectionDataset, load_cityscapes, load_coco
from gh_downstream.detection.data.classes import Classes, common_classes, parse_classes
from gh_downstream.detection.data.coco import load_images, read_classes
from gh_downstream.detection.native.detector import DetectorConfig
from gh_downstream.detection.native.teacher import TeacherConfig
from gh_downstream.harmonization.checks import check_numbers, check_one_of
from gh_downstream.training import ExperimentConfig, check_best_metric

METRICS = ("ap50", "ap75", "ap")
"""What an evaluation measures on each validation set."""


@dataclass
class DatasetConfig:
    """One data set.

    Attributes:
        root: Root of Cityscapes, or the image folder.
        format: ``cityscapes`` for the directory layout of Cityscapes, ``coco`` for a JSON file and an image folder,
            ``folder`` for an image folder alone, of a target.
        split: Split of Cityscapes, such as ``train``.
        fog_density: Density of Foggy Cityscapes (0.005, 0.01, 0.02); null for the clear images.
        cities: Cities of Cityscapes to take; null takes all.
        annotations: The JSON file, for ``coco``. That of a target needs no annotations and no categories.
        outside_root: Allow the JSON to name images that are not in ``root``.
    """

    root: str
    format: str = "cityscapes"
    split: str = "train"
    fog_density: float | None = None
    cities: list[str] | None = None
    annotations: str | None = None
    outside_root: bool = False

    def __post_init__(self) -> None:
        check_one_of("format", self.format, ("cityscapes", "coco", "folder"))
        check_numbers(self, "> 0")
        if self.format == "coco" and not self.annotations:
            raise ValueError("format coco needs annotations, the path of the JSON file")

    def categories(self) -> tuple[str, ...]:
        """Return the classes that the data set has by itself; none where it does not say."""
        if self.format == "cityscapes":
            return CITYSCAPES_CLASSES
        return () if self.annotations is None else read_classes(self.annotations)

    def load(self, classes: Classes | None = None, labels: bool = True) -> DetectionDataset:
        """Read the data set, without labels or with those of some classes, by default of all that it has."""
        if self.format == "folder":
            if labels:
                raise ValueError(f"{self.root}: a folder of images has no labels, and can be a target alone")
            return load_images(self.root)
        if self.format == "cityscapes":
            dataset = load_cityscapes(self.root, self.split, self.fog_density, cities=self.cities, labels=labels)
            return dataset.select(classes) if classes and labels else dataset
        assert self.annotations is not None
        return load_coco(self.annotations, self.root, classes=classes, labels=labels, outside_root=self.outside_root)


@dataclass(kw_only=True)
class DetectionConfig(ExperimentConfig):
    """Training of a domain-adaptive detector.

    Attributes:
        source: Labelled images.
        target: Images of the other domain, whose labels are never read; null trains on the source alone.
        validation: Labelled data sets by name, evaluated while and after training.
        classes: Names of the classes in their order, with aliases where data sets call them otherwise:
            ``[person, {car: [vehicle, automobile]}]``. Other categories are left out. By default those that the data
            sets have in common.
        batch_size: Source images in each step, of all processes together; as many of the target.
        flip: Flip half of the training images.
        detector: The detector.
        alignment: What is aligned between the domains; null aligns nothing.
        teacher: A mean teacher that labels the target; null for none. It needs ``training.ema``.
    """

    source: DatasetConfig
    target: DatasetConfig | None = None
    validation: dict[str, DatasetConfig] = field(default_factory=dict)
    classes: Any = None
    batch_size: int = 2
    flip: bool = True
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    alignment: AlignmentConfig | None = None
    teacher: TeacherConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ">= 1")
        if (self.target is None) != (self.alignment is None and self.teacher is None):
            raise ValueError(
                "target and alignment belong together, or target and teacher: give target with one or both of them, or "
                "none of the three to train on the source alone"
            )
        if self.teacher is not None and self.training.ema is None:
            raise ValueError("teacher is the average of the weights that training.ema keeps: set training.ema=0.999")
        harmonization = self.harmonization
        if harmonization.weighting != "none" and self.alignment is None and not harmonization.tasks:
            raise ValueError(
                "harmonization needs a second loss: give target and alignment, or harmonization.tasks of the losses "
                "of the task, such as {self_training: ['*_pseudo'], task: []} with a teacher, or "
                "harmonization.weighting=none"
            )
        begins = 0 if self.teacher is None else self.teacher.burn_in_steps
        if begins >= self.training.steps:
            raise ValueError(
                f"teacher.burn_in_steps={begins} leaves nothing of training.steps={self.training.steps} for the teacher"
            )
        learns = any("pseudo" in pattern for patterns in harmonization.tasks.values() for pattern in patterns)
        if learns and harmonization.weighting != "none" and harmonization.warmup_steps < begins:
            raise ValueError(
                f"harmonization.tasks has losses on pseudo-labels, of which there are none before teacher.burn_in_steps"
                f"={begins}: set harmonization.warmup_steps={begins}"
            )
        check_best_metric(self.training, [f"{name}/{metric}" for name in self.validation for metric in METRICS])
        if self.classes is not None:
            parse_classes(self.classes, "classes")

    def read_classes(self) -> Classes:
        """Return :attr:`classes`, or those that the data sets have in common.

        Raises:
            FileNotFoundError, ValueError: The categories of a data set cannot be read, they have none in common, or the
                detector is for another number.
        """
        if self.classes is not None:
            classes = parse_classes(self.classes, "classes")
        else:
            domains = {"source": self.source} | ({} if self.target is None else {"target": self.target})
            named = domains | {f"validation.{name}": data for name, data in self.validation.items()}
            classes = common_classes({name: data.categories() for name, data in named.items()}, "classes")
        if len(classes) != self.detector.num_classes:
            raise ValueError(
                f"detector.num_classes is {self.detector.num_classes}, but the data has {len(classes)} classes: "
                f"{', '.join(classes)}"
            )
        return classes
