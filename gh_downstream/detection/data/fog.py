r"""Synthetic fog by Koschmieder's law, as in Foggy Cityscapes (Sakaridis, Dai and Van Gool, IJCV 2018).

.. math:: F = I\,t + A\,(1 - t), \qquad t = e^{-\beta l}

with the clear image :math:`I`, the airlight :math:`A`, the distance :math:`l` along the ray in metres and the
attenuation coefficient :math:`\beta` in 1/m, here called the fog's density. Objects fade into the airlight at about
:math:`3/\beta` metres: 600, 300 and 150 m at Foggy Cityscapes' 0.005, 0.01 and 0.02.

The formulas are those of the authors' code (github.com/sakaridis/fog_simulation-SFSU_synthetic) with its simplest
completion of the depth, by the nearest neighbour. The published images differ in this: outliers of the disparity were
found with the right image, planes were fitted to superpixels in their place, and the transmission was smoothed by a
guided filter.
"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from gh_downstream.detection.data.cityscapes import find_images, image_suffix, unpacking_advice
from gh_downstream.detection.data.images import read_rgb, read_uint16, write_png
from gh_downstream.detection.data.records import readable

logger = logging.getLogger(__name__)

FOG_DENSITIES = (0.005, 0.01, 0.02)
"""The densities of Foggy Cityscapes, in 1/m; results are compared at the last."""


def add_fog(image: np.ndarray, distance: np.ndarray, beta: float, airlight: Sequence[float] | np.ndarray) -> np.ndarray:
    """Add homogeneous fog to an image.

    Args:
        image: uint8 RGB of shape ``[H, W, 3]``, as what is returned.
        distance: Metres from the camera to what a pixel shows, ``[H, W]``; infinite where nothing but air is.
        beta: Attenuation coefficient in 1/m, positive.
        airlight: Colour of the fog, three values of 0 to 255.

    Raises:
        ValueError: If the shapes do not fit, ``beta`` is not positive, or a distance is negative or NaN.
    """
    if image.dtype != np.uint8 or image.shape != (*distance.shape, 3):
        raise ValueError(f"expected a uint8 image of shape {(*distance.shape, 3)}, got {image.dtype} {image.shape}")
    if not beta > 0:
        raise ValueError(f"the fog's density beta is {beta}; it must be positive")
    if not (distance >= 0).all():
        raise ValueError("a depth or distance is negative or NaN; they are metres of 0 or more")
    transmission = np.exp(-beta * distance)[..., None]
    light = np.asarray(airlight, float)
    return np.clip(np.rint(light + (image - light) * transmission), 0, 255).astype(np.uint8)


def estimate_airlight(image: np.ndarray) -> np.ndarray:
    """Estimate the colour of the airlight by the dark channel (He, Sun and Tang, CVPR 2009; Tang et al., CVPR 2014).

    It is the colour, three values of 0 to 255, of the pixel of median brightness among the 0.1 % (an odd number) of
    which the darkest value in the 15 x 15 pixels around is highest; mostly sky. Of equal ones those come first that are
    further to the left, then further up. The clear image is uint8 RGB of shape ``[H, W, 3]``.
    """
    dark = ndimage.minimum_filter(image.min(axis=2), size=15, mode="nearest").ravel(order="F").astype(int)
    count = dark.size // 1000
    brightest = np.argsort(-dark, kind="stable")[: count + (count + 1) % 2]
    colours = image.reshape(-1, 3, order="F")[brightest]
    grey = colours @ _LUMA
    return colours[np.flatnonzero(grey == np.median(grey))[0]].astype(float)


_LUMA = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])  # ITU-R BT.601


def depth_from_disparity(disparity: np.ndarray, baseline: float, focal_length: float) -> np.ndarray:
    """Turn a disparity map of Cityscapes into depth.

    Stored values ``p > 0`` are disparities of ``(p - 1) / 256`` pixels, and a disparity of 0 is infinitely far.
    ``p = 0`` marks pixels that stereo matching left open: they take the depth of the nearest matched pixel.

    Args:
        disparity: uint16 of shape ``[H, W]``, as stored.
        baseline: Distance of the two cameras in metres.
        focal_length: Horizontal focal length in pixels.

    Returns:
        ``baseline * focal_length / disparity``: depth in metres, ``[H, W]``.

    Raises:
        ValueError: If no pixel is valid.
    """
    if not disparity.any():
        raise ValueError("no pixel has a disparity")
    row, column = ndimage.distance_transform_edt(disparity == 0, return_distances=False, return_indices=True)
    with np.errstate(divide="ignore"):
        return 256 * baseline * focal_length / (disparity[row, column].astype(float) - 1)


def ray_distance(depth: np.ndarray, focal_length: float, centre: tuple[float, float]) -> np.ndarray:
    """Turn depth, along the axis of the camera, into distance from the camera: what light passes through.

    Args:
        depth: Depth in metres, ``[H, W]``.
        focal_length: Horizontal focal length in pixels.
        centre: Column and row in pixels where the axis meets the image; the first pixel is 1.
    """
    row, column = np.ogrid[1 : depth.shape[0] + 1, 1 : depth.shape[1] + 1]
    return depth * np.hypot(1, np.hypot((column - centre[0]) / focal_length, (row - centre[1]) / focal_length))


def make_foggy_split(
    root: str | Path, split: str, betas: Sequence[float] = FOG_DENSITIES, airlight: Sequence[float] | None = None
) -> int:
    """Write ``leftImg8bit_foggy`` next to ``leftImg8bit``, from the disparity and camera files of Cityscapes.

    Images that exist are left as they are, so a stopped run can be taken up again. Returns the number of those written.

    Args:
        root: Folder that holds ``leftImg8bit``, ``disparity`` and ``camera``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        betas: Densities of the fog in 1/m.
        airlight: Colour of the fog, three values of 0 to 255; estimated from each image by default.

    Raises:
        FileNotFoundError: If there are no clear images, or one lacks its disparity or camera file.
        ValueError: If a file is corrupt or does not fit its image.
    """
    root = Path(root)
    images = find_images(root, split)
    written = 0
    for path in images:
        frame = path.name.removesuffix(image_suffix(None))
        folder = root / "leftImg8bit_foggy" / split / path.parent.name
        missing = {beta: target for beta in betas if not (target := folder / f"{frame}{image_suffix(beta)}").is_file()}
        if not missing:
            continue
        image = read_rgb(path, unpacking_advice(root, "leftImg8bit"))
        distance = _read_distance(root, split, path.parent.name, frame)
        if distance.shape != image.shape[:2]:
            raise ValueError(
                f"the disparity map of {path} is of shape {distance.shape}, the image of {image.shape[:2]}"
            )
        light = estimate_airlight(image) if airlight is None else airlight
        for beta, target in missing.items():
            write_png(target, add_fog(image, distance, beta, light))
        written += len(missing)
    logger.info(
        f"{root / 'leftImg8bit_foggy' / split}: {written} foggy images written, "
        f"{len(images) * len(betas) - written} were there already"
    )
    return written


def _read_distance(root: Path, split: str, city: str, frame: str) -> np.ndarray:
    camera_path = root / "camera" / split / city / f"{frame}_camera.json"
    disparity_path = root / "disparity" / split / city / f"{frame}_disparity.png"
    with readable(camera_path, "camera file", unpacking_advice(root, "camera")):
        camera = json.loads(camera_path.read_text(encoding="utf-8"))
        names = ("fx", "u0", "v0")
        values = [float(camera["extrinsic"]["baseline"]), *(float(camera["intrinsic"][name]) for name in names)]
        if not (all(map(math.isfinite, values)) and min(values[:2]) > 0):
            raise ValueError(f"baseline, fx, u0 and v0 are {values}")
    baseline, focal_length, *centre = values
    disparity = read_uint16(disparity_path, unpacking_advice(root, "disparity"))
    try:
        depth = depth_from_disparity(disparity, baseline, focal_length)
    except ValueError as error:
        raise ValueError(f"{disparity_path}: {error}") from error
    return ray_distance(depth, focal_length, (centre[0], centre[1]))
