"""What a training or an evaluation with the torchvision engine is configured by."""

from dataclasses import dataclass, field

from gh_downstream.detection.alignment import AlignmentConfig
from gh_downstream.detection.data import DetectionDataset, load_cityscapes, load_coco
from gh_downstream.detection.torchvision.detector import DetectorConfig
from gh_downstream.harmonization.checks import check_numbers, check_one_of
from gh_downstream.training import ExperimentConfig, check_best_metric

METRICS = ("ap50", "ap75", "ap")
"""What an evaluation measures on each validation set."""


@dataclass
class DatasetConfig:
    """One data set.

    Attributes:
        root: Root of Cityscapes, or the image folder.
        format: ``cityscapes`` for the directory layout of Cityscapes, ``coco`` for a JSON file and an image folder.
        split: Split of Cityscapes, such as ``train``.
        fog_density: Density of Foggy Cityscapes (0.005, 0.01, 0.02); null for the clear images.
        cities: Cities of Cityscapes to take; null takes all.
        annotations: The JSON file, for ``coco``.
    """

    root: str
    format: str = "cityscapes"
    split: str = "train"
    fog_density: float | None = None
    cities: list[str] | None = None
    annotations: str | None = None

    def __post_init__(self) -> None:
        check_one_of("format", self.format, ("cityscapes", "coco"))
        check_numbers(self, "> 0")
        if self.format == "coco" and not self.annotations:
            raise ValueError("format coco needs annotations, the path of the JSON file")

    def load(self, classes: tuple[str, ...] | None = None, labels: bool = True) -> DetectionDataset:
        """Read the data set, with or without labels; ``coco`` with these classes, by default those of the file."""
        if self.format == "cityscapes":
            return load_cityscapes(self.root, self.split, self.fog_density, cities=self.cities, labels=labels)
        assert self.annotations is not None
        return load_coco(self.annotations, self.root, classes=classes, labels=labels)


@dataclass(kw_only=True)
class DetectionConfig(ExperimentConfig):
    """Training of a domain-adaptive Faster R-CNN.

    Attributes:
        source: Labelled images.
        target: Images of the other domain, whose labels are never read; null trains on the source alone.
        validation: Labelled data sets by name, evaluated while and after training.
        batch_size: Source images in each step, of all processes together; as many of the target.
        flip: Flip half of the training images.
        detector: The Faster R-CNN.
        alignment: What is aligned between the domains; null trains on the source alone.
    """

    source: DatasetConfig
    target: DatasetConfig | None = None
    validation: dict[str, DatasetConfig] = field(default_factory=dict)
    batch_size: int = 2
    flip: bool = True
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    alignment: AlignmentConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ">= 1")
        if (self.target is None) != (self.alignment is None):
            raise ValueError("target and alignment belong together: give both, or neither to train on the source alone")
        if self.harmonization.weighting != "none" and self.alignment is None and not self.harmonization.tasks:
            raise ValueError(
                "harmonization needs a second loss: give target and alignment, or harmonization.tasks of the losses "
                "of the task, or harmonization.weighting=none"
            )
        check_best_metric(self.training, [f"{name}/{metric}" for name in self.validation for metric in METRICS])
