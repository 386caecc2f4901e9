"""One street of Mini-Cityscapes: image, instance map and depth map from a random generator.

The ground, the rows of buildings and the sky are cast ray by ray; objects are painted over them from far to near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from gh_downstream.detection.data.cityscapes import LABEL_IDS
from gh_downstream.detection.streets.layout import DEPTH_SCALE, LANE_LINES, ROAD, SIDEWALK, TRACK, populate
from gh_downstream.detection.streets.objects import CAMERA_HEIGHT, Thing

BASELINE = 0.209313
"""Distance of the two cameras in metres, that of Cityscapes."""

_SCALE = 2  # the canvas is this much finer than the image
_HORIZON = 0.4  # share of the image above the horizon
_MIN_VISIBLE = 12  # pixels of an object below which an annotator would not see it, and
_MIN_VISIBLE_SHARE = 0.1  # the same as a share of its whole box
_END = 16 * DEPTH_SCALE  # metres to the end of the street
_FACADES = (
    (196, 178, 140),
    (214, 206, 190),
    (150, 92, 72),
    (170, 160, 150),
    (188, 150, 120),
    (150, 164, 176),
    (120, 110, 104),
)


@dataclass(frozen=True)
class StreetScene:
    """A street as a camera sees it.

    Args:
        image: uint8 RGB of shape ``[H, W, 3]``.
        instance_ids: uint16 of shape ``[H, W]``, as in Cityscapes.
        depth: Depth in metres, float32 of shape ``[H, W]``, infinite in the sky.
        focal_length: In pixels.
    """

    image: np.ndarray
    instance_ids: np.ndarray
    depth: np.ndarray
    focal_length: float


@dataclass(frozen=True)
class _View:
    """The camera's view on the fine canvas."""

    height: int
    width: int
    focal_length: float
    horizon: float
    vanishing: float
    mirrored: bool

    def project(self, points: np.ndarray) -> list[tuple[float, float]]:
        scale = self.focal_length / points[:, 2]
        across = self.vanishing + scale * points[:, 0] * (-1 if self.mirrored else 1)
        down = self.horizon + scale * (CAMERA_HEIGHT - points[:, 1])
        return list(zip(across.tolist(), down.tolist(), strict=True))


def render_street(rng: np.random.Generator, height: int, width: int) -> StreetScene:
    """Draw a random street.

    Args:
        rng: The only source of randomness.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        The scene.
    """
    focal_length = DEPTH_SCALE * (1 - _HORIZON) * height / CAMERA_HEIGHT
    view = _View(
        height=_SCALE * height,
        width=_SCALE * width,
        focal_length=_SCALE * focal_length,
        horizon=_SCALE * height * (_HORIZON + rng.uniform(-0.03, 0.03)),
        vanishing=_SCALE * width * (0.5 + rng.uniform(-0.1, 0.1)),
        mirrored=bool(rng.random() < 0.5),
    )
    angle = rng.uniform(-np.pi, np.pi)
    sun = np.array([np.cos(angle), 0.0, np.sin(angle)])
    things = populate(rng, sun)
    background, depth = _background(rng, view, sun)
    background *= _shadows(view, things)
    image, owner, depth = _paint(view, things, background, depth)

    image = image.reduce(_SCALE)
    # Hard sun to flat overcast light, and exposures to match: a detector must not live on one contrast.
    light, contrast = rng.uniform(0.85, 1.15) * (1 + rng.uniform(-0.03, 0.03, 3)), rng.uniform(0.6, 1.1)
    pixels = light * (115 + contrast * (np.asarray(image, np.float32) - 115)) + rng.normal(0, 2, (height, width, 1))
    return StreetScene(
        image=np.clip(np.rint(pixels), 0, 255).astype(np.uint8),
        instance_ids=_instance_ids(view, things, owner)[1::_SCALE, 1::_SCALE],
        depth=depth[1::_SCALE, 1::_SCALE],
        focal_length=focal_length,
    )


def _background(rng: np.random.Generator, view: _View, sun: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sky, street and buildings: float32 RGB ``[h, w, 3]`` of 0 to 255, and depth in metres ``[h, w]``."""
    across = (np.arange(view.width, dtype=np.float32) + 0.5 - view.vanishing) / view.focal_length
    across *= -1 if view.mirrored else 1
    down = ((np.arange(view.height, dtype=np.float32) + 0.5 - view.horizon) / view.focal_length)[:, None]

    colour = _sky(rng, view)
    depth = np.full((view.height, view.width), np.inf, np.float32)
    hazy = rng.uniform(0.55, 0.8)
    blocks = np.floor((across * _END + rng.uniform(0, 20)) / 14).astype(int) % 16
    roofs = rng.uniform(6, 22, 16)[blocks]
    far_colours = np.array([_vary(rng, _FACADES) for _ in range(16)], np.float32)[blocks]
    far = (CAMERA_HEIGHT - down * _END < roofs) & (down < CAMERA_HEIGHT / _END)
    colour = np.where(far[..., None], hazy * far_colours + (1 - hazy) * colour, colour)
    depth[far] = _END

    ground_depth = CAMERA_HEIGHT / np.maximum(down, 1e-6)
    top = int(np.argmax((down > 0) & (ground_depth < _END)))  # the first row of ground
    colour[top:] = _ground(rng, across, ground_depth[top:])
    depth[top:] = ground_depth[top:]

    for side, edge in ((-1, ROAD[0] - SIDEWALK), (1, ROAD[1] + SIDEWALK)):
        columns = np.flatnonzero(np.sign(across) == side)
        wall_depth = edge / across[columns]
        columns, wall_depth = columns[wall_depth < _END], wall_depth[wall_depth < _END]
        up = CAMERA_HEIGHT - down * wall_depth
        lit = 0.62 + 0.38 * max(0.0, float(-side * sun[0]))
        facade, roof = _facade(rng, wall_depth, up, lit)
        hit = (up >= 0) & (up < roof)
        colour[:, columns] = np.where(hit[..., None], facade, colour[:, columns])
        depth[:, columns] = np.where(hit, wall_depth, depth[:, columns])
    return colour, depth


def _sky(rng: np.random.Generator, view: _View) -> np.ndarray:
    zenith, skyline = (
        ((86, 138, 206), (196, 214, 232)),
        ((150, 160, 172), (208, 212, 216)),
        ((120, 150, 190), (236, 220, 196)),
    )[rng.integers(3)]
    share = np.clip(np.arange(view.height, dtype=np.float32) / view.horizon, 0, 1)[:, None, None]
    sky = (1 - share) * np.array(zenith, np.float32) + share * np.array(skyline, np.float32)
    clouds = Image.fromarray(rng.integers(0, 256, (6, 8), np.uint8)).resize(
        (view.width, view.height), Image.Resampling.BICUBIC
    )
    cover = np.clip((np.asarray(clouds, np.float32) - rng.uniform(110, 200)) / 120, 0, 0.8)[..., None]
    return (1 - cover) * sky + cover * np.float32(238)


def _ground(rng: np.random.Generator, across: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Colour of the ground, for columns ``across`` ``[w]`` and rows of ``depth`` ``[h, 1]``."""
    x = across * depth
    fine = np.clip(1.2 - depth / 60, 0, 1)  # texture fades with distance
    asphalt = rng.uniform(78, 112)
    patches = np.asarray(
        Image.fromarray(rng.integers(0, 256, (9, 5), np.uint8)).resize(
            (x.shape[1], x.shape[0]), Image.Resampling.BICUBIC
        ),
        np.float32,
    )
    grey = asphalt + 0.05 * (patches - 128) + fine * rng.normal(0, 4, x.shape).astype(np.float32)
    worn = rng.uniform(0.5, 0.9)
    dash, length = rng.uniform(0, 9), 3 + 3 * rng.random()
    for line in LANE_LINES:
        painted = (np.abs(x - line) < 0.08) & ((line == LANE_LINES[0]) | (np.mod(depth + dash, 2.4 * length) < length))
        grey = np.where(painted, (1 - worn) * grey + worn * 225, grey)
    if rng.random() < 0.35:
        start = DEPTH_SCALE * rng.uniform(1.1, 3)
        zebra = (depth > start) & (depth < start + 4) & (np.mod(x, 1.0) < 0.5)
        grey = np.where(zebra, (1 - worn) * grey + worn * 225, grey)
    rails = np.minimum(np.abs(x - TRACK - 0.72), np.abs(x - TRACK + 0.72)) < 0.07
    grey = np.where(rails, 60, grey)

    beyond = np.maximum(ROAD[0] - x, x - ROAD[1])  # metres from the kerb, negative on the road
    slabs = rng.uniform(135, 165) - 14 * fine * ((np.mod(depth, 1.4) < 0.1) | (np.mod(beyond, 1.4) < 0.08))
    grey = np.where(beyond > 0, slabs + fine * rng.normal(0, 3, x.shape).astype(np.float32), grey)
    grey = np.where(np.abs(beyond) < 0.14, 178, grey)
    tint = np.where(beyond > 0, 1.0, 0.0)[..., None] * np.array([6, 2, -6], np.float32)
    return grey[..., None] + np.array([-1, 0, 3], np.float32) + tint


def _facade(rng: np.random.Generator, along: np.ndarray, up: np.ndarray, light: float) -> tuple[np.ndarray, np.ndarray]:
    """A row of houses: colour for columns ``along`` ``[w]`` and heights ``up`` ``[h, w]``, and each column's roof."""
    ends = np.cumsum(rng.uniform(9, 20, 40))
    house = np.searchsorted(ends, along)
    start = (ends - np.diff(ends, prepend=0))[house]
    roof = np.where(rng.random(40) < 0.12, 0, rng.uniform(8, 19, 40))[house]
    paint = np.array([_vary(rng, _FACADES) for _ in range(40)], np.float32)[house]
    pitch, storey = rng.uniform(2.2, 3.4, 40)[house], rng.uniform(2.9, 3.5, 40)[house]

    column, floor = (along - start) / pitch, (up - 0.9) / storey
    inside = (
        (np.abs(np.mod(column, 1) - 0.5) < 0.27)
        & (np.abs(np.mod(floor, 1) - 0.5) < 0.29)
        & (up > 0.9)
        & (up < roof - 1)
    )
    shade = rng.uniform(0.55, 1.25, (97,)).astype(np.float32)
    panes = (
        np.array([62, 72, 86], np.float32)
        * shade[(np.floor(column) * 7 + np.floor(floor) * 13 + house).astype(int) % 97][..., None]
    )
    dark = np.where(up > roof - 0.7, 0.65, np.where((up < 0.8) | (along - start < 0.25), 0.85, 1.0)).astype(np.float32)
    wall = light * paint * dark[..., None]
    fine = np.clip(1.5 - along / (7 * DEPTH_SCALE), 0.35, 1).astype(np.float32)[:, None]
    return np.where(inside[..., None], (1 - fine) * wall + fine * panes, wall), roof


def _shadows(view: _View, things: list[Thing]) -> np.ndarray:
    """Soft contact shadows as a factor on the ground's colour, ``[h, w, 1]``."""
    mask = Image.new("L", (view.width, view.height))
    draw = ImageDraw.Draw(mask)
    for thing in things:
        centre = thing.footprint.mean(0)
        draw.polygon(view.project(centre + 1.12 * (thing.footprint - centre)), fill=150)
    return 1 - np.asarray(mask.filter(ImageFilter.GaussianBlur(_SCALE)), np.float32)[..., None] / 255


def _paint(
    view: _View, things: list[Thing], background: np.ndarray, depth: np.ndarray
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Paint the things from far to near: image, index of the thing that owns each pixel plus 1, and depth."""
    image = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8))
    layers = sorted(
        (
            (distance, number, shapes)
            for number, thing in enumerate(things, start=1)
            for distance, shapes in thing.layers
        ),
        key=lambda layer: -layer[0],
    )
    marks = Image.new("I", image.size)
    draw_image, draw_marks = ImageDraw.Draw(image), ImageDraw.Draw(marks)
    for index, (distance, _, shapes) in enumerate(layers, start=1):
        for shape in shapes:
            points = view.project(shape.points)
            width = max(1, round(view.focal_length * shape.width / distance))
            paint = None if shape.colour is None else tuple(min(255, round(value)) for value in shape.colour)
            for draw, fill in ((draw_image, paint), (draw_marks, index)):
                if fill is not None and shape.width:
                    draw.line(points, fill=fill, width=width)
                elif fill is not None:
                    draw.polygon(points, fill=fill)
    mark = np.asarray(marks)
    owner = np.array([0, *(number for _, number, _ in layers)])[mark]
    distances = np.array([0, *(distance for distance, _, _ in layers)], np.float32)[mark]
    return image, owner, np.where(mark > 0, distances, depth)


def _instance_ids(view: _View, things: list[Thing], owner: np.ndarray) -> np.ndarray:
    """Number the labelled things that can be seen, class by class; a group has the id of its class."""
    visible = np.bincount(owner.ravel(), minlength=len(things) + 1)
    ids = np.zeros(len(things) + 1, np.uint16)
    numbers = dict.fromkeys(LABEL_IDS, 0)
    for index, thing in enumerate(things, start=1):
        if thing.label is None or visible[index] < _MIN_VISIBLE * _SCALE**2:
            continue
        corners = np.array(view.project(np.concatenate([s.points for _, shapes in thing.layers for s in shapes])))
        size = np.ptp(np.clip(corners, 0, (view.width, view.height)), axis=0)
        if visible[index] < _MIN_VISIBLE_SHARE * size.prod():
            continue
        label = LABEL_IDS[thing.label]
        ids[index] = label if thing.group else 1000 * label + numbers[thing.label]
        numbers[thing.label] += not thing.group
    return ids[owner]


def _vary(rng: np.random.Generator, colours: Sequence[tuple[float, float, float]]) -> np.ndarray:
    return np.array(colours[int(rng.integers(len(colours)))]) * rng.uniform(0.85, 1.1)
