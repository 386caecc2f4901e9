"""The strong view of an image that a student learns from, while its mean teacher labels the weak one."""

import numpy as np
import torch
from torchvision.transforms import v2

# Mean and standard deviation of the noise in erased rectangles, as shares of white.
_NOISE = 0.5, 0.25

_COLOURS = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        # As wide as three standard deviations of the strongest blur.
        v2.RandomApply([v2.GaussianBlur(kernel_size=13, sigma=(0.1, 2.0))], p=0.5),
    ]
)
_ERASING = v2.Compose(
    [
        v2.RandomErasing(p=0.7, scale=(0.05, 0.2), ratio=(0.3, 3.3), value="random"),
        v2.RandomErasing(p=0.5, scale=(0.02, 0.2), ratio=(0.1, 6), value="random"),
        v2.RandomErasing(p=0.3, scale=(0.02, 0.2), ratio=(0.05, 8), value="random"),
    ]
)


def strong_view(image: np.ndarray, image_format: str = "BGR") -> np.ndarray:
    """Change the colours of an image and erase parts of it; nothing moves, so boxes stay where they are.

    Colour jitter, grayscale, blur and three times random erasing, with the probabilities and strengths of Unbiased
    Teacher (Liu et al., ICLR 2021, arXiv 2102.09480, appendix), which Adaptive Teacher (Li et al., CVPR 2022, arXiv
    2111.13216) takes over. The erased rectangles are filled with normal noise around middle grey.

    Random numbers come from torch's global generator alone: the same seed gives the same pixels.

    Args:
        image: uint8, of shape ``[H, W, 3]``, H and W at least 7; another one of these is returned.
        image_format: Order of the channels, ``BGR`` or ``RGB``; Detectron2's ``INPUT.FORMAT``.

    Raises:
        ValueError: The image or its format is another one.
    """
    if image_format not in ("BGR", "RGB"):
        raise ValueError(f"the strong view needs INPUT.FORMAT BGR or RGB, got {image_format}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the strong view takes a uint8 image of shape [H, W, 3], got {image.dtype} {image.shape}")
    # Hue and gray are of RGB, whatever the order of the image.
    rgb = image if image_format == "RGB" else image[..., ::-1]
    colours = _COLOURS(torch.from_numpy(rgb.transpose(2, 0, 1).copy()))
    mean, deviation = _NOISE
    erased = _ERASING((colours / 255 - mean) / deviation) * deviation + mean
    strong = erased.mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(strong if image_format == "RGB" else strong[..., ::-1])
