"""The networks that are measured: random weights, random inputs, source and target in forward passes of their own."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from gh_downstream.adaptation import domain_loss, mmd, scale_gradient
from gh_downstream.detection.alignment import AlignmentConfig, DomainAlignment, DomainFeatures
from gh_downstream.gpu_check.setting import Setting

Losses = dict[str, Tensor]
Network = TypeVar("Network", bound="Adapted")
Split = Callable[[Sequence[Any]], Sequence[Any]]
"""From the features of both domains to those for the alignment and those for the task, as ``fork`` does it."""


def together(features: Sequence[Any]) -> Sequence[Any]:
    """The same features for both."""
    return features, features


class Adapted(nn.Module):
    """A network with an alignment and a task: from a batch to their losses."""

    shared: Sequence[str] = ("trunk",)

    def inputs(self) -> list[Tensor]:
        """Make a batch, on the CPU."""
        raise NotImplementedError

    def forward(self, batch: Sequence[Tensor], split: Split = together) -> Losses:
        """Return the losses by task."""
        raise NotImplementedError

    def batch(self) -> list[Tensor]:
        """Make a batch on the device of the network."""
        device = next(self.parameters()).device
        return [part.to(device) for part in self.inputs()]


def placed(setting: Setting, build: Callable[[], Network]) -> Network:
    """Build a network on the device, each time with the same random weights and batches."""
    torch.manual_seed(0)
    return build().to(setting.device).train()


def losses_in(
    dtype: torch.dtype, scaler: torch.amp.GradScaler, model: Adapted, batch: Sequence[Tensor], split: Split = together
) -> Losses:
    """The scaled losses of a forward pass in a precision."""
    with torch.autocast(batch[0].device.type, dtype, enabled=dtype != torch.float32):
        losses = model(batch, split)
    return {task: scaler.scale(loss) for task, loss in losses.items()}


def backward_of_sum(losses: Losses) -> None:
    """The backward pass without harmonization, or with a fork."""
    torch.stack([*losses.values()]).sum().backward()


def gradient(parameters: Iterable[Tensor]) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])


class Classifier(Adapted):
    """A classifier of images, or of vectors, whose discriminator sees reversed features of D channels.

    Task and alignment also pull the features apart. A third task, a regression, is made on request.
    """

    def __init__(self, trunk: nn.Module, features: int, shape: Sequence[int], size: int, third: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.head, self.discriminator = nn.Linear(features, 10), nn.Linear(features, 1)
        self.regression = nn.Linear(features, 2) if third else None
        self.tasks = ("alignment", "task", "regression")[: 3 if third else 2]
        self.shape, self.size = list(shape), size

    def inputs(self) -> list[Tensor]:
        """Images of source and target, and classes of the source."""
        labels = torch.arange(self.size) % 10
        return [torch.randn(self.size, *self.shape), torch.randn(self.size, *self.shape) + 0.5, labels]

    def forward(self, batch: Sequence[Tensor], split: Split = together) -> Losses:
        source, target, labels = batch
        for_alignment, (for_task, _) = split((self.trunk(source), self.trunk(target)))
        domains = [self.discriminator(scale_gradient(features, -1.0)) for features in for_alignment]
        spread = sum(features.float().square().mean() for features in for_alignment)
        found = {
            "alignment": domain_loss(*domains) - 4 * spread,
            "task": cross_entropy(self.head(for_task), labels) + 4 * for_task.float().square().mean(),
        }
        if self.regression is not None:
            found["regression"] = (self.regression(for_task) - 1).float().square().mean()
        return found


def small_classifier(third: bool = False, smooth: bool = True) -> Classifier:
    """A few convolutions; smooth, so that float32 and float64 see no kink on different sides."""
    act = nn.Tanh if smooth else nn.ReLU
    layers = [nn.Conv2d(3, 16, 3, padding=1), act(), nn.Conv2d(16, 32, 3, stride=2, padding=1), act()]
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 32), act())
    return Classifier(trunk, 32, (3, 16, 16), 16, third)


def small_tensors(setting: Setting) -> Classifier:
    """80 small tensors: what a network costs that has many of them."""
    layers = [module for _ in range(40) for module in (nn.Linear(64, 64), nn.Tanh())]
    return Classifier(nn.Sequential(*layers), 64, (64,), setting.size(256, 16))


def resnet50(setting: Setting) -> Classifier:
    """ResNet-50, without its classifier."""
    from torchvision.models import resnet18, resnet50

    trunk = resnet18() if setting.small else resnet50()
    features, trunk.fc = trunk.fc.in_features, nn.Identity()
    side = setting.size(224, 32)
    return Classifier(trunk, features, (3, side, side), setting.size(32, 2))


class Pairs(Adapted):
    """A CLIP of the size of ViT-B/32: contrastive on source, the features of both towers aligned by MMD."""

    shared = ("clip.vision_model", "clip.text_model", "clip.visual_projection", "clip.text_projection")

    def __init__(self, setting: Setting) -> None:
        from transformers import CLIPConfig, CLIPModel

        super().__init__()
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        small: dict[str, Any] = {"text_config": tower, "vision_config": {**tower, "image_size": 64}}
        self.clip: Any = CLIPModel(CLIPConfig(**(small if setting.small else {})))
        self.size, self.side = setting.size(256, 4), setting.size(224, 64)

    def inputs(self) -> list[Tensor]:
        """Images of source and target, texts of source and target."""
        texts = torch.randint(1000, 40000, (2, self.size, 77))
        texts[:, :, -1] = self.clip.config.text_config.eos_token_id
        return [*torch.randn(2, self.size, 3, self.side, self.side), *texts]

    def forward(self, batch: Sequence[Tensor], split: Split = together) -> Losses:
        clip = self.clip
        images = [clip.visual_projection(clip.vision_model(pixel_values=part).pooler_output) for part in batch[:2]]
        texts = [clip.text_projection(clip.text_model(input_ids=part).pooler_output) for part in batch[2:]]
        aligned, task = split([normalize(part.float(), dim=1) for part in (*images, *texts)])
        logits = clip.logit_scale.exp() * task[0] @ task[2].T
        own = torch.arange(self.size, device=logits.device)
        contrastive = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
        return {"alignment": mmd(aligned[0], aligned[1]) + mmd(aligned[2], aligned[3]), "task": contrastive}


class Detector(Adapted):
    """Faster R-CNN with a ResNet-50-FPN of torchvision, its feature maps aligned by a discriminator."""

    shared = ("detector.backbone",)

    def __init__(self, setting: Setting) -> None:
        from torchvision.models import detection
        from torchvision.ops import FrozenBatchNorm2d

        super().__init__()
        self.height, self.width = setting.size(600, 64), setting.size(1200, 128)
        resnet, last = ("resnet18", "bn2") if setting.small else ("resnet50", "bn3")
        backbone = detection.backbone_utils.resnet_fpn_backbone(
            backbone_name=resnet, weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
        )
        for name, norm in backbone.named_modules():
            if name.endswith(last):
                norm.weight.fill_(0.3)  # Frozen and untrained, the blocks would add up to more than float16 holds.
        sizes = {"min_size": self.height, "max_size": self.width, "box_batch_size_per_image": setting.size(512, 8)}
        proposals = setting.size(2000, 20)
        self.detector = detection.FasterRCNN(backbone, num_classes=9, rpn_post_nms_top_n_train=proposals, **sizes)
        self.alignment = DomainAlignment(256, 1024, AlignmentConfig(instance_weight=0, consistency_weight=0))

    def inputs(self) -> list[Tensor]:
        """Two images of source and two of target, and the boxes of the source."""
        corner = torch.rand(2, 12, 2) * torch.tensor([self.width * 0.6, self.height * 0.6])
        sides = torch.tensor([self.width, self.height]) * (0.1 + 0.2 * torch.rand(2, 12, 2))
        boxes = torch.cat([corner, corner + sides], dim=2)
        return [*torch.rand(2, 2, 3, self.height, self.width), boxes]

    def forward(self, batch: Sequence[Tensor], split: Split = together) -> Losses:
        source, target, boxes = batch
        labels = 1 + torch.arange(boxes.shape[1], device=boxes.device) % 8
        targets = [{"boxes": of_image, "labels": labels} for of_image in boxes]
        images, targets = self.detector.transform(list(source), targets)
        target_images, _ = self.detector.transform(list(target))
        maps = self.detector.backbone(images.tensors), self.detector.backbone(target_images.tensors)
        aligned, (task_maps, _) = split(maps)
        proposals, losses = self.detector.rpn(images, task_maps, targets)
        losses |= self.detector.roi_heads(task_maps, proposals, images.image_sizes, targets)[1]
        alignment = self.alignment(*map(DomainFeatures, aligned))
        return {"alignment": torch.stack([*alignment.values()]).sum(), "task": torch.stack([*losses.values()]).sum()}
