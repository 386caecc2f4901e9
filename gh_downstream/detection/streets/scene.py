"""One street of Mini-Cityscapes: image, instance map and depth map from a random generator."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from gh_downstream.detection.streets.background import background
from gh_downstream.detection.streets.camera import View
from gh_downstream.detection.streets.layout import populate
from gh_downstream.detection.streets.shapes import Thing

_SCALE = 2  # the canvas is this much finer than the image
_MIN_VISIBLE = 12  # pixels of an object below which an annotator would not see it, and
_MIN_VISIBLE_SHARE = 0.1  # the same as a share of its whole box


@dataclass(frozen=True)
class StreetScene:
    """A street as a camera sees it.

    Args:
        image: uint8 RGB of shape ``[H, W, 3]``.
        instance_ids: uint16 of shape ``[H, W]``, as in Cityscapes.
        depth: Depth in metres, float32 of shape ``[H, W]``, infinite in the sky.
        focal_length: In pixels.
        centre: Column and row in pixels, from the left and the upper edge, that the camera looks at.
    """

    image: np.ndarray
    instance_ids: np.ndarray
    depth: np.ndarray
    focal_length: float
    centre: tuple[float, float]


def render_street(rng: np.random.Generator, height: int, width: int, label_ids: Mapping[str, int]) -> StreetScene:
    """Draw a random street.

    Args:
        rng: The only source of randomness.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        label_ids: Id of each detection class in the instance map.

    Returns:
        The scene.
    """
    view = View(rng, _SCALE * height, _SCALE * width)
    angle = rng.uniform(-np.pi, np.pi)
    sun = np.array([np.cos(angle), 0.0, np.sin(angle)])
    things = populate(rng, sun)
    ground, depth = background(rng, view, sun)
    image, owner, depth = _paint(view, things, ground * _shadows(view, things), depth)

    # Hard sun to flat overcast light, and exposures to match: a detector must not live on one contrast.
    light, contrast = rng.uniform(0.85, 1.15) * (1 + rng.uniform(-0.03, 0.03, 3)), rng.uniform(0.6, 1.1)
    pixels = light * (115 + contrast * (np.asarray(image.reduce(_SCALE), np.float32) - 115))
    pixels += rng.normal(0, 2, (height, width, 1))
    return StreetScene(
        image=np.clip(np.rint(pixels), 0, 255).astype(np.uint8),
        instance_ids=_instance_ids(view, things, owner, label_ids)[1::_SCALE, 1::_SCALE],
        depth=depth[1::_SCALE, 1::_SCALE],
        focal_length=view.focal_length / _SCALE,
        centre=(view.vanishing / _SCALE, view.horizon / _SCALE),
    )


def _shadows(view: View, things: list[Thing]) -> np.ndarray:
    """Soft contact shadows as a factor on the ground's colour, ``[h, w, 1]``."""
    mask = Image.new("L", (view.width, view.height))
    draw = ImageDraw.Draw(mask)
    for thing in things:
        centre = thing.footprint.mean(0)
        draw.polygon(view.project(centre + 1.12 * (thing.footprint - centre)), fill=150)
    return 1 - np.asarray(mask.filter(ImageFilter.GaussianBlur(_SCALE)), np.float32)[..., None] / 255


def _paint(
    view: View, things: list[Thing], ground: np.ndarray, depth: np.ndarray
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Paint the things from far to near: image, number from 1 of the thing that owns each pixel, and depth."""
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    marks = Image.new("I", image.size)  # number of the shape that is seen
    draw_image, draw_marks = ImageDraw.Draw(image), ImageDraw.Draw(marks)
    shapes = [(shape, number) for number, thing in enumerate(things, start=1) for shape in thing.shapes]
    shapes.sort(key=lambda entry: -entry[0].depth)
    for index, (shape, _) in enumerate(shapes, start=1):
        points, width = view.project(shape.points), max(1, round(view.focal_length * shape.width / shape.depth))
        canvases: list[tuple[ImageDraw.ImageDraw, int | tuple[int, ...]]] = [(draw_marks, index)]
        if shape.colour is not None:
            canvases.append((draw_image, tuple(min(255, round(value)) for value in shape.colour.tolist())))
        for draw, fill in canvases:
            if shape.width:
                draw.line(points, fill=fill, width=width)
            else:
                draw.polygon(points, fill=fill)
    seen = np.asarray(marks)
    owner = np.array([0, *(number for _, number in shapes)])[seen]
    distance = np.array([0, *(shape.depth for shape, _ in shapes)], np.float32)[seen]
    return image, owner, np.where(seen > 0, distance, depth)


def _instance_ids(view: View, things: list[Thing], owner: np.ndarray, label_ids: Mapping[str, int]) -> np.ndarray:
    """Number the labelled things that can be seen, class by class; a group has the id of its class."""
    visible = np.bincount(owner.ravel(), minlength=len(things) + 1)
    ids = np.zeros(len(things) + 1, np.uint16)
    numbers: Counter[str] = Counter()
    for index, thing in enumerate(things, start=1):
        if thing.label is None or visible[index] < _MIN_VISIBLE * _SCALE**2:
            continue
        corners = np.array(view.project(np.concatenate([shape.points for shape in thing.shapes])))
        size = np.ptp(np.clip(corners, 0, (view.width, view.height)), axis=0)
        if visible[index] < _MIN_VISIBLE_SHARE * size.prod():
            continue
        label = label_ids[thing.label]
        ids[index] = label if thing.group else 1000 * label + numbers[thing.label]
        numbers[thing.label] += not thing.group
    return ids[owner]
