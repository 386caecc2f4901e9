"""Boxes drawn on images, and the same images as several models see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from gh_downstream.detection.data.images import read_rgb
from gh_downstream.detection.data.records import Annotation, DetectionDataset
from gh_downstream.detection.evaluation import Detection

CLASS_COLORS = (
    "#e6194b",
    "#e07800",
    "#1f5fd6",
    "#8b4ad6",
    "#00a08a",
    "#7a4a1e",
    "#e034c8",
    "#3c9a1e",
    "#00a5e0",
    "#b8a000",
)
"""Colours of the classes by their index, from the start again where there are more classes."""

_Rectangle = tuple[float, float, float, float]
_INK, _PAPER = "#222222", "#ffffff"


def class_color(category_id: int) -> str:
    """Return the colour of a class, the same in every picture."""
    return CLASS_COLORS[category_id % len(CLASS_COLORS)]


def draw_detections(
    image: Image.Image,
    boxes: Sequence[Annotation | Detection],
    classes: Sequence[str],
    *,
    width: int = 768,
) -> Image.Image:
    """Draw boxes with the names of their classes, and scores in percent where there are any.

    A label goes above its box, below or inside it; where all three places are taken by the labels of higher scores, it
    is left out and the colour alone tells the class.

    Args:
        image: The image that the boxes are measured on.
        boxes: Detections or annotations, with ``bbox`` as ``[x, y, width, height]`` in pixels of ``image``.
        classes: Names of the classes.
        width: Width of the result in pixels: a smaller image is enlarged by the largest integer factor that fits, a
            larger one is reduced to this width.

    Returns:
        An RGB image of at most this width; ``image`` itself is left as it is.
    """
    scale = width // image.width or width / image.width
    size = round(image.width * scale), round(image.height * scale)
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(11, width // 38))
    line = max(2, width // 256)
    labels: list[_Rectangle] = []
    by_score = sorted(boxes, key=_score, reverse=True)
    for box in reversed(by_score):
        draw.rectangle(_corners(box, scale), outline=class_color(box["category_id"]), width=line)
    for box in by_score:
        text = classes[box["category_id"]]
        if "score" in box:
            text += f" {100 * _score(box):.0f}"
        place = _free_place(_corners(box, scale), _label_size(font, text), size, labels)
        if place:
            labels.append(place)
            draw.rectangle(place, fill=class_color(box["category_id"]))
            draw.text((place[0] + 2, place[1] + 1), text, fill=_PAPER, font=font)
    return canvas


def comparison_grid(
    dataset: DetectionDataset,
    detections: Mapping[str, Sequence[Detection]],
    image_ids: Sequence[int | str],
    *,
    columns: int = 3,
    score_threshold: float = 0.5,
    width: int = 768,
) -> Image.Image:
    """Draw the same images with the ground truth and as each model detects them.

    Args:
        dataset: Data set of the images.
        detections: Detections by the name of the model; those on other images are ignored.
        image_ids: Images to draw.
        columns: Pictures side by side; the ground truth is first, the models follow in their order.
        score_threshold: Detections of lower scores are not drawn.
        width: Width of one picture in pixels, see :func:`draw_detections`.

    Returns:
        One RGB image: a block of titled pictures for each image, and the colours of the classes at the bottom.

    Raises:
        ValueError: An image is not in the data set, is not readable, or there are none.
        FileNotFoundError: The file of an image is missing.
    """
    records = {record["image_id"]: record for record in dataset.records}
    if unknown := [image_id for image_id in image_ids if image_id not in records]:
        raise ValueError(f"data set {dataset.name!r} has no images {unknown}")
    if not image_ids:
        raise ValueError("no images to draw")
    blocks = []
    for image_id in image_ids:
        record = records[image_id]
        image = Image.fromarray(read_rgb(Path(record["file_name"])))
        pictures = {"ground truth": draw_detections(image, record["annotations"], dataset.classes, width=width)}
        for name, found in detections.items():
            shown = [box for box in found if box["image_id"] == image_id and box["score"] >= score_threshold]
            pictures[name] = draw_detections(image, shown, dataset.classes, width=width)
        blocks.append(_tile([_titled(picture, name) for name, picture in pictures.items()], columns))
    used = max(block.width for block in blocks)
    return _stack([*blocks, _legend(dataset.classes, used, width)], gap=width // 16)


def _score(box: Annotation | Detection) -> float:
    return cast(Detection, box)["score"] if "score" in box else 1.0


def _corners(box: Annotation | Detection, scale: float) -> _Rectangle:
    x, y, width, height = box["bbox"]
    return x * scale, y * scale, (x + width) * scale, (y + height) * scale


def _label_size(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> tuple[float, float]:
    return font.getbbox(text)[2] + 4, font.getbbox("Ag")[3] + 4


def _free_place(
    box: _Rectangle, label: tuple[float, float], size: tuple[int, int], taken: Sequence[_Rectangle]
) -> _Rectangle | None:
    """Return the first place for a label, of those above, below and inside its box, that is free and in the image."""
    width, height = label
    x = min(max(box[0], 0), size[0] - width)
    for y in (box[1] - height, box[3], box[1]):
        place = x, y, x + width, y + height
        inside = y >= 0 and y + height <= size[1]
        if inside and not any(_overlap(place, other) for other in taken):
            return place
    return None


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _titled(picture: Image.Image, title: str) -> Image.Image:
    font = ImageFont.load_default(max(12, picture.width // 24))
    height = round(_label_size(font, title)[1] * 1.3)
    canvas = Image.new("RGB", (picture.width, picture.height + height), _PAPER)
    ImageDraw.Draw(canvas).text((0, 0), title, fill=_INK, font=font)
    canvas.paste(picture, (0, height))
    return canvas


def _tile(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Put pictures of one size side by side, in rows."""
    width, height = pictures[0].size
    gap = width // 48
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), _PAPER)
    for index, picture in enumerate(pictures):
        canvas.paste(picture, (index % columns * (width + gap), index // columns * (height + gap)))
    return canvas


def _stack(blocks: Sequence[Image.Image], gap: int) -> Image.Image:
    height = sum(block.height + gap for block in blocks) - gap
    canvas = Image.new("RGB", (max(block.width for block in blocks), height), _PAPER)
    top = 0
    for block in blocks:
        canvas.paste(block, (0, top))
        top += block.height + gap
    return canvas


def _legend(classes: Sequence[str], width: int, picture_width: int) -> Image.Image:
    font = ImageFont.load_default(max(12, picture_width // 24))
    sizes = [_label_size(font, name) for name in classes]
    line = round(sizes[0][1] * 1.5)
    places = []
    x, row = 0.0, 0
    for label_width, _ in sizes:
        if x + line + label_width > width and x:
            x, row = 0.0, row + 1
        places.append((x, row * line))
        x += 2 * line + label_width
    canvas = Image.new("RGB", (width, (row + 1) * line), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (name, (x, y)) in enumerate(zip(classes, places, strict=True)):
        draw.rectangle((x, y, x + line * 0.6, y + line * 0.6), fill=class_color(index))
        draw.text((x + line * 0.8, y), name, fill=_INK, font=font)
    return canvas
