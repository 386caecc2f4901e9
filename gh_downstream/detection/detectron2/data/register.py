"""The data sets of this package in Detectron2's catalogs, and any data set of the catalogs as our records.

============================================================  =======================================================
``cityscapes_{train,val}``                                    2975 and 500 images, 8 classes
``cityscapes_foggy_{0.005,0.01,0.02}_{train,val}``            the same images at one density of fog
``cityscapes_car_{train,val}``                                the same images, cars alone
``cityscapes_bdd_{train,val}``                                the same images, the 7 classes of BDD100K
``sim10k_car_train``, ``kitti_car_train``                     10000 and 7481 images, cars alone
``bdd100k_daytime_{train,val}``                               36728 and 5258 images, 7 classes
``mini_cityscapes_{train,val}``, ``mini_cityscapes_foggy_…``  the same of the drawn streets (make_mini_cityscapes.py)
``mini_cityscapes_source_train``                              clear, the first two of its cities
``mini_cityscapes_foggy_0.02_target_train``                   foggy, its other two
============================================================  =======================================================

They lie in the folder that the environment variable ``DETECTRON2_DATASETS`` names (``datasets`` by default), as their
archives unpack: ``cityscapes/``, ``sim10k/VOC2012/``, ``kitti/training/``, ``bdd100k/``, ``mini_cityscapes/``. Nothing
is read before a data set is used.
"""

import difflib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from gh_downstream.data.images import image_sizes
from gh_downstream.detection.data import (
    BDD100K_CLASSES,
    CITYSCAPES_CLASSES,
    Annotation,
    DetectionDataset,
    Record,
    load_bdd100k_daytime,
    load_cityscapes,
    load_coco,
    load_kitti,
    load_sim10k,
)
from gh_downstream.detection.data.classes import Classes, common_classes, parse_classes
from gh_downstream.detection.data.coco import load_images, read_classes
from gh_downstream.detection.data.fog import FOG_DENSITIES
from gh_downstream.detection.data.mini_cityscapes import CITIES

logger = logging.getLogger(__name__)

ImageDict = dict[str, Any]
"""One image in Detectron2's standard format."""

_LABELS = ("annotations", "sem_seg_file_name", "pan_seg_file_name", "segments_info")  # keys of that format
_CITYSCAPES, _MINI = "cityscapes", "mini_cityscapes"


@dataclass(frozen=True)
class _Published:
    """What the catalog calls to read a data set of this package, which keeps some classes of what a reader returns."""

    name: str
    folder: str  # in DETECTRON2_DATASETS
    load: Callable[..., DetectionDataset]  # of the path of the folder, and labels
    classes: tuple[str, ...] = CITYSCAPES_CLASSES
    fog_density: float | None = None

    def __call__(self, labels: bool = True) -> list[ImageDict]:
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / self.folder
        try:
            dataset = self.load(root, labels=labels)
        except FileNotFoundError as error:
            if root.is_dir():
                raise
            made = f"{root} does not exist; make it (gh-downstream data make streets {root})"
            raise FileNotFoundError(
                f"{made if self.folder == _MINI else error}, or set DETECTRON2_DATASETS to what holds {self.folder}/"
            ) from None
        return _to_dicts(dataset.select(self.classes))


@dataclass(frozen=True)
class _Coco:
    """What the catalog calls to read a data set of ``DATASETS.COCO``; without a JSON, a folder of images alone."""

    name: str
    json: str
    folder: str
    chosen: tuple[tuple[str, tuple[str, ...]], ...]  # classes with their aliases; empty for those in common
    among: tuple[tuple[str, str], ...]  # name and JSON of each data set that has them in common
    outside_root: bool

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self._classes())

    def __call__(self, labels: bool = True) -> list[ImageDict]:
        if self.json:
            classes = self._classes() if labels else None
            dataset = load_coco(self.json, self.folder, self.name, classes, labels, self.outside_root)
        elif labels:
            raise ValueError(f"{self.name} is a folder of images without labels: it can be in DATASETS.TARGET alone")
        else:
            dataset = load_images(self.folder, self.name)
        if labels:
            MetadataCatalog.get(self.name).thing_classes = list(dataset.classes)
        return _to_dicts(dataset)

    def _classes(self) -> Classes:
        return dict(self.chosen) or _common_classes(self.among)


def register_datasets() -> None:
    """Register the data sets of this package; those that are registered stay as they are.

    A name that something else has taken is left to it, with a warning.
    """
    for dataset in _published():
        if not _register(dataset, thing_classes=list(dataset.classes), fog_density=dataset.fog_density):
            logger.warning("%s is registered already, and not by gh_downstream: it is left as it is", dataset.name)


def register_coco_datasets(cfg: CfgNode) -> None:
    """Register the data sets of ``DATASETS.COCO``, all with the same classes in one order.

    They are ``DATASETS.CLASSES``; without it those of ``DATASETS.TRAIN`` where that is another data set, else those
    that the data sets which the configuration uses have in common.

    Raises:
        ValueError: An entry has not these three parts, its name is that of another data set, or ``DATASETS.CLASSES``
            are no classes. When the data are read: a class has no category.
    """
    entries = cfg.DATASETS.COCO
    for entry in entries:
        if isinstance(entry, str) or len(entry) != 3 or not all(isinstance(part, str) for part in entry):
            raise ValueError(f"DATASETS.COCO takes (name, JSON file, image folder) for each data set, got {entry!r}")
    others = [name for name in cfg.DATASETS.TRAIN if name not in {entry[0] for entry in entries}]
    chosen: Classes = {}
    if cfg.DATASETS.CLASSES:
        chosen = parse_classes(cfg.DATASETS.CLASSES, "DATASETS.CLASSES")
    elif entries and others:
        chosen = dict.fromkeys(classes_of(others[0]), ())
    used = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TARGET, *cfg.DATASETS.TEST)
    alike = sorted((entry for entry in entries if entry[0] in used), key=lambda entry: used.index(entry[0])) or entries
    among = [(name, json) for name, json, _ in alike if json]
    names: set[str] = set()
    for name, json, folder in entries:
        dataset = _Coco(name, json, folder, tuple(chosen.items()), tuple(among), cfg.DATASETS.OUTSIDE_ROOT)
        if name in names or not _register(dataset, fog_density=None):
            raise ValueError(f"DATASETS.COCO: there is another data set named {name}; choose a name of your own")
        names.add(name)


def load_dicts(name: str, labels: bool = True) -> list[ImageDict]:
    """Read a registered data set: one dictionary for each image in Detectron2's standard format.

    Args:
        name: Its name in the catalog.
        labels: ``False`` for no labels; the annotation files of Cityscapes, Sim10k and KITTI need not exist then.

    Raises:
        ValueError: No data set has this name.
        FileNotFoundError: The data are not there.
    """
    check_registered(name)
    read = DatasetCatalog[name]
    if labels:
        return read()
    return [unlabelled(image) for image in (read(labels) if isinstance(read, _Published | _Coco) else read())]


def check_files(names: Sequence[str], images: Sequence[Mapping[str, Any]]) -> None:
    """Look at the header of every image of data sets, but of those of this package, which do so when they are read.

    Raises:
        FileNotFoundError: An image does not exist.
        ValueError: A file is no image, or not of the size that its data set says.
    """
    if all(isinstance(DatasetCatalog[name], _Published | _Coco) for name in names):
        return
    local = [image for image in images if "://" not in image.get("file_name", "://")]
    where = f"{', '.join(names)} lists it"
    for image, size in zip(local, image_sizes([image["file_name"] for image in local], where), strict=True):
        given = image.get("height", size[0]), image.get("width", size[1])
        if given != size:
            raise ValueError(f"{image['file_name']} is of {size} pixels (height, width), {where} with {given}")


def classes_of(name: str) -> tuple[str, ...]:
    """Return the names of the classes of a registered data set; none where they are not known before it is read.

    Raises:
        ValueError: No data set has this name.
    """
    check_registered(name)
    read = DatasetCatalog[name]
    if isinstance(read, (_Published, _Coco)):
        return read.classes
    return tuple(MetadataCatalog.get(name).get("thing_classes") or ())


def check_registered(name: str) -> None:
    """Raise a ValueError that says what there is, if a name is not in the catalog."""
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "register it before, or give it in DATASETS.COCO"
        raise ValueError(f"no data set is registered as {name!r}; {hint}")


def unlabelled(image: ImageDict) -> ImageDict:
    """Return the dictionary of a target image: without any label, and with ``"domain": "target"``."""
    return {key: value for key, value in image.items() if key not in _LABELS} | {"domain": "target"}


def dataset_of(name: str) -> DetectionDataset:
    """Return any registered data set as records.

    It has the classes and the fog density of its metadata. A box has the area of its annotation where that is given,
    else its own.

    Raises:
        FileNotFoundError, ValueError: As :func:`load_dicts`, or there are no names of classes or no sizes of images.
    """
    dicts = load_dicts(name)
    metadata = MetadataCatalog.get(name)
    if not metadata.get("thing_classes"):
        raise ValueError(f"data set {name} has no thing_classes: set MetadataCatalog.get({name!r}).thing_classes")
    try:
        records = [
            Record(
                file_name=image["file_name"],
                image_id=image["image_id"],
                height=image["height"],
                width=image["width"],
                annotations=[_annotation(annotation) for annotation in image.get("annotations", ())],
            )
            for image in dicts
        ]
    except KeyError as error:
        raise ValueError(f"data set {name} has an image or annotation without {error}") from None
    return DetectionDataset(name, tuple(metadata.thing_classes), records, metadata.get("fog_density"))


@cache
def _published() -> list[_Published]:
    sets = [
        _Published("sim10k_car_train", "sim10k", load_sim10k, ("car",)),
        _Published("kitti_car_train", "kitti", load_kitti, ("car",)),
    ]
    for split in ("train", "val"):
        clear = partial(load_cityscapes, split=split)
        daytime = partial(load_bdd100k_daytime, split=split)
        sets += [
            _Published(f"{_CITYSCAPES}_car_{split}", _CITYSCAPES, clear, ("car",)),
            _Published(f"{_CITYSCAPES}_bdd_{split}", _CITYSCAPES, clear, BDD100K_CLASSES),
            _Published(f"bdd100k_daytime_{split}", "bdd100k", daytime, BDD100K_CLASSES),
        ]
        for folder in (_CITYSCAPES, _MINI):
            sets.append(_Published(f"{folder}_{split}", folder, clear))
            sets += [_foggy(f"{folder}_foggy_{density:g}_{split}", folder, split, density) for density in FOG_DENSITIES]
    source = partial(load_cityscapes, split="train", cities=CITIES["train"][:2])
    return [
        *sets,
        _Published(f"{_MINI}_source_train", _MINI, source),
        _foggy(f"{_MINI}_foggy_0.02_target_train", _MINI, "train", 0.02, cities=CITIES["train"][2:]),
    ]


def _foggy(name: str, folder: str, split: str, density: float, **options: Any) -> _Published:
    load = partial(load_cityscapes, split=split, fog_density=density, **options)
    return _Published(name, folder, load, fog_density=density)


@cache
def _common_classes(among: tuple[tuple[str, str], ...]) -> Classes:
    return common_classes({name: read_classes(json) for name, json in among}, "DATASETS.CLASSES")


def _register(dataset: _Published | _Coco, **metadata: Any) -> bool:
    """Enter a data set in the catalogs; False if something else has its name."""
    name = dataset.name
    if name in DatasetCatalog:
        known = DatasetCatalog[name]
        if known == dataset:
            return True
        if not isinstance(known, _Coco) or not isinstance(dataset, _Coco):
            return False
        DatasetCatalog.remove(name)  # of another config in the same process
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, dataset)
    # Any evaluator of Detectron2 for data in COCO's manner can measure them too.
    MetadataCatalog.get(name).set(evaluator_type="coco", **metadata)
    return True


def _to_dicts(dataset: DetectionDataset) -> list[ImageDict]:
    return [
        {
            **record,
            "annotations": [{**annotation, "bbox_mode": BoxMode.XYWH_ABS} for annotation in record["annotations"]],
        }
        for record in dataset.records
    ]


def _annotation(annotation: dict[str, Any]) -> Annotation:
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
    return Annotation(
        bbox=[float(value) for value in box],
        category_id=annotation["category_id"],
        area=float(annotation.get("area", box[2] * box[3])),
        iscrowd=int(annotation.get("iscrowd", 0)),
    )
