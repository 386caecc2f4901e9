"""Cityscapes and Foggy Cityscapes, read from the folders that their archives unpack to.

::

    ROOT/leftImg8bit/SPLIT/CITY/FRAME_leftImg8bit.png
    ROOT/leftImg8bit_foggy/SPLIT/CITY/FRAME_leftImg8bit_foggy_beta_0.02.png
    ROOT/gtFine/SPLIT/CITY/FRAME_gtFine_instanceIds.png       (or FRAME_gtFine_polygons.json)

Boxes are those of the visible pixels, as the instance map has them; where only polygons are there, the map is
drawn from them as Cityscapes' own scripts draw it. A tree that is not Cityscapes itself says so in a
``manifest.json`` at its root: ``{"name": ..., "images": {SPLIT: {CITY: number of images}}}``.
"""

import json
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from gh_downstream.data.generated import MANIFEST
from gh_downstream.data.images import image_sizes
from gh_downstream.detection.data.images import read_uint16
from gh_downstream.detection.data.records import (
    CITYSCAPES_CLASSES,
    Annotation,
    DetectionDataset,
    Record,
    first_file,
    log_counts,
    readable,
)
from gh_downstream.files import write_atomically

logger = logging.getLogger(__name__)

LABEL_IDS = dict(zip(CITYSCAPES_CLASSES, (24, 25, 26, 27, 28, 31, 32, 33), strict=True))
"""Cityscapes' label id of each detection class."""

ARCHIVES = {
    "leftImg8bit": "leftImg8bit_trainvaltest.zip",
    "leftImg8bit_foggy": "leftImg8bit_trainvaltest_foggy.zip",
    "gtFine": "gtFine_trainvaltest.zip",
    "disparity": "disparity_trainvaltest.zip",
    "camera": "camera_trainvaltest.zip",
}
"""The archive of cityscapes-dataset.com that holds each folder."""

ANNOTATION_SUFFIXES = ("_gtFine_instanceIds.png", "_gtFine_polygons.json")
"""How the file names of annotations end; any of them will do, the first is taken first."""

_CITYSCAPES = {"train": 2975, "val": 500, "test": 1525}
_CACHE_VERSION = 1
_MOST_PIXELS = 2**28  # of a map that is drawn; a wrong number would take all memory


def load_cityscapes(
    root: str | Path,
    split: str,
    fog_density: float | None = None,
    *,
    cities: Sequence[str] | None = None,
    labels: bool = True,
) -> DetectionDataset:
    """Read one split of Cityscapes, or of Foggy Cityscapes at one density, as detection records.

    The data set is named ``cityscapes_SPLIT`` or ``cityscapes_foggy_DENSITY_SPLIT``. Every image of the folder becomes
    a record; image ids are the names of the frames, the same for clear and foggy images. Objects of the 8 classes
    become boxes; groups (``persongroup`` and the like) become regions to ignore; objects whose visible part is a single
    pixel thick are dropped, as Detectron2's converter does. One log line counts all of it. Parsed annotations are kept
    in ``ROOT/.gh_cache``, where a file counts as unchanged while its size and modification time are; without the right
    to write there, loading goes on without a cache.

    Args:
        root: Folder that holds ``leftImg8bit`` and the others.
        split: ``"train"``, ``"val"`` or ``"test"``.
        fog_density: Attenuation coefficient of the fog in 1/m (0.005, 0.01 or 0.02), or ``None`` for clear images.
        cities: Take the images of these cities alone.
        labels: ``False`` reads no annotation, for an unlabelled target; ``gtFine`` need not exist then.

    Raises:
        FileNotFoundError: If a folder, the annotation of an image, or the images of that density are missing, be it of
            some of the clear images alone.
        ValueError: If a city is unknown, or a file is corrupt or does not fit its image.
    """
    root = Path(root)
    if fog_density is not None and not (math.isfinite(fog_density) and fog_density > 0):
        raise ValueError(f"fog_density is {fog_density}; take a positive number, or None for clear images")
    paths = find_images(root, split, fog_density, cities)
    if fog_density is not None:
        _check_foggy(root, split, fog_density, cities, paths)
    advice = unpacking_advice(root, _image_folder(fog_density))
    records = []
    for path, (height, width) in zip(paths, image_sizes(paths, advice), strict=True):
        frame = _frame(path, fog_density)
        records.append(Record(file_name=str(path), image_id=frame, height=height, width=width, annotations=[]))
    name, expected = expected_images(root, split, cities)
    fog = "" if fog_density is None else f"foggy_{fog_density:g}_"
    dataset = DetectionDataset(f"{name}_{fog}{split}", CITYSCAPES_CLASSES, records, fog_density)
    log_counts(dataset, expected, _read_labels(root, split, paths, records) if labels else "")
    return dataset


def _read_labels(root: Path, split: str, paths: list[Path], records: list[Record]) -> str:
    """Fill in the annotations of records, and return what became of other boxes."""
    folder = root / "gtFine" / split
    advice = unpacking_advice(root, "gtFine")
    sources = [
        first_file([folder / path.parent.name / f"{record['image_id']}{end}" for end in ANNOTATION_SUFFIXES], advice)
        for path, record in zip(paths, records, strict=True)
    ]
    parsed = _parse_cached(root, sources, root / ".gh_cache" / f"cityscapes_{split}.json")
    for record, source, entry in zip(records, sources, parsed, strict=True):
        size = [record["height"], record["width"]]
        if entry["size"] != size:
            image = record["file_name"]
            raise ValueError(f"{source} is of {entry['size']} pixels (height, width), its image {image} of {size}")
        record["annotations"] = [box for box in entry["annotations"] if min(box["bbox"][2:]) > 1]
    dropped = sum(len(entry["annotations"]) for entry in parsed) - sum(len(x["annotations"]) for x in records)
    return f"{dropped} a single pixel thick dropped"


def _check_foggy(
    root: Path, split: str, fog_density: float, cities: Sequence[str] | None, paths: Sequence[Path]
) -> None:
    """What was made or unpacked in part would be trained and measured on without a word."""
    clear = (root / "leftImg8bit" / split).glob(f"*/*{image_suffix(None)}")
    frames = {_frame(path, None) for path in clear if cities is None or path.parent.name in cities}
    lacking = sorted(frames - {_frame(path, fog_density) for path in paths})
    if lacking:
        folder = _image_folder(fog_density)
        raise FileNotFoundError(
            f"{root / folder / split} lacks {len(lacking)} of {len(lacking) + len(paths)} images of density "
            f"{fog_density:g}, such as that of {lacking[0]}; {unpacking_advice(root, folder)}, or make them: "
            f"gh-downstream data fog {root} --split {split} --beta {fog_density:g}"
        )


def _frame(path: Path, fog_density: float | None) -> str:
    return path.name.removesuffix(image_suffix(fog_density))


def image_suffix(fog_density: float | None) -> str:
    """How the file names of the images end: ``_leftImg8bit.png``, or with the fog's density."""
    return "_leftImg8bit.png" if fog_density is None else f"_leftImg8bit_foggy_beta_{fog_density:g}.png"


def _image_folder(fog_density: float | None) -> str:
    return "leftImg8bit" if fog_density is None else "leftImg8bit_foggy"


def find_images(
    root: Path, split: str, fog_density: float | None = None, cities: Sequence[str] | None = None
) -> list[Path]:
    """List the images of a split, of some cities or all, clear or at one density of fog, in the order of their names.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If a city is unknown.
    """
    folder = root / _image_folder(fog_density) / split
    remedy = unpacking_advice(root, folder.parent.name)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; {remedy}")
    available = sorted(path.name for path in folder.iterdir() if path.is_dir())
    unknown = sorted(set(cities or ()) - set(available))
    if unknown:
        raise ValueError(f"{folder} has no cities {', '.join(unknown)}; it has {', '.join(available)}")
    suffix = image_suffix(fog_density)
    chosen = available if cities is None else sorted(set(cities))
    paths = [path for city in chosen for path in sorted((folder / city).glob(f"*{suffix}"))]
    if not paths:
        others = ""
        if fog_density is not None:
            found = {path.stem.rpartition("_beta_")[2] for path in folder.glob("*/*_foggy_beta_*.png")}
            others = f" (densities found: {', '.join(sorted(found)) or 'none'})"
        raise FileNotFoundError(f"{folder} holds no */*{suffix}{others}; {remedy}")
    return paths


def expected_images(root: Path, split: str, cities: Sequence[str] | None = None) -> tuple[str, int | None]:
    """Name of the data set in ``root``, and the number of images that a split, or some cities of it, should have.

    Both are those of the manifest, or of Cityscapes; no number where it is not known.

    Raises:
        ValueError: If there is a manifest that cannot be read, or does not name the split.
    """
    path = root / MANIFEST
    if not path.is_file():
        return "cityscapes", _CITYSCAPES.get(split) if cities is None else None
    with readable(path, "manifest", "make the tree again"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        name, images = manifest["name"], manifest["images"][split]
        if not (isinstance(name, str) and name.isprintable()):
            raise ValueError(f"the name {name!r}")
        return name, sum(images.get(city, 0) for city in (images if cities is None else set(cities)))


def instance_annotations(instance_ids: np.ndarray) -> list[Annotation]:
    """Boxes of an instance map of Cityscapes: ``label * 1000 + number`` for an object, ``label`` for a group.

    One for each object and group of the 8 classes, in the order of the ids: around its visible pixels, their number as
    its area. The map is uint16 of shape ``[H, W]``.
    """
    area = np.bincount(instance_ids.ravel())
    present = np.flatnonzero(area)
    labels = np.where(present >= 1000, present // 1000, present)
    wanted = present[np.isin(labels, list(LABEL_IDS.values()))]

    slot_of_id = np.zeros(area.size, np.intp)
    slot_of_id[wanted] = np.arange(1, wanted.size + 1)
    slots = slot_of_id[instance_ids]
    row, column = np.nonzero(slots)
    slot = slots[row, column] - 1
    height, width = instance_ids.shape
    rows, columns = np.zeros((wanted.size, height), bool), np.zeros((wanted.size, width), bool)
    rows[slot, row] = True
    columns[slot, column] = True
    top, left = rows.argmax(1), columns.argmax(1)
    bottom, right = height - rows[:, ::-1].argmax(1), width - columns[:, ::-1].argmax(1)

    label_ids = list(LABEL_IDS.values())
    return [
        Annotation(
            bbox=[float(left[i]), float(top[i]), float(right[i] - left[i]), float(bottom[i] - top[i])],
            category_id=label_ids.index(number // 1000 if number >= 1000 else number),
            area=float(area[number]),
            iscrowd=int(number < 1000),
        )
        for i, number in enumerate(wanted.tolist())
    ]


def draw_instance_ids(polygons: dict[str, Any]) -> np.ndarray:
    """Draw the instance map, uint16 of shape ``[H, W]``, from the content of a ``*_gtFine_polygons.json``.

    Objects are drawn in the order of the file, so later ones hide earlier ones; labels other than the 8 classes
    hide what is under them too (but a licence plate, which Cityscapes counts as part of its vehicle).
    """
    width, height = polygons["imgWidth"], polygons["imgHeight"]
    if not 0 < width * height < _MOST_PIXELS:
        raise ValueError(f"it is of {width} x {height} pixels")
    canvas = Image.new("I", (width, height))
    draw = ImageDraw.Draw(canvas)
    numbers = dict.fromkeys(CITYSCAPES_CLASSES, 0)
    for item in polygons["objects"]:
        label = item["label"]
        if item.get("deleted") or label == "license plate":
            continue
        value = LABEL_IDS.get(label.removesuffix("group"), 0)
        if label in LABEL_IDS:
            value = value * 1000 + numbers[label]
            numbers[label] += 1
        draw.polygon([(x, y) for x, y in item["polygon"]], fill=value)
    return np.asarray(canvas).astype(np.uint16)


def _parse(root: Path, path: Path) -> dict[str, Any]:
    remedy = unpacking_advice(root, "gtFine")
    if path.suffix == ".png":
        instance_ids = read_uint16(path, remedy)
    else:
        with readable(path, "polygon file of Cityscapes", remedy):
            instance_ids = draw_instance_ids(json.loads(path.read_text(encoding="utf-8")))
    return {"size": list(instance_ids.shape), "annotations": instance_annotations(instance_ids)}


def _parse_cached(root: Path, paths: list[Path], cache_file: Path) -> list[dict[str, Any]]:
    """Parse annotation files, those whose size and modification time are as cached excepted."""
    cached: dict[str, Any] = {}
    try:
        content = json.loads(cache_file.read_text(encoding="utf-8"))
        if content["version"] == _CACHE_VERSION:
            cached = content["files"]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is no readable cache (%r): parsing the annotations again", cache_file, error)

    keys = [path.relative_to(root).as_posix() for path in paths]
    stamps = [[(status := path.stat()).st_size, status.st_mtime_ns] for path in paths]
    stale = [i for i, key in enumerate(keys) if key not in cached or cached[key]["stamp"] != stamps[i]]
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        for i, entry in zip(stale, pool.map(lambda i: _parse(root, paths[i]), stale), strict=True):
            cached[keys[i]] = {"stamp": stamps[i], **entry}
    if stale:
        try:
            write_atomically(cache_file, json.dumps({"version": _CACHE_VERSION, "files": cached}).encode())
        except OSError as error:
            logger.warning("going on without a cache of the annotations: %s", error)
    return [cached[key] for key in keys]


def unpacking_advice(root: Path, folder: str) -> str:
    """What to do about a file of ``folder`` that is missing or corrupt."""
    return f"unpack {ARCHIVES[folder]} (cityscapes-dataset.com) in {root}"
