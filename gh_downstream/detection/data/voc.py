"""Annotations in the format of Pascal VOC, an XML file for each image, which many tools write."""

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from gh_downstream.data.images import list_images
from gh_downstream.detection.data.records import Annotation, box_annotation, find_files, read_dataset, readable
from gh_downstream.files import write_atomically

_KIND = "annotation in the format of Pascal VOC"


def voc_boxes(path: Path, size: tuple[int, int], classes: Sequence[str], remedy: str) -> list[Annotation | None]:
    """Read the boxes of some classes from an annotation, as :func:`box_annotation` returns them.

    The coordinates are taken as they are, as edges that count from 0: so most tools write them, where Pascal VOC itself
    counts pixels from 1. What is called difficult becomes a region to ignore.

    Args:
        path: The XML file.
        size: Height and width of its image.
        classes: The classes, in the order of their indices.
        remedy: What the user can do about a file that is missing or corrupt.

    Raises:
        FileNotFoundError, ValueError: It is missing or corrupt, or does not fit its image.
    """
    with readable(path, _KIND, remedy):
        tree = ElementTree.parse(path).getroot()
        height, width = _numbers(tree, "size", "height", "width")
        if (height, width) != size:
            raise ValueError(f"it is of {(int(height), int(width))} pixels (height, width), its image of {size}")
        boxes = []
        for item in tree.iter("object"):
            if (name := _text(item, "name")) in classes:
                corners = _numbers(item, "bndbox", "xmin", "ymin", "xmax", "ymax")
                difficult = (item.findtext("difficult") or "").strip() == "1"
                boxes.append(box_annotation(corners, size, classes.index(name), difficult))
        return boxes


def convert_voc(images: Path, annotations: Path, output: Path, only: str = "*") -> None:
    """Write annotations in Pascal VOC's format as a JSON file in COCO's, which all engines read.

    The image of an annotation is the file of its name, with another ending, in the folder of images or one in it. The
    classes are those of all annotations of the folder, whichever are written, by the alphabet. What is called difficult
    becomes a region to ignore; boxes are clipped to their image, and dropped where thinner than a pixel.

    Args:
        images: Folder of the images, which the JSON names relative to it.
        annotations: Folder of the XML files.
        output: The JSON file.
        only: Pattern of the names of annotations, without their ending.

    Raises:
        FileNotFoundError, ValueError: There is none, one is corrupt, or an image is missing or not the only one of its
            name.
    """
    remedy = "give the folder of the images, and that of the XML files"
    names: set[str] = set()
    for path in find_files(annotations, "*.xml", remedy):
        with readable(path, _KIND, remedy):
            names.update(_text(item, "name") for item in ElementTree.parse(path).iter("object"))
    classes = sorted(names)
    files: dict[str, list[Path]] = {}
    for file in map(Path, list_images(images)):
        files.setdefault(file.stem, []).append(file)
    paths = []
    for path in find_files(annotations, f"{only}.xml", remedy):
        if len(files.get(path.stem, [])) != 1:
            raise FileNotFoundError(f"{path} has {len(files.get(path.stem, []))} images in {images}; {remedy}")
        paths += files[path.stem]

    def boxes(image: Path, size: tuple[int, int]) -> list[Annotation | None]:
        return voc_boxes(annotations / f"{image.stem}.xml", size, classes, remedy)

    dataset = read_dataset(output.stem, (*classes,), paths, remedy, boxes, None)
    for record in dataset.records:
        record["file_name"] = str(Path(record["file_name"]).relative_to(images))
    write_atomically(output, json.dumps(dataset.to_coco()))


def _numbers(item: ElementTree.Element, tag: str, *names: str) -> list[float]:
    return [float(_text(item, f"{tag}/{name}")) for name in names]


def _text(item: ElementTree.Element, tag: str) -> str:
    text = item.findtext(tag)
    if text is None:
        raise ValueError(f"no {tag} in {item.tag}")
    return text.strip()
