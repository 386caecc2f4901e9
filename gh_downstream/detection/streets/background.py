"""The ground, the rows of buildings and the sky of a street of Mini-Cityscapes, cast ray by ray."""

import numpy as np
from PIL import Image

from gh_downstream.detection.streets.camera import CAMERA_HEIGHT, DEPTH_SCALE, View
from gh_downstream.detection.streets.layout import LANE_LINES, ROAD, TRACK
from gh_downstream.detection.streets.shapes import colours, pick

_SIDEWALK = 2.9  # width in metres
_END = 16 * DEPTH_SCALE  # metres to the end of the street
_FACADES = colours("c4b28c d6cebe 965c48 aaa096 bc9678 96a4b0 786e68")
_SKIES = colours("568ace c4d6e8 96a0ac d0d4d8 7896be ecdcc4").astype(np.float32).reshape(3, 2, 3)
_ASPHALT_TINT, _SLAB_TINT = np.array([[-1, 0, 3], [5, 2, -3]], np.float32)
_GLASS = colours("3e4856").astype(np.float32)


def background(rng: np.random.Generator, view: View, sun: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw sky, street and buildings, lit from ``sun``, a horizontal unit vector ``[3]``.

    Returns:
        Float32 RGB ``[h, w, 3]`` of 0 to 255, and depth in metres ``[h, w]``, infinite in the sky.
    """
    across, down = view.rays()
    colour = _sky(rng, view)
    depth = np.full((view.height, view.width), np.inf, np.float32)

    hazy = rng.uniform(0.55, 0.8)
    blocks = np.floor((across * _END + rng.uniform(0, 20)) / 14).astype(int) % 16
    roofs = rng.uniform(6, 22, 16)[blocks]
    far = (CAMERA_HEIGHT - down * _END < roofs) & (down < CAMERA_HEIGHT / _END)
    colour = np.where(far[..., None], hazy * _paints(rng, 16)[blocks] + (1 - hazy) * colour, colour)
    depth[far] = _END

    ground_depth = CAMERA_HEIGHT / np.maximum(down, 1e-6)
    top = int(np.argmax((down > 0) & (ground_depth < _END)))  # the first row of ground
    colour[top:] = _ground(rng, across, ground_depth[top:])
    depth[top:] = ground_depth[top:]

    for side, edge in ((-1, ROAD[0] - _SIDEWALK), (1, ROAD[1] + _SIDEWALK)):
        columns = np.flatnonzero((np.sign(across) == side) & (np.abs(across) * _END > abs(edge)))
        wall_depth = edge / across[columns]
        up = CAMERA_HEIGHT - down * wall_depth
        facade, roof = _facade(rng, wall_depth, up, 0.62 + 0.38 * max(0.0, float(-side * sun[0])))
        hit = (up >= 0) & (up < roof)
        colour[:, columns] = np.where(hit[..., None], facade, colour[:, columns])
        depth[:, columns] = np.where(hit, wall_depth, depth[:, columns])
    return colour, depth


def _sky(rng: np.random.Generator, view: View) -> np.ndarray:
    zenith, skyline = _SKIES[rng.integers(3)]
    share = np.clip(np.arange(view.height, dtype=np.float32) / view.horizon, 0, 1)[:, None, None]
    clouds = _patches(rng, (6, 8), view.height, view.width)
    cover = np.clip((clouds - rng.uniform(110, 200)) / 120, 0, 0.8)[..., None]
    return (1 - cover) * ((1 - share) * zenith + share * skyline) + cover * np.float32(238)


def _ground(rng: np.random.Generator, across: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Colour of the ground, for columns ``across`` ``[w]`` and rows of ``depth`` ``[h, 1]``."""
    x = across * depth
    fine = np.clip(1.2 - depth / 60, 0, 1)  # texture fades with distance
    grey = rng.uniform(78, 112) + 0.05 * (_patches(rng, (9, 5), *x.shape) - 128)
    grey = grey + fine * rng.normal(0, 4, x.shape).astype(np.float32)
    worn = rng.uniform(0.5, 0.9)
    dash, length = rng.uniform(0, 9), 3 + 3 * rng.random()
    dashed = np.mod(depth + dash, 2.4 * length) < length
    marks = [(np.abs(x - line) < 0.08) & ((line == LANE_LINES[0]) | dashed) for line in LANE_LINES]
    if rng.random() < 0.35:  # a zebra crossing
        start = DEPTH_SCALE * rng.uniform(1.1, 3)
        marks.append((depth > start) & (depth < start + 4) & (np.mod(x, 1.0) < 0.5))
    for mark in marks:
        grey = np.where(mark, (1 - worn) * grey + worn * 225, grey)
    rails = np.minimum(np.abs(x - TRACK - 0.72), np.abs(x - TRACK + 0.72)) < 0.07
    grey = np.where(rails, 60, grey)

    beyond = np.maximum(ROAD[0] - x, x - ROAD[1])  # metres from the kerb, negative on the road
    slabs = rng.uniform(135, 165) - 14 * fine * ((np.mod(depth, 1.4) < 0.1) | (np.mod(beyond, 1.4) < 0.08))
    grey = np.where(beyond > 0, slabs + fine * rng.normal(0, 3, x.shape).astype(np.float32), grey)
    grey = np.where(np.abs(beyond) < 0.14, 178, grey)
    return grey[..., None] + np.where(beyond[..., None] > 0, _SLAB_TINT, _ASPHALT_TINT)


def _facade(rng: np.random.Generator, along: np.ndarray, up: np.ndarray, light: float) -> tuple[np.ndarray, np.ndarray]:
    """A row of houses: colour for columns ``along`` ``[w]`` and heights ``up`` ``[h, w]``, and each column's roof."""
    ends = np.cumsum(rng.uniform(9, 20, 40))
    house = np.searchsorted(ends, along)
    start = (ends - np.diff(ends, prepend=0))[house]
    roof = np.where(rng.random(40) < 0.12, 0, rng.uniform(8, 19, 40))[house]
    paint = _paints(rng, 40)[house]
    pitch, storey = rng.uniform(2.2, 3.4, 40)[house], rng.uniform(2.9, 3.5, 40)[house]

    column, floor = (along - start) / pitch, (up - 0.9) / storey
    window = (np.abs(np.mod(column, 1) - 0.5) < 0.27) & (np.abs(np.mod(floor, 1) - 0.5) < 0.29)
    window &= (up > 0.9) & (up < roof - 1)
    shade = rng.uniform(0.55, 1.25, 97).astype(np.float32)
    panes = _GLASS * shade[(np.floor(column) * 7 + np.floor(floor) * 13 + house).astype(int) % 97][..., None]
    dark = np.where(up > roof - 0.7, 0.65, np.where((up < 0.8) | (along - start < 0.25), 0.85, 1.0)).astype(np.float32)
    wall = light * paint * dark[..., None]
    fine = np.clip(1.5 - along / (7 * DEPTH_SCALE), 0.35, 1).astype(np.float32)[:, None]
    return np.where(window[..., None], (1 - fine) * wall + fine * panes, wall), roof


def _paints(rng: np.random.Generator, count: int) -> np.ndarray:
    """Colours of houses, float32 ``[count, 3]``."""
    return np.array([pick(rng, _FACADES) for _ in range(count)], np.float32)


def _patches(rng: np.random.Generator, cells: tuple[int, int], height: int, width: int) -> np.ndarray:
    """Smooth noise of 0 to 255, float32 ``[h, w]``, from so many random cells."""
    noise = Image.fromarray(rng.integers(0, 256, cells, np.uint8))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32)
