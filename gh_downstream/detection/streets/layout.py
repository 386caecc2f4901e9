"""Who stands where in a street of Mini-Cityscapes."""

from collections.abc import Sequence

import numpy as np

from gh_downstream.detection.streets import objects
from gh_downstream.detection.streets.camera import CAMERA_HEIGHT, DEPTH_SCALE
from gh_downstream.detection.streets.shapes import Point, Thing

ROAD = (-7.6, 4.8)
"""Left and right kerb in metres."""
LANE_LINES = (-4.6, -1.6, 1.6)
TRACK = -6.1
"""Middle of the tram track."""

_ONCOMING, _AHEAD, _RIGHT = -3.1, 0.0, 3.2  # middles of the lanes
_MOST_HIDDEN = 0.4  # share of an object's picture that another one may cover

# What is built, how often (chance of each), its size (across, up, along) in metres, its lanes, and the share of the way
# from the horizon down to the lower edge at which its near end stands.
_TRAFFIC = (
    (objects.train, (0.6, 0.6), (2.6, 3.5, 18.0), (TRACK,), (0.2, 0.6)),
    (objects.bus, (0.6, 0.5), (2.6, 3.1, 10.0), (_ONCOMING, _AHEAD, _RIGHT), (0.2, 0.55)),
    (objects.truck, (0.6, 0.5), (2.6, 3.5, 7.5), (_ONCOMING, _AHEAD, _RIGHT), (0.2, 0.55)),
    (objects.car, (0.75,) * 4, (1.9, 1.5, 4.3), (_ONCOMING, _AHEAD, _RIGHT, _RIGHT), (0.18, 0.9)),
)


class _Street:
    """Free places: no object stands in another one, or hides much of it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.taken: list[tuple[np.ndarray, np.ndarray]] = []  # box on the ground and box in the picture

    def place(
        self, xs: Sequence[float], size: tuple[float, float, float], shares: Point, spread: float = 0.0
    ) -> Point | None:
        """Find the centre ``(x, z)`` of an object of this size (across, up, along) in metres, if there is room.

        It is sought at ``xs`` across the street, varied by ``spread`` metres; its near end stands at ``shares`` of the
        way from the horizon down to the lower edge.
        """
        across, up, along = size
        for _ in range(30):
            x = float(self.rng.choice(xs)) + self.rng.uniform(-spread, spread)
            furthest, nearest = np.log(shares[0]), np.log(min(shares[1], 3.3 / max(abs(x), 0.1)))
            near = DEPTH_SCALE / np.exp(self.rng.uniform(furthest, max(furthest, nearest)))
            ground = np.array([[x - across / 2, near], [x + across / 2, near + along]])
            corners = ground[:, :1] / ground[:, 1], (np.array([[0], [up]]) - CAMERA_HEIGHT) / ground[:, 1]
            picture = np.array([[np.min(axis) for axis in corners], [np.max(axis) for axis in corners]])
            if all(_apart(ground, picture, *other) for other in self.taken):
                self.taken.append((ground, picture))
                return x, near + along / 2
        return None


def _apart(ground: np.ndarray, picture: np.ndarray, other_ground: np.ndarray, other_picture: np.ndarray) -> bool:
    hidden = other_picture if ground[0, 1] < other_ground[0, 1] else picture
    most = _MOST_HIDDEN * _overlap(hidden, hidden)
    return _overlap(ground, other_ground) == 0 and _overlap(picture, other_picture) <= most


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Area that two boxes ``[[left, bottom], [right, top]]`` have in common."""
    return float(np.clip(np.minimum(box[1], other[1]) - np.maximum(box[0], other[0]), 0, None).prod())


def populate(rng: np.random.Generator, sun: np.ndarray) -> list[Thing]:
    """Fill a street; ``sun`` is the horizontal direction of the sun, a unit vector ``[3]``."""
    street = _Street(rng)
    things: list[Thing] = []
    for build, chances, size, lanes, shares in _TRAFFIC:
        for chance in chances:
            if rng.random() > chance:
                continue
            if rng.random() < 0.25:  # it crosses the street
                spot = street.place((-4, 0, 4), size[::-1], (0.2, 0.5), spread=3)
                heading = rng.choice([-1, 1]) * np.pi / 2
            else:
                spot = street.place(lanes, size, shares, spread=0.15)
                heading = np.pi if spot and spot[0] < -1 else 0.0
            if spot:
                things.append(build(rng, spot, heading + rng.normal(0, 0.03), sun))
    for build_cycle in (objects.motorcycle, objects.bicycle) * 2:
        spot = street.place((-4.2, -1.6, 1.6, 4.2, 5.4), (1.4, 1.7, 1.0), (0.32, 0.95), spread=0.8)
        if spot and rng.random() < 0.7:
            ridden = bool(rng.random() < 0.75)
            from_behind = ridden and rng.random() < 0.5
            things += build_cycle(rng, spot, None if from_behind else rng.uniform(-0.6, 0.6), ridden)
    for _ in range(rng.integers(1, 5)):
        if spot := street.place((-8.8, -8.0, -2, 2, 5.6, 6.6), (0.7, 1.8, 0.6), (0.32, 0.95), spread=0.7):
            things.append(objects.person(rng, spot))
    if rng.random() < 0.15 and (spot := street.place((-8.8, 6.2), (2.4, 1.8, 1.0), (0.18, 0.35))):
        things.append(objects.crowd(rng, spot))
    for x in (ROAD[0] - 0.8, ROAD[1] + 0.8):
        for z in np.arange(rng.uniform(2, 4), 14, rng.uniform(1.2, 2.5)) * DEPTH_SCALE:
            build_scenery = objects.tree if rng.random() < 0.6 else objects.lamp
            things.append(build_scenery(rng, (x, float(z))))
    return things
