"""What stands in the streets of Mini-Cityscapes: vehicles, two-wheelers, people, trees and lamps as flat shapes.

The world is in metres: x to the right of the camera, y up from the ground, z ahead. Vehicles are solids, lit by the
sun; people and two-wheelers are cards that carry a picture. Every function takes the random generator and the place
``(x, z)`` of the object's centre on the ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

CAMERA_HEIGHT = 2.2
"""Height of the camera above the road in metres."""

Colour = tuple[float, float, float]
Point = tuple[float, float]
Outline = Sequence[Point]

_CIRCLE = [(float(np.cos(angle)), float(np.sin(angle))) for angle in np.arange(12) * np.pi / 6]
_TYRE, _GLASS, _DARK, _METAL = (26, 26, 28), (46, 56, 68), (22, 22, 24), (150, 150, 155)
_RED_LIGHT, _HEADLIGHT, _AMBER = (210, 30, 25), (250, 245, 215), (250, 170, 40)
_CAR_PAINT = (
    (228, 228, 230),
    (178, 182, 188),
    (44, 46, 52),
    (104, 108, 116),
    (165, 30, 34),
    (36, 66, 140),
    (30, 92, 74),
)
_BUS_PAINT = ((230, 182, 30), (200, 44, 40), (44, 96, 170), (60, 140, 80))
_TRAM_PAINT = ((190, 30, 40), (24, 110, 96), (206, 90, 30), (40, 70, 130))
_CARGO_PAINT = ((232, 232, 228), (206, 196, 170), (60, 96, 150), (176, 60, 44), (120, 130, 120))
_CLOTHES = ((44, 48, 66), (150, 40, 44), (60, 90, 140), (206, 202, 192), (54, 100, 70), (214, 160, 60), (110, 70, 120))
_TROUSERS = ((34, 38, 54), (60, 62, 68), (96, 84, 66), (24, 24, 28), (70, 84, 110))
_SKIN = ((224, 180, 150), (196, 146, 112), (140, 96, 70))
_HAIR = ((40, 28, 20), (90, 62, 36), (24, 22, 22), (170, 140, 90))
_LEAVES = ((58, 92, 40), (76, 104, 44), (44, 78, 46), (104, 98, 44))


@dataclass(frozen=True)
class Shape:
    """A polygon ``[n, 3]``, or a line of ``width`` metres; without a colour it marks pixels as the object's."""

    points: np.ndarray
    colour: Colour | None
    width: float = 0.0


@dataclass(frozen=True)
class Thing:
    """One object of the street.

    Args:
        label: Its detection class, or ``None`` for scenery.
        layers: Depth in metres, and what is painted at that depth, in this order.
        footprint: Its outline on the ground ``[n, 3]``.
        group: Whether annotators would not tell its members apart.
    """

    label: str | None
    layers: list[tuple[float, list[Shape]]]
    footprint: np.ndarray
    group: bool = False


class _Solid:
    """A vehicle that drives along ``heading`` (radians; 0 ahead, pi towards the camera).

    It is built in (across, up, along), from ``rear`` to ``front`` metres along and ``half_width`` metres to each side.
    Only faces that are turned to the camera are painted; later ones cover earlier ones.
    """

    def __init__(
        self, place: Point, heading: float, sun: np.ndarray, half_width: float, rear: float, front: float
    ) -> None:
        self.place, self.sun = np.array([place[0], 0.0, place[1]]), sun
        cos, sin = np.cos(heading), np.sin(heading)
        self.axes = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])  # of (across, up, along)
        self.half_width, self.rear, self.front = half_width, rear, front
        self.layers: list[tuple[float, list[Shape]]] = []

    def layer(self, along: float) -> None:
        """Start a layer, at the depth of this point of the vehicle."""
        self.layers.append((float(self.place[2] + along * self.axes[2, 2]), []))

    def face(self, points: Sequence[Sequence[float]], normal: Sequence[float], colour: Colour) -> None:
        """Paint a flat face in (across, up, along), lit by the sun."""
        world, outward = np.array(points) @ self.axes + self.place, np.array(normal) @ self.axes
        if outward @ (world[0] - (0, CAMERA_HEIGHT, 0)) < 0:
            light = 0.55 + 0.45 * max(0.0, float(outward @ self.sun / np.linalg.norm(outward)))
            self.layers[-1][1].append(Shape(world, _shade(colour, light)))

    def sides(self, outline: Outline, colour: Colour, inset: float = 0.0) -> None:
        """Paint an outline in (along, up) on both sides, ``inset`` metres inwards."""
        for side in (-1, 1):
            across = side * (self.half_width - inset)
            self.face([(across, up, along) for along, up in outline], (side, 0, 0), colour)

    def pane(self, facing: int, foot: Point, head: Point, half_width: float, colour: Colour) -> None:
        """Paint a pane from ``foot`` to ``head`` (along, up) that faces ahead (1) or back (-1)."""
        corners = [(across, head[1], head[0]) for across in (-half_width, half_width)]
        corners += [(across, foot[1], foot[0]) for across in (half_width, -half_width)]
        self.face(corners, (0, facing * (foot[0] - head[0]), facing * (head[1] - foot[1])), colour)

    def plate(self, facing: int, bottom: float, top: float, span: Point, colour: Colour) -> None:
        """Paint an upright rectangle on the front (``facing`` 1) or the rear (-1); ``span`` is left and right."""
        along = self.front if facing > 0 else self.rear
        left, right = span
        corners = [(left, bottom, along), (right, bottom, along), (right, top, along), (left, top, along)]
        self.face(corners, (0, 0, facing), colour)

    def pair(self, facing: int, bottom: float, top: float, span: Point, colour: Colour) -> None:
        """Two plates, mirrored about the middle."""
        self.plate(facing, bottom, top, span, colour)
        self.plate(facing, bottom, top, (-span[1], -span[0]), colour)

    def prism(self, outline: Outline, colour: Colour, inset: float = 0.0) -> None:
        """A body with this outline in (along, up), counter-clockwise; roofs are too flat to be seen."""
        for start, end in zip(outline, (*outline[1:], outline[0]), strict=True):
            if end[1] > start[1]:
                self.pane(1, start, end, self.half_width - inset, colour)
            elif end[1] < start[1]:
                self.pane(-1, end, start, self.half_width - inset, colour)
        self.sides(outline, colour, inset)

    def wheel(self, along: float, radius: float) -> None:
        self.sides(_disc(along, radius, radius), _TYRE)
        self.sides(_disc(along, radius, 0.5 * radius), _METAL)

    def tyres(self, facing: int, height: float) -> None:
        """The tyres as they show under the front or the rear."""
        self.pair(facing, 0, height, (self.half_width - 0.26, self.half_width), _TYRE)

    def line(self, points: Sequence[Sequence[float]], colour: Colour, width: float) -> None:
        self.layers[-1][1].append(Shape(np.array(points) @ self.axes + self.place, colour, width))

    def thing(self, label: str) -> Thing:
        half = self.half_width
        corners = [(-half, 0, self.rear), (half, 0, self.rear), (half, 0, self.front), (-half, 0, self.front)]
        return Thing(label, self.layers, np.array(corners) @ self.axes + self.place)


class _Card:
    """A picture in (across, up) on an upright card, turned by ``turn`` radians out of the image plane.

    Its unit is ``scale`` metres, its origin ``lift`` metres above the ground.
    """

    def __init__(self, place: Point, turn: float = 0.0, mirror: int = 1, scale: float = 1.0, lift: float = 0.0) -> None:
        self.origin = np.array([place[0], lift, place[1]])
        self.across = mirror * np.array([np.cos(turn), 0, np.sin(turn)])
        self.axes = scale * np.stack([self.across, (0, 1, 0)])
        self.shapes: list[Shape] = []

    def draw(self, outline: Outline, colour: Colour | None, width: float = 0.0) -> None:
        self.shapes.append(Shape(self.origin + np.array(outline) @ self.axes, colour, width))

    def thing(self, label: str | None, half_width: float) -> Thing:
        side, ahead = half_width * self.across, np.array([0, 0, 0.2])
        corners = np.stack([-side - ahead, side - ahead, side + ahead, -side + ahead])
        return Thing(label, [(float(self.origin[2]), self.shapes)], self.origin * (1, 0, 1) + corners)


def car(rng: np.random.Generator, place: Point, heading: float, sun: np.ndarray) -> Thing:
    """A passenger car: saloon, hatchback or estate."""
    solid, paint = _Solid(place, heading, sun, 0.9, -2.1, 2.1), _pick(rng, _CAR_PAINT)
    top, inset = rng.uniform(1.42, 1.6), 0.12
    boot, slope = ((0.8, 0.6), (0.15, 0.55), (0.1, 0.25))[int(rng.integers(3))]
    rear_foot, rear_head = (solid.rear + boot, 0.92), (solid.rear + boot + slope, top)
    front_foot, front_head = (solid.front - 1.0, 0.92), (solid.front - 1.75, top)
    solid.layer(0)
    solid.prism(_rectangle(-2.0, 2.0, 0.12, 0.3), _DARK, 0.05)
    solid.prism([rear_foot, front_foot, front_head, rear_head], _shade(paint, 0.95), inset)
    windows = [(rear_foot[0] + 0.2, 1.0), (front_foot[0] - 0.2, 1.0)]
    windows += [(front_head[0] - 0.05, top - 0.1), (rear_head[0] + 0.1, top - 0.1)]
    solid.sides(windows, _GLASS, inset)
    solid.sides(_rectangle(-0.05, 0.05, 0.92, top - 0.05), paint, inset)
    for facing, foot, head in ((-1, rear_foot, rear_head), (1, front_foot, front_head)):
        solid.pane(facing, _between(foot, head, 0.12), _between(foot, head, 0.85), 0.66, _GLASS)
    solid.prism([(-2.1, 0.25), (2.1, 0.25), (2.1, 0.7), (1.2, 0.95), (-2.05, 0.95)], paint)
    solid.pair(-1, 0.66, 0.86, (0.56, 0.86), _RED_LIGHT)
    solid.plate(-1, 0.25, 0.4, (-0.9, 0.9), _shade(paint, 0.5))
    solid.plate(-1, 0.5, 0.62, (-0.26, 0.26), (235, 235, 230))
    solid.pair(1, 0.52, 0.68, (0.5, 0.84), _HEADLIGHT)
    solid.plate(1, 0.3, 0.5, (-0.5, 0.5), _DARK)
    for facing, along in ((-1, -1.35), (1, 1.3)):
        solid.wheel(along, 0.34)
        solid.tyres(facing, 0.3)
    return solid.thing("car")


def truck(rng: np.random.Generator, place: Point, heading: float, sun: np.ndarray) -> Thing:
    """A lorry: a cab, and a box body that is higher and of another colour."""
    half_length, top = rng.uniform(3.0, 4.0), rng.uniform(3.2, 3.8)
    cargo, paint = _pick(rng, _CARGO_PAINT), _pick(rng, _CAR_PAINT)
    solid = _Solid(place, heading, sun, 1.25, -half_length, half_length)
    behind_cab, axle = solid.front - 2.1, solid.front - 1.0
    for start, end in pairwise((solid.rear, (solid.rear + behind_cab) / 2, behind_cab)):
        solid.layer((start + end) / 2)
        solid.sides(_rectangle(start, end, 0.45, 0.95), _DARK, 0.15)
        solid.sides(_rectangle(start, end, 0.95, top), cargo)
        solid.sides(_rectangle(start, end, top - 0.15, top), _shade(cargo, 0.8))
        solid.wheel((start + end) / 2, 0.5)
    solid.layer(axle)
    solid.pane(1, (behind_cab, 0.95), (behind_cab, top), 1.25, cargo)
    solid.prism(_rectangle(behind_cab + 0.1, solid.front, 0.4, 2.6), paint, 0.05)
    solid.sides(_rectangle(axle - 0.3, axle + 0.75, 1.6, 2.35), _GLASS, 0.05)
    solid.wheel(axle, 0.5)
    solid.plate(1, 1.5, 2.4, (-1.05, 1.05), _GLASS)
    solid.plate(1, 0.5, 0.75, (-1.2, 1.2), _DARK)
    solid.pair(1, 0.78, 1.0, (0.75, 1.15), _HEADLIGHT)
    solid.tyres(1, 0.5)
    solid.layer(solid.rear)
    solid.plate(-1, 0.45, 0.95, (-1.1, 1.1), _DARK)
    solid.plate(-1, 0.95, top, (-1.25, 1.25), cargo)
    solid.plate(-1, 0.95, top, (-0.03, 0.03), _shade(cargo, 0.45))
    solid.pair(-1, 1.1, top - 0.15, (0.87, 0.93), _shade(cargo, 0.7))
    solid.plate(-1, 0.5, 0.7, (-1.2, 1.2), _METAL)
    solid.pair(-1, 0.72, 0.92, (0.75, 1.15), _RED_LIGHT)
    solid.tyres(-1, 0.5)
    return solid.thing("truck")


def bus(rng: np.random.Generator, place: Point, heading: float, sun: np.ndarray) -> Thing:
    """A city bus of one colour with large windows, wheels and a lit destination sign."""
    solid, paint = _Solid(place, heading, sun, 1.25, -5.0, 5.0), _pick(rng, _BUS_PAINT)
    _coach(solid, 4, (0.3, 3.05), (1.25, 2.35), paint, paint, axles=(-3.6, 3.4))
    solid.layer(solid.rear)
    solid.plate(-1, 0.3, 3.05, (-1.25, 1.25), paint)
    solid.plate(-1, 1.55, 2.45, (-1.0, 1.0), _GLASS)
    solid.plate(-1, 2.6, 2.9, (-0.4, 0.4), _AMBER)
    solid.plate(-1, 0.35, 0.6, (-1.25, 1.25), _DARK)
    solid.pair(-1, 0.85, 1.1, (0.8, 1.2), _RED_LIGHT)
    solid.tyres(-1, 0.42)
    solid.layer(solid.front)
    solid.plate(1, 0.3, 3.05, (-1.25, 1.25), paint)
    solid.plate(1, 1.0, 2.4, (-1.12, 1.12), _GLASS)
    solid.plate(1, 2.5, 2.9, (-0.85, 0.85), _DARK)
    solid.plate(1, 2.58, 2.82, (-0.7, 0.7), _AMBER)
    solid.plate(1, 0.35, 0.6, (-1.25, 1.25), _DARK)
    solid.pair(1, 0.7, 0.92, (0.8, 1.2), _HEADLIGHT)
    solid.tyres(1, 0.42)
    return solid.thing("bus")


def train(rng: np.random.Generator, place: Point, heading: float, sun: np.ndarray) -> Thing:
    """A tram: two colours, a window band all along, a skirt instead of wheels, sloped ends and a pantograph."""
    half_length, top, white = rng.uniform(7.5, 10.5), 3.4, (226, 224, 216)
    solid, paint = _Solid(place, heading, sun, 1.2, -half_length, half_length), _pick(rng, _TRAM_PAINT)
    _coach(solid, 6, (0.15, top), (1.5, 2.6), white, paint)
    for facing, nose in ((-1, solid.rear), (1, solid.front)):
        solid.layer(nose)
        foot, head = (nose, 1.4), (nose - 0.35 * facing, top)
        outline = [(nose - 0.5 * facing, 0.15), (nose, 0.15), foot, head, (nose - 0.5 * facing, top)]
        solid.prism(outline[::facing], white)
        solid.pane(facing, _between(foot, head, 0.05), _between(foot, head, 0.72), 1.0, _GLASS)
        solid.pane(facing, _between(foot, head, 0.8), _between(foot, head, 0.95), 0.5, _AMBER)
        solid.plate(facing, 0.32, 1.3, (-1.2, 1.2), paint)
        solid.plate(facing, 0.15, 0.32, (-1.2, 1.2), _DARK)
        solid.pair(facing, 0.65, 0.85, (0.75, 1.1), _HEADLIGHT if facing > 0 else _RED_LIGHT)
    solid.layer(0)
    solid.line([(-0.5, top, 0), (0, top + 0.5, 0), (0.5, top, 0)], _DARK, 0.08)
    solid.line([(-0.8, top + 0.5, 0), (0.8, top + 0.5, 0)], _DARK, 0.08)
    return solid.thing("train")


def _coach(
    solid: _Solid,
    parts: int,
    heights: Point,
    windows: Point,
    paint: Colour,
    stripe: Colour,
    axles: Sequence[float] = (),
) -> None:
    """The long sides of a bus or a tram, part by part, so that each part has a depth of its own."""
    bottom, top = heights
    for start, end in pairwise(np.linspace(solid.rear, solid.front, parts + 1).tolist()):
        solid.layer((start + end) / 2)
        solid.sides(_rectangle(start, end, bottom, top), paint)
        solid.sides(_rectangle(start, end, bottom, windows[0] - 0.35), stripe)
        solid.sides(_rectangle(start, end, bottom, bottom + 0.2), _DARK)
        solid.sides(_rectangle(start + 0.12, end - 0.12, *windows), _GLASS)
        solid.sides(_rectangle(start, end, top - 0.2, top), _shade(stripe, 0.7))
        for along in axles:
            if start < along < end:
                solid.wheel(along, 0.48)


def person(rng: np.random.Generator, place: Point) -> Thing:
    """A pedestrian, standing or walking."""
    height = rng.uniform(1.55, 1.9) * (0.7 if rng.random() < 0.1 else 1.0)
    card = _Card(place, mirror=_either(rng), scale=height)
    clothes, trousers, skin, hair = (_pick(rng, colours) for colours in (_CLOTHES, _TROUSERS, _SKIN, _HAIR))
    stride = rng.uniform(0.03, 0.19)
    for foot, shade in ((-stride, 0.75), (stride, 1.0)):
        card.draw([(-0.07, 0.48), (0.07, 0.48), (foot + 0.04, 0.03), (foot - 0.05, 0.03)], _shade(trousers, shade))
        card.draw([(foot - 0.05, 0.0), (foot + 0.1, 0.0), (foot + 0.04, 0.05), (foot - 0.05, 0.05)], _DARK)
    swing = 0.8 * stride
    card.draw([(-0.11, 0.8), (-0.06, 0.8), (-0.07 - swing, 0.45), (-0.13 - swing, 0.45)], _shade(clothes, 0.7))
    card.draw([(-0.1, 0.82), (0.1, 0.82), (0.085, 0.45), (-0.085, 0.45)], clothes)
    card.draw([(-0.1, 0.82), (-0.02, 0.82), (-0.02, 0.45), (-0.085, 0.45)], _shade(clothes, 0.82))
    card.draw([(0.06, 0.81), (0.115, 0.79), (0.13 + swing, 0.45), (0.07 + swing, 0.45)], _shade(clothes, 0.9))
    card.draw(_disc(0.1 + swing, 0.43, 0.025), skin)
    card.draw(_rectangle(-0.025, 0.025, 0.8, 0.88), _shade(skin, 0.85))
    card.draw(_disc(0, 0.92, 0.068), hair)
    card.draw(_disc(0.018, 0.905, 0.052), skin)
    if rng.random() < 0.3:  # a rucksack
        card.draw(_rectangle(-0.17, -0.1, 0.52, 0.74), _pick(rng, _CLOTHES))
    return card.thing("person", 0.25)


def crowd(rng: np.random.Generator, place: Point) -> Thing:
    """People who stand close together."""
    people = [person(rng, (place[0] + rng.uniform(-1, 1), place[1] + rng.uniform(-0.4, 0.4))) for _ in range(5)]
    layers = [layer for member in people for layer in member.layers]
    return Thing("person", layers, np.concatenate([member.footprint for member in people]), group=True)


def bicycle(rng: np.random.Generator, place: Point, turn: float | None, ridden: bool) -> list[Thing]:
    """A bicycle, seen from its side (turned by ``turn``) or from behind (``None``); with its rider, if ridden."""
    paint, mirror = _pick(rng, (*_CAR_PAINT[3:], (220, 200, 60))), _either(rng)
    card = _Card(place, turn or 0.0, mirror)
    if turn is None:
        card.draw(_rectangle(-0.05, 0.05, 0, 0.7), _TYRE)
        card.draw([(0, 0.6), (0, 0.95)], paint, 0.06)
        card.draw([(-0.3, 1.02), (0.3, 1.02)], _DARK, 0.06)
        card.draw(_rectangle(-0.1, 0.1, 0.92, 1.0), _DARK)
        card.draw(_disc(0, 0.72, 0.06), _RED_LIGHT)
    else:
        # What annotators outline, the gaps between spokes and frame included.
        card.draw([(-0.85, 0.3), (-0.5, 0), (0.55, 0), (0.87, 0.3), (0.6, 1.02), (0.4, 1.05), (-0.3, 0.95)], None)
        for hub in (-0.52, 0.55):
            card.draw(_disc(hub, 0.34, 0.34), None)
            rim = _disc(hub, 0.34, 0.31)
            card.draw([*rim, rim[0]], _TYRE, 0.07)
            card.draw([(hub, 0.04), (hub, 0.64)], _METAL, 0.02)
        card.draw([(-0.52, 0.34), (-0.22, 0.8), (0.42, 0.82), (0.0, 0.32), (-0.52, 0.34)], paint, 0.07)
        card.draw([(-0.22, 0.8), (0.0, 0.32)], paint, 0.07)
        card.draw([(0.55, 0.34), (0.38, 0.98)], paint, 0.07)
        card.draw([(0.3, 1.0), (0.52, 1.04)], _DARK, 0.07)
        card.draw([(-0.38, 0.93), (-0.1, 0.93)], _DARK, 0.1)
    bike = card.thing("bicycle", 0.3 if turn is None else 0.85)
    return [bike, _rider(rng, place, turn, mirror, 0.93, None)] if ridden else [bike]


def motorcycle(rng: np.random.Generator, place: Point, turn: float | None, ridden: bool) -> list[Thing]:
    """A motorcycle, seen from its side (turned by ``turn``) or from behind (``None``); with its rider, if ridden."""
    paint, helmet, mirror = _pick(rng, _CAR_PAINT), _pick(rng, _CAR_PAINT), _either(rng)
    card = _Card(place, turn or 0.0, mirror)
    if turn is None:
        card.draw(_rectangle(-0.13, 0.13, 0, 0.62), _TYRE)
        card.draw([(-0.26, 0.45), (0.26, 0.45), (0.2, 0.92), (-0.2, 0.92)], paint)
        card.draw(_rectangle(-0.36, -0.2, 0.3, 0.5), _METAL)
        card.draw(_rectangle(-0.12, 0.12, 0.72, 0.84), _RED_LIGHT)
        card.draw([(-0.45, 1.05), (0.45, 1.05)], _DARK, 0.08)
        for across in (-0.47, 0.47):
            card.draw(_disc(across, 1.16, 0.08), _DARK)
    else:
        for hub in (-0.68, 0.7):
            card.draw(_disc(hub, 0.32, 0.32), _TYRE)
            card.draw(_disc(hub, 0.32, 0.17), _METAL)
        card.draw([(-0.4, 0.25), (0.35, 0.22), (0.45, 0.62), (-0.45, 0.66)], _shade(_METAL, 0.5))
        card.draw([(-0.75, 0.3), (-0.1, 0.3)], _METAL, 0.1)
        card.draw([(0.7, 0.32), (0.45, 1.0)], _METAL, 0.09)
        card.draw([(-0.98, 0.72), (-0.75, 0.68), (-0.1, 0.62), (0.05, 0.8), (-0.85, 0.86)], _DARK)
        card.draw([(-0.1, 0.6), (0.42, 0.6), (0.5, 0.86), (0.25, 1.0), (-0.02, 0.88)], paint)
        card.draw([(0.42, 0.62), (0.72, 0.72), (0.62, 1.08), (0.44, 1.12)], paint)
        card.draw([(-1.0, 0.52), (-0.8, 0.62), (-0.5, 0.64), (-0.55, 0.72), (-0.98, 0.72)], paint)
        card.draw([(0.42, 0.98), (0.22, 1.1)], _DARK, 0.08)
        card.draw(_disc(0.68, 0.86, 0.09), _HEADLIGHT)
        card.draw(_disc(-0.95, 0.76, 0.06), _RED_LIGHT)
    bike = card.thing("motorcycle", 0.4 if turn is None else 1.0)
    return [bike, _rider(rng, place, turn, mirror, 0.82, helmet)] if ridden else [bike]


def _rider(
    rng: np.random.Generator, place: Point, turn: float | None, mirror: int, saddle: float, helmet: Colour | None
) -> Thing:
    """A rider on a saddle of this height, drawn around it; bare-headed without a helmet."""
    card = _Card((place[0], place[1] - 0.05), turn or 0.0, mirror, lift=saddle)
    clothes, trousers, skin, hair = (_pick(rng, colours) for colours in (_CLOTHES, _TROUSERS, _SKIN, _HAIR))
    if turn is None:
        for side in (-1, 1):
            card.draw([(0.12 * side, 0), (0.24 * side, -0.2), (0.18 * side, -0.6)], _shade(trousers, 0.9), 0.15)
            card.draw([(0.2 * side, 0.5), (0.36 * side, 0.25), (0.3 * side, 0.12)], _shade(clothes, 0.8), 0.11)
        card.draw([(-0.19, -0.04), (0.19, -0.04), (0.23, 0.5), (-0.23, 0.5)], clothes)
        card.draw([(-0.19, -0.04), (-0.05, -0.04), (-0.05, 0.5), (-0.23, 0.5)], _shade(clothes, 0.85))
        card.draw(_rectangle(-0.06, 0.06, 0.48, 0.6), skin)
        card.draw(_disc(0, 0.7, 0.135), hair if helmet is None else helmet)
    else:
        card.draw([(-0.22, 0.05), (0.16, -0.12), (0.0, -0.55)], _shade(trousers, 0.75), 0.15)
        card.draw([(-0.22, 0.05), (0.2, -0.05), (0.06, -0.5), (0.16, -0.52)], trousers, 0.15)
        card.draw([(-0.34, 0), (-0.08, -0.02), (0.2, 0.5), (0.02, 0.62), (-0.2, 0.42)], clothes)
        card.draw([(-0.34, 0), (-0.25, 0), (0.02, 0.55), (-0.02, 0.6), (-0.2, 0.42)], _shade(clothes, 0.8))
        card.draw([(0.1, 0.5), (0.22, 0.22), (0.4, 0.16)], _shade(clothes, 0.88), 0.11)
        card.draw(_disc(0.2, 0.72, 0.135), skin if helmet is None else helmet)
        if helmet is None:
            card.draw([(0.04, 0.74), (0.14, 0.88), (0.3, 0.84), (0.16, 0.74)], hair)
        else:
            card.draw(_rectangle(0.2, 0.33, 0.68, 0.78), _GLASS)
    return card.thing("rider", 0.3)


def tree(rng: np.random.Generator, place: Point) -> Thing:
    """A street tree."""
    card, leaves = _Card(place, scale=rng.uniform(5, 9)), _pick(rng, _LEAVES)
    card.draw([(-0.025, 0), (0.025, 0), (0.015, 0.6), (-0.015, 0.6)], (70, 56, 44))
    for shade in np.linspace(0.55, 1.2, 24).tolist():  # lit leaves lie in front and higher
        across, up = rng.normal(0, 0.14), rng.normal(0.64 + 0.14 * (shade - 0.55), 0.11)
        card.draw(_disc(across, max(up, 0.4), rng.uniform(0.06, 0.13)), _shade(leaves, shade))
    return card.thing(None, 1.2)


def lamp(rng: np.random.Generator, place: Point) -> Thing:
    """A street lamp, or a post with a traffic sign."""
    card = _Card(place, mirror=-1 if place[0] > 0 else 1)  # the lamp hangs over the road
    if rng.random() < 0.5:
        card.draw([(0, 0), (0, 7.0), (1.5, 7.3)], (110, 114, 118), 0.14)
        card.draw([(1.5, 7.3), (2.1, 7.25)], (210, 210, 200), 0.2)
    else:
        card.draw([(0, 0), (0, 2.9)], (140, 142, 146), 0.1)
        border, inside = (((200, 30, 30), (240, 240, 240)), ((30, 70, 170), (230, 235, 245)))[int(rng.integers(2))]
        card.draw(_disc(0, 2.6, 0.36), border)
        card.draw(_disc(0, 2.6, 0.2), inside)
    return card.thing(None, 0.2)


def _rectangle(left: float, right: float, bottom: float, top: float) -> list[Point]:
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def _disc(across: float, up: float, radius: float) -> list[Point]:
    return [(across + radius * x, up + radius * y) for x, y in _CIRCLE]


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _either(rng: np.random.Generator) -> int:
    """1 or -1."""
    return 1 if rng.random() < 0.5 else -1


def _pick(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    """One of the colours, slightly varied."""
    return _shade(colours[int(rng.integers(len(colours)))], rng.uniform(0.85, 1.1))


def _shade(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor
