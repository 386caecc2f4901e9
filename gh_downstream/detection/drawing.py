"""Boxes drawn on images, and the same images as several models see them."""

from collections.abc import Mapping, Sequence
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from gh_downstream.data.images import open_image
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
        Another image, RGB, of at most this width.
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
    """Draw the same images with the ground truth and as each model detects them, in one RGB image.

    It has a block of titled pictures for each image, and the colours of the classes at the bottom.

    Args:
        dataset: Data set of the images.
        detections: Detections by the name of the model; those on other images are ignored.
        image_ids: Images to draw.
        columns: Pictures side by side; the ground truth is first, the models follow in their order.
        score_threshold: Detections of lower scores are not drawn.
        width: Width of one picture in pixels, see :func:`draw_detections`.

    Raises:
        FileNotFoundError, ValueError: An image is missing, not readable or not in the data set, or there are none.
    """
    records = {record["image_id"]: record for record in dataset.records}
    if unknown := [image_id for image_id in image_ids if image_id not in records]:
        raise ValueError(f"data set {dataset.name!r} has no images {unknown}")
    if not image_ids:
        raise ValueError("no images to draw")
    blocks = []
    for image_id in image_ids:
        record = records[image_id]
        image = open_image(record["file_name"])
        pictures = {"ground truth": draw_detections(image, record["annotations"], dataset.classes, width=width)}
        for name, found in detections.items():
            shown = [box for box in found if box["image_id"] == image_id and box["score"] >= score_threshold]
            pictures[name] = draw_detections(image, shown, dataset.classes, width=width)
        titled = [_titled(picture, name) for name, picture in pictures.items()]
        gap = titled[0].width // 48
        rows = [_join(titled[first : first + columns], gap) for first in range(0, len(titled), columns)]
        blocks.append(_join(rows, gap, down=True))
    legend = _legend(dataset.classes, max(block.width for block in blocks), width)
    return _join([*blocks, legend], width // 16, down=True)


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
        right, bottom = x + width, y + height
        covered = any(x < other[2] and other[0] < right and y < other[3] and other[1] < bottom for other in taken)
        if y >= 0 and bottom <= size[1] and not covered:
            return x, y, right, bottom
    return None


def _titled(picture: Image.Image, title: str) -> Image.Image:
    font = ImageFont.load_default(max(12, picture.width // 24))
    height = round(_label_size(font, title)[1] * 1.3)
    canvas = Image.new("RGB", (picture.width, picture.height + height), _PAPER)
    ImageDraw.Draw(canvas).text((0, 0), title, fill=_INK, font=font)
    canvas.paste(picture, (0, height))
    return canvas


def _join(pictures: Sequence[Image.Image], gap: int, *, down: bool = False) -> Image.Image:
    """Put pictures side by side, or one below the other."""
    widths, heights = zip(*(picture.size for picture in pictures), strict=True)
    lengths = heights if down else widths
    total = sum(lengths) + gap * (len(pictures) - 1)
    canvas = Image.new("RGB", (max(widths), total) if down else (total, max(heights)), _PAPER)
    for index, picture in enumerate(pictures):
        place = sum(lengths[:index]) + gap * index
        canvas.paste(picture, (0, place) if down else (place, 0))
    return canvas


def _legend(classes: Sequence[str], width: int, picture_width: int) -> Image.Image:
    font = ImageFont.load_default(max(12, picture_width // 24))
    sizes = [_label_size(font, name) for name in classes]
    line = round(sizes[0][1] * 1.5)
    canvas = Image.new("RGB", (width, len(classes) * line), _PAPER)
    draw = ImageDraw.Draw(canvas)
    x, y = 0.0, 0
    for index, (name, (label_width, _)) in enumerate(zip(classes, sizes, strict=True)):
        if x + line + label_width > width and x:
            x, y = 0.0, y + line
        draw.rectangle((x, y, x + line * 0.6, y + line * 0.6), fill=class_color(index))
        draw.text((x + line * 0.8, y), name, fill=_INK, font=font)
        x += 2 * line + label_width
    return canvas.crop((0, 0, width, y + line))
