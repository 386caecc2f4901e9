"""The camera of Mini-Cityscapes, which looks down the middle of the street.

The world is in metres: x to the right of the camera, y up from the ground, z ahead.
"""

import numpy as np

CAMERA_HEIGHT = 2.2
"""Height of the camera above the road in metres."""
BASELINE = 0.209313
"""Distance of the two cameras in metres, that of Cityscapes."""
DEPTH_SCALE = 10.0
"""Depth in metres of the road at the lower edge of the image: the focal length, in effect.

The pictures hardly depend on it, but how much of them fog hides does: road at the share ``y`` of the way from the
horizon down to the lower edge is ``DEPTH_SCALE / y`` metres away. At 10, fog of 0.02 takes much of the AP50 of a slim
detector that was trained on clear images, of which adaptation recovers a part.
"""

_HORIZON = 0.4  # share of the image above the horizon


class View:
    """What the camera sees on a canvas of ``height`` x ``width`` pixels, turned and mirrored at random.

    ``side`` is -1 where left and right are exchanged; all else is in pixels.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.focal_length = DEPTH_SCALE * (1 - _HORIZON) * height / CAMERA_HEIGHT
        self.horizon = height * (_HORIZON + rng.uniform(-0.03, 0.03))
        self.vanishing = width * (0.5 + rng.uniform(-0.1, 0.1))
        self.side = -1 if rng.random() < 0.5 else 1

    def project(self, points: np.ndarray) -> list[tuple[float, float]]:
        """Pixels (across, down) of points ``[n, 3]`` in the world."""
        scale = self.focal_length / points[:, 2]
        across = self.vanishing + scale * points[:, 0] * self.side
        down = self.horizon + scale * (CAMERA_HEIGHT - points[:, 1])
        return list(zip(across.tolist(), down.tolist(), strict=True))

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Metres to the right for columns ``[w]``, and down for rows ``[h, 1]``, per metre ahead."""
        across = (np.arange(self.width, dtype=np.float32) + 0.5 - self.vanishing) / self.focal_length
        down = (np.arange(self.height, dtype=np.float32) + 0.5 - self.horizon) / self.focal_length
        return self.side * across, down[:, None]
