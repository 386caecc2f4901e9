"""Random changes of the images that a dual encoder is trained on."""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL.Image import Image

from gh_downstream.harmonization.checks import check_numbers


@dataclass(kw_only=True)
class AugmentationConfig:
    """How training images are changed, in this order, by the names of open_clip's ``AugmentationCfg``, and timm's.

    Attributes:
        scale: Least and largest share of the image's area that a random crop takes, which becomes the square that the
            encoder reads; null for no crop, but that of an evaluation.
        ratio: Least and largest ratio of width and height of the crop.
        hflip: Probability of a mirrored image. Captions with left and right, and writing in the image, become wrong.
        color_jitter: Largest change of brightness, contrast, saturation and hue, such as ``[0.32, 0.32, 0.32, 0.08]``;
            empty for none.
        color_jitter_prob: Probability of such a change.
        gray_scale_prob: Probability of an image in grey. Captions that name colours become wrong.

    Raises:
        ValueError: A value out of its range.
    """

    scale: list[float] | None = field(default_factory=lambda: [0.9, 1.0])
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    hflip: float = 0.0
    color_jitter: list[float] = field(default_factory=list)
    color_jitter_prob: float = 0.8
    gray_scale_prob: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, ">= 0, <= 1", scale="> 0, <= 1", ratio="> 0", color_jitter=">= 0")
        for name, pair in (("scale", self.scale), ("ratio", self.ratio)):
            if pair is not None and (len(pair) != 2 or pair[0] > pair[1]):
                raise ValueError(f"{name} takes two numbers, the least and the largest, got {list(pair)}")
        if len(self.color_jitter) not in (0, 4) or self.color_jitter[3:] > [0.5]:
            raise ValueError(
                "color_jitter takes four numbers, of brightness, contrast, saturation and hue, the last at most 0.5, "
                f"got {list(self.color_jitter)}"
            )

    def build(self, size: int) -> Callable[[Image], Image]:
        """Return a function of an image, whose randomness is that of torch's global generator.

        Args:
            size: Side of the square that a crop becomes, in pixels.

        Raises:
            ImportError: torchvision is not installed.
        """
        try:
            from torchvision import transforms
        except ImportError as error:
            raise ImportError("augmentation needs torchvision: pip install 'gh_downstream[retrieval]'") from error
        steps = [transforms.RandomHorizontalFlip(self.hflip)]
        if self.scale is not None:
            bicubic = transforms.InterpolationMode.BICUBIC
            steps.insert(0, transforms.RandomResizedCrop(size, tuple(self.scale), tuple(self.ratio), bicubic))
        if self.color_jitter:
            steps.append(transforms.RandomApply([transforms.ColorJitter(*self.color_jitter)], self.color_jitter_prob))
        return transforms.Compose([*steps, transforms.RandomGrayscale(self.gray_scale_prob)])
