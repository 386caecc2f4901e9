"""Mini-scenes: captioned drawings of two coloured shapes, in a clear source domain and a tinted target domain.

A caption names the size, the colour and the shape of both objects and their relation; the drawing follows from the
caption up to a jitter of the positions. The target domain says the same things of images that look otherwise: on a
coloured background that shines through the shapes, with outlines, each image in a tint of its own.
"""

from __future__ import annotations

import colorsys
import io
import itertools
import json
import logging
import math
import random
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from gh_downstream.data.generated import claim
from gh_downstream.files import write_atomically

logger = logging.getLogger(__name__)

SIZES = {"small": 0.11, "large": 0.19}
"""Half the extent of a shape, as a share of the image's side."""

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (245, 215, 30),
    "orange": (250, 130, 20),
    "purple": (140, 40, 180),
    "cyan": (40, 200, 220),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Direction from the second object to the first; x to the right, y down."""

TINT = 0.2
"""Share of the background's colour in the shapes of a target image."""

_OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_DISTANCE = 0.25  # of a centre from the middle of the image, as a share of its side
_JITTER = 0.05  # of a centre along x and along y, likewise; too little for large shapes to touch
_BACKGROUND = ((0.0, 1.0), (0.1, 0.3), (0.85, 0.95))  # hue, saturation and value of a target image
_VERSION = 1  # of the drawings and the choice of captions: a tree of another version is not taken up


Colour = tuple[int, ...]


class Thing(NamedTuple):
    """One object of a scene."""

    size: str
    colour: str
    shape: str


class Scene(NamedTuple):
    """Two objects and where the first is, seen from the second."""

    first: Thing
    relation: str
    second: Thing

    @property
    def caption(self) -> str:
        return f"a {' '.join(self.first)} {self.relation} a {' '.join(self.second)}"

    @property
    def reversed(self) -> Scene:
        """The same scene, told from the other object."""
        return Scene(self.second, _OPPOSITES[self.relation], self.first)


def make_mini_scenes(
    root: str | Path,
    train: int = 6000,
    target: int = 3000,
    val: int = 500,
    test: int = 500,
    seed: int = 0,
    size: int = 64,
) -> None:
    """Write mini-scenes: ``source/{train,val,test}.csv``, ``target/{train,val,test}.jsonl`` and their PNGs.

    Every image has one caption and every caption one image, over both domains. Training, validation and test share
    no scene, not even one told from its other object, and no two images of validation or test show the same scene.
    The captions of the target's training images are written too; who adapts without labels reads the images alone.

    The same arguments give the same files, byte for byte (with the same version of Pillow). A tree that is there
    already is completed if it was made with the same arguments, and left as it is if nothing is missing.

    Args:
        root: Folder to write to; new, empty, or an earlier tree.
        train: Number of source training images.
        target: Number of target training images.
        val: Number of validation images of each domain.
        test: Number of test images of each domain.
        seed: Seed of all the captions and drawings, 0 or more.
        size: Side of the square images in pixels, at least 32.

    Raises:
        ValueError: If an argument is out of range, there are not as many scenes, or ``root`` holds anything else;
            nothing is touched then.
    """
    root = Path(root)
    if min(train, target, val, test) < 1 or seed < 0 or size < 32:
        raise ValueError(
            f"train={train}, target={target}, val={val} and test={test} must be positive, seed={seed} not negative "
            f"and size={size} at least 32"
        )
    scenes = choose_scenes(train, target, val, test, seed)
    arguments = {"train": train, "target": target, "val": val, "test": test, "seed": seed, "size": size}
    claim(root, "mini-scenes", {"name": "mini_scenes", "arguments": {**arguments, "version": _VERSION}})
    drawn = 0
    for (domain, split), chosen in scenes.items():
        rows = [(f"images/{split}/{index:06d}.png", scene.caption) for index, scene in enumerate(chosen)]
        for (name, _), scene in zip(rows, chosen, strict=True):
            path = root / domain / name
            if not path.is_file():
                # Seeded by the file, so that a tree that is completed gets the drawings of one made at once.
                image = draw_scene(scene, domain, size, random.Random(f"{seed}/{domain}/{name}"))
                write_atomically(path, _png(image))
                drawn += 1
        # After its images: a table that is there is complete.
        suffix, table_of = _TABLES[domain]
        table = root / domain / f"{split}{suffix}"
        if not table.is_file():
            write_atomically(table, table_of(rows))
    total = sum(map(len, scenes.values()))
    done = f"{drawn} images written, of {total}" if drawn else f"{total} images are there already; left as they are"
    logger.info(f"{root}: mini-scenes, {done}")


def draw_scene(scene: Scene, domain: str, size: int, generator: random.Random) -> Image.Image:
    """Draw a scene as an RGB image of ``size x size`` pixels.

    Args:
        scene: What to draw.
        domain: ``source`` for flat shapes on white, ``target`` for outlined shapes that a tint shines through.
        size: Side of the image in pixels.
        generator: Gives the jitter of the positions and, in the target domain, the tint.
    """
    background: Colour = (255, 255, 255)
    tint = 0.0
    if domain == "target":
        rgb = colorsys.hsv_to_rgb(*(generator.uniform(*bounds) for bounds in _BACKGROUND))
        background, tint = tuple(round(255 * channel) for channel in rgb), TINT
    side = 2 * size  # drawn large and made smaller, for smooth edges
    image = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(image)
    dx, dy = RELATIONS[scene.relation]
    for thing, sign in ((scene.first, 1), (scene.second, -1)):
        x = side * (0.5 + sign * dx * _DISTANCE + generator.uniform(-_JITTER, _JITTER))
        y = side * (0.5 + sign * dy * _DISTANCE + generator.uniform(-_JITTER, _JITTER))
        fill = tuple(
            round((1 - tint) * own + tint * behind)
            for own, behind in zip(COLOURS[thing.colour], background, strict=True)
        )
        outline = tuple(channel // 3 for channel in background) if domain == "target" else fill
        _draw_shape(draw, thing.shape, x, y, side * SIZES[thing.size], fill, outline)
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: Colour, outline: Colour
) -> None:
    if shape in ("circle", "square"):
        half = radius if shape == "circle" else 0.85 * radius
        method = draw.ellipse if shape == "circle" else draw.rectangle
        method((x - half, y - half, x + half, y + half), fill, outline, width=2)
        return
    # Corners from the top, clockwise; those of a star are alternately out and in.
    corners, inner = (3, 1.0) if shape == "triangle" else (10, 0.4)
    points = []
    for corner in range(corners):
        angle = 2 * math.pi * corner / corners
        reach = radius * (inner if corner % 2 else 1.0)
        points.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
    draw.polygon(points, fill, outline, width=2)


def choose_scenes(train: int, target: int, val: int, test: int, seed: int) -> dict[tuple[str, str], list[Scene]]:
    """Choose the scenes of ``(domain, split)``; arguments, disjointness and errors as in :func:`make_mini_scenes`."""
    things = [Thing(*parts) for parts in itertools.product(SIZES, COLOURS, SHAPES)]
    tellings = [Scene(*parts) for parts in itertools.product(things, RELATIONS, things)]
    scenes = [scene for scene in tellings if scene <= scene.reversed]
    generator = random.Random(f"{seed}/captions")
    generator.shuffle(scenes)
    taken = 2 * (val + test)
    held_out = [generator.choice((scene, scene.reversed)) for scene in scenes[:taken]]
    rest = [telling for scene in scenes[taken:] for telling in (scene, scene.reversed)]
    if taken > len(scenes) or train + target > len(rest):
        raise ValueError(
            f"val={val} and test={test} of each domain take {taken} of {len(scenes)} scenes and leave "
            f"{len(rest)} captions, of which train={train} and target={target} take {train + target}: ask for fewer"
        )
    generator.shuffle(rest)
    chosen = {
        ("source", "train"): rest[:train],
        ("target", "train"): rest[train : train + target],
    }
    remaining = iter(held_out)
    for split, count in (("val", val), ("test", test)):
        for domain in ("source", "target"):
            chosen[domain, split] = list(itertools.islice(remaining, count))
    return chosen


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _csv(rows: list[tuple[str, str]]) -> str:
    return "".join(f"{image},{caption}\n" for image, caption in [("image", "caption"), *rows])


def _jsonl(rows: list[tuple[str, str]]) -> str:
    return "".join(json.dumps({"image": image, "caption": caption}) + "\n" for image, caption in rows)


_TABLES = {"source": (".csv", _csv), "target": (".jsonl", _jsonl)}
