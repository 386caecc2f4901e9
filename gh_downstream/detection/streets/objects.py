"""What stands in the streets of Mini-Cityscapes: vehicles, two-wheelers, people, trees and lamps.

Every function takes the random generator and the place ``(x, z)`` of the object's centre on the ground. Vehicles are
solids with a heading, lit by the sun; two-wheelers, seen from their side (turned by ``turn`` radians) or from behind
(``None``), come with their rider, if ridden.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gh_downstream.detection.streets.shapes import Card, Colour, Patch, Point, Solid, colours, disc, pick, rectangle

_TYRE, _GLASS, _DARK, _METAL = colours("1a1a1c 2e3844 161618 96969b")
_RED_LIGHT, _HEADLIGHT, _AMBER, _NUMBER_PLATE = colours("d21e19 faf5d7 faaa28 ebebe6")
_TRAM_WHITE, _TRUNK, _LAMP_POST, _LAMP, _SIGN_POST = colours("e2e0d8 46382c 6e7276 d2d2c8 8c8e92")
_CAR_PAINT = colours("e4e4e6 b2b6bc 2c2e34 686c74 a51e22 24428c 1e5c4a")
_CARGO_PAINT = colours("e8e8e4 cec4aa 3c6096 b03c2c 788278")
_BUS_PAINT = colours("e6b61e c82c28 2c60aa 3c8c50")
_TRAM_PAINT = colours("be1e28 186e60 ce5a1e 284682")
_BICYCLE_PAINT = colours("686c74 a51e22 24428c 1e5c4a dcc83c")
_CLOTHES = colours("2c3042 96282c 3c5a8c cecac0 366446 d6a03c 6e4678")
_TROUSERS = colours("222636 3c3e44 605442 18181c 46546e")
_SKIN = colours("e0b496 c49270 8c6046")
_HAIR = colours("281c14 5a3e24 181616 aa8c5a")
_LEAVES = colours("3a5c28 4c682c 2c4e2e 68622c")
_SIGNS = (colours("c81e1e f0f0f0"), colours("1e46aa e6ebf5"))  # border and inside


def car(rng: np.random.Generator, place: Point, heading: float, sun: np.ndarray) -> Solid:
    """A passenger car: saloon, hatchback or estate."""
    solid, paint = Solid("car", place, heading, sun, 0.9, 2.1), pick(rng, _CAR_PAINT)
    top, inset = rng.uniform(1.42, 1.6), 0.12
    boot, slope = ((0.8, 0.6), (0.15, 0.55), (0.1, 0.25))[rng.integers(3)]
    rear_foot, rear_head = (boot - 2.1, 0.92), (boot - 2.1 + slope, top)
    front_foot, front_head = (1.1, 0.92), (0.35, top)
    solid.prism(rectangle(-2.0, 2.0, 0.12, 0.3), _DARK, 0.05)
    solid.prism([rear_foot, front_foot, front_head, rear_head], 0.95 * paint, inset)
    windows = [(rear_foot[0] + 0.2, 1.0), (0.9, 1.0), (0.3, top - 0.1), (rear_head[0] + 0.1, top - 0.1)]
    solid.sides(windows, _GLASS, inset)
    solid.sides(rectangle(-0.05, 0.05, 0.92, top - 0.05), paint, inset)
    for facing, foot, head in ((-1, rear_foot, rear_head), (1, front_foot, front_head)):
        solid.pane(facing, _between(foot, head, 0.12), _between(foot, head, 0.85), 0.66, _GLASS)
    solid.prism([(-2.1, 0.25), (2.1, 0.25), (2.1, 0.7), (1.2, 0.95), (-2.05, 0.95)], paint)
    solid.plates(-1, (0.56, 0.86, 0.66, 0.86, _RED_LIGHT), (-0.9, 0.9, 0.25, 0.4, 0.5 * paint))
    solid.plates(-1, (-0.26, 0.26, 0.5, 0.62, _NUMBER_PLATE))
    solid.plates(1, (0.5, 0.84, 0.52, 0.68, _HEADLIGHT), (-0.5, 0.5, 0.3, 0.5, _DARK))
    for facing, along in ((-1, -1.35), (1, 1.3)):
        _wheel(solid, along, 0.34)
        solid.plates(facing, (0.64, 0.9, 0, 0.3, _TYRE))
    return solid


def truck(rng: np.random.Generator, place: Point, heading: float, sun: np.ndarray) -> Solid:
    """A lorry: a cab, and a box body that is higher and of another colour."""
    half, top = rng.uniform(3.0, 4.0), rng.uniform(3.2, 3.8)
    cargo, paint = pick(rng, _CARGO_PAINT), pick(rng, _CAR_PAINT)
    solid = Solid("truck", place, heading, sun, 1.25, half)
    back, axle = half - 2.1, half - 1.0  # the cab's back and its axle
    wheels = [(along, 0.5) for along in np.linspace(-half, back, 5)[1::2].tolist()]
    box = (0, 0, 0.95, top, cargo), (0, 0, top - 0.15, top, 0.8 * cargo)
    _flanks(solid, np.linspace(-half, back, 3), wheels, (0, 0.15, 0.45, 0.95, _DARK), *box)
    solid.layer(axle)
    solid.pane(1, (back, 0.95), (back, top), 1.25, cargo)
    solid.prism(rectangle(back + 0.1, half, 0.4, 2.6), paint, 0.05)
    solid.sides(rectangle(axle - 0.3, axle + 0.75, 1.6, 2.35), _GLASS, 0.05)
    _wheel(solid, axle, 0.5)
    solid.plates(1, (-1.05, 1.05, 1.5, 2.4, _GLASS), (-1.2, 1.2, 0.5, 0.75, _DARK))
    solid.plates(1, (0.75, 1.15, 0.78, 1.0, _HEADLIGHT), (0.99, 1.25, 0, 0.5, _TYRE))
    solid.layer(-half)
    solid.plates(-1, (-1.1, 1.1, 0.45, 0.95, _DARK), (-1.25, 1.25, 0.95, top, cargo))
    solid.plates(-1, (-0.03, 0.03, 0.95, top, 0.45 * cargo), (0.87, 0.93, 1.1, top - 0.15, 0.7 * cargo))
    solid.plates(-1, (-1.2, 1.2, 0.5, 0.7, _METAL), (0.75, 1.15, 0.72, 0.92, _RED_LIGHT), (0.99, 1.25, 0, 0.5, _TYRE))
    return solid


def bus(rng: np.random.Generator, place: Point, heading: float, sun: np.ndarray) -> Solid:
    """A city bus of one colour with large windows, wheels and a lit destination sign."""
    solid, paint = Solid("bus", place, heading, sun, 1.25, 5.0), pick(rng, _BUS_PAINT)
    body, skirt, roof = (0, 0, 0.3, 3.05, paint), (0, 0, 0.3, 0.5, _DARK), (0, 0, 2.85, 3.05, 0.7 * paint)
    _flanks(solid, np.linspace(-5, 5, 5), ((-3.6, 0.48), (3.4, 0.48)), body, skirt, (0.12, 0, 1.25, 2.35, _GLASS), roof)
    solid.layer(-5)
    solid.plates(-1, (-1.25, 1.25, 0.3, 3.05, paint), (-1.0, 1.0, 1.55, 2.45, _GLASS), (-0.4, 0.4, 2.6, 2.9, _AMBER))
    solid.plates(-1, (-1.25, 1.25, 0.35, 0.6, _DARK), (0.8, 1.2, 0.85, 1.1, _RED_LIGHT), (0.99, 1.25, 0, 0.42, _TYRE))
    solid.layer(5)
    solid.plates(1, (-1.25, 1.25, 0.3, 3.05, paint), (-1.12, 1.12, 1.0, 2.4, _GLASS), (-0.85, 0.85, 2.5, 2.9, _DARK))
    solid.plates(1, (-0.7, 0.7, 2.58, 2.82, _AMBER), (-1.25, 1.25, 0.35, 0.6, _DARK))
    solid.plates(1, (0.8, 1.2, 0.7, 0.92, _HEADLIGHT), (0.99, 1.25, 0, 0.42, _TYRE))
    return solid


def train(rng: np.random.Generator, place: Point, heading: float, sun: np.ndarray) -> Solid:
    """A tram: two colours, a window band all along, a skirt instead of wheels, sloped ends and a pantograph."""
    half, top = rng.uniform(7.5, 10.5), 3.4
    solid, paint = Solid("train", place, heading, sun, 1.2, half), pick(rng, _TRAM_PAINT)
    body = (0, 0, 0.15, top, _TRAM_WHITE), (0, 0, 0.15, 1.15, paint), (0, 0, 0.15, 0.35, _DARK)
    bands = (0.12, 0, 1.5, 2.6, _GLASS), (0, 0, top - 0.2, top, 0.7 * paint)
    _flanks(solid, np.linspace(-half, half, 7), (), *body, *bands)
    for facing, nose, light in ((-1, -half, _RED_LIGHT), (1, half, _HEADLIGHT)):
        solid.layer(nose)
        foot, head = (nose, 1.4), (nose - 0.35 * facing, top)
        outline = [(nose - 0.5 * facing, 0.15), (nose, 0.15), foot, head, (nose - 0.5 * facing, top)]
        solid.prism(outline[::facing], _TRAM_WHITE)
        solid.pane(facing, _between(foot, head, 0.05), _between(foot, head, 0.72), 1.0, _GLASS)
        solid.pane(facing, _between(foot, head, 0.8), _between(foot, head, 0.95), 0.5, _AMBER)
        solid.plates(facing, (-1.2, 1.2, 0.32, 1.3, paint), (-1.2, 1.2, 0.15, 0.32, _DARK))
        solid.plates(facing, (0.75, 1.1, 0.65, 0.85, light))
    solid.layer(0)
    wires = [(-0.5, top, 0), (0, top + 0.5, 0), (0.5, top, 0)], [(-0.8, top + 0.5, 0), (0.8, top + 0.5, 0)]
    solid.draw(_DARK, *wires, width=0.08)
    return solid


def _flanks(solid: Solid, ends: np.ndarray, wheels: Sequence[Point], *patches: Patch) -> None:
    """Paint the long sides part by part, so that each has a depth of its own.

    Wheels are (along, radius), patches (margin to the part's ends, inset, bottom, top).
    """
    for start, end in pairwise(ends.tolist()):
        solid.layer((start + end) / 2)
        for margin, inset, bottom, top, colour in patches:
            solid.sides(rectangle(start + margin, end - margin, bottom, top), colour, inset)
        for along, radius in wheels:
            if start < along < end:
                _wheel(solid, along, radius)


def _wheel(solid: Solid, along: float, radius: float) -> None:
    solid.sides(disc(along, radius, radius), _TYRE)
    solid.sides(disc(along, radius, 0.5 * radius), _METAL)


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def person(rng: np.random.Generator, place: Point) -> Card:
    """A pedestrian, standing or walking."""
    height = rng.uniform(1.55, 1.9) * (0.7 if rng.random() < 0.1 else 1.0)
    card = Card("person", place, 0.25, mirror=_either(rng), scale=height)
    clothes, trousers, skin, hair = _looks(rng)
    stride = rng.uniform(0.03, 0.19)
    for foot, shade in ((-stride, 0.75), (stride, 1.0)):
        card.draw(shade * trousers, [(-0.07, 0.48), (0.07, 0.48), (foot + 0.04, 0.03), (foot - 0.05, 0.03)])
        card.draw(_DARK, [(foot - 0.05, 0.0), (foot + 0.1, 0.0), (foot + 0.04, 0.05), (foot - 0.05, 0.05)])
    swing = 0.8 * stride
    card.draw(0.7 * clothes, [(-0.11, 0.8), (-0.06, 0.8), (-0.07 - swing, 0.45), (-0.13 - swing, 0.45)])
    card.draw(clothes, [(-0.1, 0.82), (0.1, 0.82), (0.085, 0.45), (-0.085, 0.45)])
    card.draw(0.82 * clothes, [(-0.1, 0.82), (-0.02, 0.82), (-0.02, 0.45), (-0.085, 0.45)])
    card.draw(0.9 * clothes, [(0.06, 0.81), (0.115, 0.79), (0.13 + swing, 0.45), (0.07 + swing, 0.45)])
    card.draw(skin, disc(0.1 + swing, 0.43, 0.025))
    card.draw(0.85 * skin, rectangle(-0.025, 0.025, 0.8, 0.88))
    card.draw(hair, disc(0, 0.92, 0.068))
    card.draw(skin, disc(0.018, 0.905, 0.052))
    if rng.random() < 0.3:  # a rucksack
        card.draw(pick(rng, _CLOTHES), rectangle(-0.17, -0.1, 0.52, 0.74))
    return card


def crowd(rng: np.random.Generator, place: Point) -> Card:
    """People who stand close together."""
    people = [person(rng, (place[0] + rng.uniform(-1, 1), place[1] + rng.uniform(-0.4, 0.4))) for _ in range(5)]
    first = people[0]
    first.footprint = np.concatenate([member.footprint for member in people])
    first.shapes = [shape for member in people for shape in member.shapes]
    first.group = True
    return first


def bicycle(rng: np.random.Generator, place: Point, turn: float | None, ridden: bool) -> list[Card]:
    """A bicycle."""
    paint, mirror = pick(rng, _BICYCLE_PAINT), _either(rng)
    card = Card("bicycle", place, 0.3 if turn is None else 0.85, turn or 0.0, mirror)
    if turn is None:
        card.draw(_TYRE, rectangle(-0.05, 0.05, 0, 0.7))
        card.draw(paint, [(0, 0.6), (0, 0.95)], width=0.06)
        card.draw(_DARK, [(-0.3, 1.02), (0.3, 1.02)], width=0.06)
        card.draw(_DARK, rectangle(-0.1, 0.1, 0.92, 1.0))
        card.draw(_RED_LIGHT, disc(0, 0.72, 0.06))
    else:
        # What annotators outline, the gaps between spokes and frame included.
        card.draw(None, [(-0.85, 0.3), (-0.5, 0), (0.55, 0), (0.87, 0.3), (0.6, 1.02), (0.4, 1.05), (-0.3, 0.95)])
        for hub in (-0.52, 0.55):
            card.draw(None, disc(hub, 0.34, 0.34))
            rim = disc(hub, 0.34, 0.31)
            card.draw(_TYRE, [*rim, rim[0]], width=0.07)
            card.draw(_METAL, [(hub, 0.04), (hub, 0.64)], width=0.02)
        frame = [(-0.52, 0.34), (-0.22, 0.8), (0.42, 0.82), (0.0, 0.32), (-0.52, 0.34)]
        card.draw(paint, frame, [(-0.22, 0.8), (0.0, 0.32)], [(0.55, 0.34), (0.38, 0.98)], width=0.07)
        card.draw(_DARK, [(0.3, 1.0), (0.52, 1.04)], width=0.07)
        card.draw(_DARK, [(-0.38, 0.93), (-0.1, 0.93)], width=0.1)
    return [card, _rider(rng, place, turn, mirror, 0.93, None)] if ridden else [card]


def motorcycle(rng: np.random.Generator, place: Point, turn: float | None, ridden: bool) -> list[Card]:
    """A motorcycle."""
    paint, helmet, mirror = pick(rng, _CAR_PAINT), pick(rng, _CAR_PAINT), _either(rng)
    card = Card("motorcycle", place, 0.4 if turn is None else 1.0, turn or 0.0, mirror)
    if turn is None:
        card.draw(_TYRE, rectangle(-0.13, 0.13, 0, 0.62))
        card.draw(paint, [(-0.26, 0.45), (0.26, 0.45), (0.2, 0.92), (-0.2, 0.92)])
        card.draw(_METAL, rectangle(-0.36, -0.2, 0.3, 0.5))
        card.draw(_RED_LIGHT, rectangle(-0.12, 0.12, 0.72, 0.84))
        card.draw(_DARK, [(-0.45, 1.05), (0.45, 1.05)], width=0.08)
        card.draw(_DARK, disc(-0.47, 1.16, 0.08), disc(0.47, 1.16, 0.08))
    else:
        for hub in (-0.68, 0.7):
            card.draw(_TYRE, disc(hub, 0.32, 0.32))
            card.draw(_METAL, disc(hub, 0.32, 0.17))
        card.draw(0.5 * _METAL, [(-0.4, 0.25), (0.35, 0.22), (0.45, 0.62), (-0.45, 0.66)])
        card.draw(_METAL, [(-0.75, 0.3), (-0.1, 0.3)], width=0.1)
        card.draw(_METAL, [(0.7, 0.32), (0.45, 1.0)], width=0.09)
        card.draw(_DARK, [(-0.98, 0.72), (-0.75, 0.68), (-0.1, 0.62), (0.05, 0.8), (-0.85, 0.86)])
        card.draw(paint, [(-0.1, 0.6), (0.42, 0.6), (0.5, 0.86), (0.25, 1.0), (-0.02, 0.88)])
        card.draw(paint, [(0.42, 0.62), (0.72, 0.72), (0.62, 1.08), (0.44, 1.12)])
        card.draw(paint, [(-1.0, 0.52), (-0.8, 0.62), (-0.5, 0.64), (-0.55, 0.72), (-0.98, 0.72)])
        card.draw(_DARK, [(0.42, 0.98), (0.22, 1.1)], width=0.08)
        card.draw(_HEADLIGHT, disc(0.68, 0.86, 0.09))
        card.draw(_RED_LIGHT, disc(-0.95, 0.76, 0.06))
    return [card, _rider(rng, place, turn, mirror, 0.82, helmet)] if ridden else [card]


def _rider(
    rng: np.random.Generator, place: Point, turn: float | None, mirror: int, saddle: float, helmet: Colour | None
) -> Card:
    """A rider on a saddle of this height, drawn around it; bare-headed without a helmet."""
    card = Card("rider", (place[0], place[1] - 0.05), 0.3, turn or 0.0, mirror)
    card.origin[1] = saddle
    clothes, trousers, skin, hair = _looks(rng)
    if turn is None:
        for side in (-1, 1):
            card.draw(0.9 * trousers, [(0.12 * side, 0), (0.24 * side, -0.2), (0.18 * side, -0.6)], width=0.15)
            card.draw(0.8 * clothes, [(0.2 * side, 0.5), (0.36 * side, 0.25), (0.3 * side, 0.12)], width=0.11)
        card.draw(clothes, [(-0.19, -0.04), (0.19, -0.04), (0.23, 0.5), (-0.23, 0.5)])
        card.draw(0.85 * clothes, [(-0.19, -0.04), (-0.05, -0.04), (-0.05, 0.5), (-0.23, 0.5)])
        card.draw(skin, rectangle(-0.06, 0.06, 0.48, 0.6))
        card.draw(hair if helmet is None else helmet, disc(0, 0.7, 0.135))
    else:
        card.draw(0.75 * trousers, [(-0.22, 0.05), (0.16, -0.12), (0.0, -0.55)], width=0.15)
        card.draw(trousers, [(-0.22, 0.05), (0.2, -0.05), (0.06, -0.5), (0.16, -0.52)], width=0.15)
        card.draw(clothes, [(-0.34, 0), (-0.08, -0.02), (0.2, 0.5), (0.02, 0.62), (-0.2, 0.42)])
        card.draw(0.8 * clothes, [(-0.34, 0), (-0.25, 0), (0.02, 0.55), (-0.02, 0.6), (-0.2, 0.42)])
        card.draw(0.88 * clothes, [(0.1, 0.5), (0.22, 0.22), (0.4, 0.16)], width=0.11)
        card.draw(skin if helmet is None else helmet, disc(0.2, 0.72, 0.135))
        if helmet is None:
            card.draw(hair, [(0.04, 0.74), (0.14, 0.88), (0.3, 0.84), (0.16, 0.74)])
        else:
            card.draw(_GLASS, rectangle(0.2, 0.33, 0.68, 0.78))
    return card


def tree(rng: np.random.Generator, place: Point) -> Card:
    """A street tree."""
    card, leaves = Card(None, place, 1.2, scale=rng.uniform(5, 9)), pick(rng, _LEAVES)
    card.draw(_TRUNK, [(-0.025, 0), (0.025, 0), (0.015, 0.6), (-0.015, 0.6)])
    for shade in np.linspace(0.55, 1.2, 24).tolist():  # lit leaves lie in front and higher
        across, up = rng.normal(0, 0.14), rng.normal(0.64 + 0.14 * (shade - 0.55), 0.11)
        card.draw(shade * leaves, disc(across, max(up, 0.4), rng.uniform(0.06, 0.13)))
    return card


def lamp(rng: np.random.Generator, place: Point) -> Card:
    """A street lamp, or a post with a traffic sign."""
    card = Card(None, place, 0.2, mirror=-1 if place[0] > 0 else 1)  # the lamp hangs over the road
    if rng.random() < 0.5:
        card.draw(_LAMP_POST, [(0, 0), (0, 7.0), (1.5, 7.3)], width=0.14)
        card.draw(_LAMP, [(1.5, 7.3), (2.1, 7.25)], width=0.2)
    else:
        card.draw(_SIGN_POST, [(0, 0), (0, 2.9)], width=0.1)
        border, inside = _SIGNS[rng.integers(2)]
        card.draw(border, disc(0, 2.6, 0.36))
        card.draw(inside, disc(0, 2.6, 0.2))
    return card


def _looks(rng: np.random.Generator) -> list[Colour]:
    """Colours of clothes, trousers, skin and hair."""
    return [pick(rng, palette) for palette in (_CLOTHES, _TROUSERS, _SKIN, _HAIR)]


def _either(rng: np.random.Generator) -> int:
    """1 or -1."""
    return 1 if rng.random() < 0.5 else -1
