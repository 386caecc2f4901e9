"""What the things in the streets of Mini-Cityscapes are made of: polygons and lines in the world, solids and cards.

Places on the ground are ``(x, z)`` in the world of the camera.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gh_downstream.detection.streets.camera import CAMERA_HEIGHT

Colour = np.ndarray
"""RGB ``[3]`` of 0 to 255."""
Point = tuple[float, float]
Outline = Sequence[Point]
Patch = tuple[float, float, float, float, Colour]
"""Extent of a rectangle, and its colour."""

_CIRCLE = [(float(np.cos(angle)), float(np.sin(angle))) for angle in np.arange(12) * np.pi / 6]


def colours(codes: str) -> np.ndarray:
    """Colours ``[n, 3]`` from their hexadecimal codes."""
    return np.array(list(bytes.fromhex(codes)), float).reshape(-1, 3)


def pick(rng: np.random.Generator, palette: np.ndarray) -> Colour:
    """One of the colours ``[n, 3]``, slightly varied."""
    return palette[rng.integers(len(palette))] * rng.uniform(0.85, 1.1)


def rectangle(left: float, right: float, bottom: float, top: float) -> list[Point]:
    """Corners of a rectangle."""
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def disc(across: float, up: float, radius: float) -> list[Point]:
    """Corners of a disc about a point."""
    return [(across + radius * x, up + radius * y) for x, y in _CIRCLE]


class Shape(NamedTuple):
    """A polygon ``[n, 3]``, or a line of ``width`` metres, painted in the order of ``depth`` (metres from the camera).

    Without a colour it marks pixels as the object's.
    """

    points: np.ndarray
    colour: Colour | None
    depth: float
    width: float


class Thing:
    """One object of the street, drawn in its own axes ``[3, 3]`` (across, up, along) about its place on the ground.

    It reaches ``half_width`` metres to each side and ``half_length`` metres along and back. ``label`` is its detection
    class, ``None`` for scenery; annotators would not tell the members of a ``group`` apart.
    """

    def __init__(
        self, label: str | None, place: Point, axes: np.ndarray, half_width: float, half_length: float
    ) -> None:
        self.label, self.group = label, False
        self.axes, self.half_width, self.half_length = axes, half_width, half_length
        self.origin, self.depth = np.array([place[0], 0.0, place[1]]), place[1]
        corners = rectangle(-half_width, half_width, -half_length, half_length)
        self.footprint = np.array(corners) @ axes[[0, 2]] + self.origin
        self.shapes: list[Shape] = []

    def draw(self, colour: Colour | None, *outlines: Sequence[Sequence[float]], width: float = 0.0) -> None:
        """Add shapes; points are (across, up, along) or (across, up)."""
        for outline in outlines:
            world = np.array(outline) @ self.axes[: len(outline[0])] + self.origin
            self.shapes.append(Shape(world, colour, self.depth, width))


class Solid(Thing):
    """A vehicle that drives along ``heading`` (radians; 0 ahead, pi towards the camera).

    Only faces that are turned to the camera are painted; later ones cover earlier ones of the same layer.
    """

    def __init__(
        self, label: str, place: Point, heading: float, sun: np.ndarray, half_width: float, half_length: float
    ) -> None:
        cos, sin = np.cos(heading), np.sin(heading)
        super().__init__(label, place, np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]), half_width, half_length)
        self.sun = sun

    def layer(self, along: float) -> None:
        """Go on at the depth of this point of the vehicle."""
        self.depth = float(self.origin[2] + along * self.axes[2, 2])

    def face(self, points: Sequence[Sequence[float]], normal: Sequence[float], colour: Colour) -> None:
        """Paint a flat face in (across, up, along), lit by the sun."""
        corner, outward = np.array(points[0]) @ self.axes + self.origin, np.array(normal) @ self.axes
        if outward @ (corner - (0, CAMERA_HEIGHT, 0)) < 0:
            light = 0.55 + 0.45 * max(0.0, outward @ self.sun / np.linalg.norm(outward))
            self.draw(light * colour, points)

    def sides(self, outline: Outline, colour: Colour, inset: float = 0.0) -> None:
        """Paint an outline in (along, up) on both sides, ``inset`` metres inwards."""
        for side in (-1, 1):
            across = side * (self.half_width - inset)
            self.face([(across, up, along) for along, up in outline], (side, 0, 0), colour)

    def pane(self, facing: int, foot: Point, head: Point, half_width: float, colour: Colour) -> None:
        """Paint a pane from ``foot`` to ``head`` (along, up) that faces ahead (1) or back (-1)."""
        ends = (-half_width, head), (half_width, head), (half_width, foot), (-half_width, foot)
        corners = [(across, up, along) for across, (along, up) in ends]
        self.face(corners, (0, facing * (foot[0] - head[0]), facing * (head[1] - foot[1])), colour)

    def prism(self, outline: Outline, colour: Colour, inset: float = 0.0) -> None:
        """A body with this outline in (along, up), counter-clockwise; roofs are too flat to be seen."""
        for start, end in zip(outline, (*outline[1:], outline[0]), strict=True):
            if start[1] != end[1]:
                facing, foot, head = (1, start, end) if start[1] < end[1] else (-1, end, start)
                self.pane(facing, foot, head, self.half_width - inset, colour)
        self.sides(outline, colour, inset)

    def plates(self, facing: int, *patches: Patch) -> None:
        """Paint patches (left, right, bottom, top) on the front (1) or the rear (-1).

        Each comes with its mirror image about the middle.
        """
        for left, right, bottom, top, colour in patches:
            for span in ((left, right), (-right, -left)):
                corners = [(across, up, facing * self.half_length) for across, up in rectangle(*span, bottom, top)]
                self.face(corners, (0, 0, facing), colour)


class Card(Thing):
    """A picture in (across, up) on an upright card, turned by ``turn`` radians out of the image plane.

    Its unit is ``scale`` metres; ``half_width`` is in metres.
    """

    def __init__(
        self, label: str | None, place: Point, half_width: float, turn: float = 0, mirror: int = 1, scale: float = 1
    ) -> None:
        across = (mirror * np.cos(turn), 0, mirror * np.sin(turn))
        super().__init__(label, place, np.array([across, (0, 1, 0), (0, 0, 1)]), half_width, 0.2)
        self.axes *= scale
