"""Mini-Cityscapes: drawn streets in exactly the layout of Cityscapes and Foggy Cityscapes.

It shows that readers, training and evaluation work where the real data, which need an account, are not at hand. The
clear and the foggy images are of the same streets, as in Foggy Cityscapes; to keep source and target apart, load them
with different ``cities``.
"""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np

from gh_downstream.data.generated import claim
from gh_downstream.detection.data.cityscapes import LABEL_IDS
from gh_downstream.detection.data.fog import make_foggy_split
from gh_downstream.detection.data.images import write_png
from gh_downstream.detection.streets.camera import BASELINE, DEPTH_SCALE
from gh_downstream.detection.streets.scene import StreetScene, render_street
from gh_downstream.files import write_atomically

logger = logging.getLogger(__name__)

CITIES = {"train": ("ardmore", "belford", "corwen", "dunholm"), "val": ("elstow", "farley")}
"""The invented cities of each split, which share its images evenly."""

_VERSION = 2  # of the drawings: a tree of another version is not taken up


def make_mini_cityscapes(
    root: str | Path, train: int = 400, val: int = 80, seed: int = 0, height: int = 128, width: int = 256
) -> None:
    """Write Mini-Cityscapes: images, instance maps, disparity, cameras, and fog at three densities.

    The same arguments give the same files, byte for byte. A tree that is there already is completed if it was
    made with the same arguments, and left as it is if nothing is missing.

    Args:
        root: Folder to write to; new, empty, or an earlier tree.
        train, val: Numbers of images for training and validation.
        seed: Seed of all the streets, 0 or more.
        height, width: Size of the images in pixels; the height at least 64, the width at least the height.

    Raises:
        ValueError: If an argument is out of range, or ``root`` holds anything else; nothing is touched then.
    """
    root = Path(root)
    if min(train, val) < 1 or seed < 0 or height < 64 or width < height:
        raise ValueError(
            f"train={train} and val={val} must be positive, seed={seed} not negative, "
            f"height={height} at least 64 and width={width} at least the height"
        )
    frames = {"train": _frames("train", train), "val": _frames("val", val)}
    arguments = {"train": train, "val": val, "seed": seed, "height": height, "width": width}
    manifest = {
        "name": "mini_cityscapes",
        "arguments": {**arguments, "depth_scale": DEPTH_SCALE, "version": _VERSION},
        "images": {split: dict(Counter(city for city, _ in names)) for split, names in frames.items()},
    }
    claim(root, "Mini-Cityscapes", manifest)

    drawn = foggy = 0
    for number, (split, names) in enumerate(frames.items()):
        for index, (city, frame) in enumerate(names):
            files = _files(root, split, city, frame)
            if not all(path.is_file() for path in files.values()):
                _write_scene(
                    render_street(np.random.default_rng([seed, number, index]), height, width, LABEL_IDS), files
                )
                drawn += 1
        foggy += make_foggy_split(root, split)
    if drawn or foggy:
        logger.info(f"{root}: {drawn} streets and {foggy} foggy images written, of {train} + {val} streets")
    else:
        logger.info(f"{root}: Mini-Cityscapes of {train} + {val} streets is there already; left as it is")


def _frames(split: str, count: int) -> list[tuple[str, str]]:
    """City and frame name of each image."""
    cities = CITIES[split]
    chosen = [cities[index * len(cities) // count] for index in range(count)]
    return [(city, f"{city}_{index:06d}_000019") for index, city in enumerate(chosen)]


def _files(root: Path, split: str, city: str, frame: str) -> dict[str, Path]:
    names = ("leftImg8bit.png", "gtFine_instanceIds.png", "disparity.png", "camera.json")
    folders = ("leftImg8bit", "gtFine", "disparity", "camera")
    return {
        folder: root / folder / split / city / f"{frame}_{name}" for folder, name in zip(folders, names, strict=True)
    }


def _write_scene(scene: StreetScene, files: dict[str, Path]) -> None:
    focal_length = scene.focal_length
    u0, v0 = (place + 0.5 for place in scene.centre)  # the middle of the first pixel is 1
    camera = {
        "extrinsic": {"baseline": BASELINE, "pitch": 0.0, "roll": 0.0, "yaw": 0.0},
        "intrinsic": {"fx": focal_length, "fy": focal_length, "u0": u0, "v0": v0},
    }
    write_atomically(files["camera"], json.dumps(camera, indent=2).encode())
    disparity = np.rint(256 * BASELINE * focal_length / scene.depth) + 1
    write_png(files["disparity"], disparity.astype(np.uint16))
    write_png(files["gtFine"], scene.instance_ids)
    write_png(files["leftImg8bit"], scene.image)
