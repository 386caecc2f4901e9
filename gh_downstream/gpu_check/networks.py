"""The networks that are measured: random weights, random inputs, source and target in forward passes of their own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from gh_downstream.adaptation import domain_loss, mmd, scale_gradient
from gh_downstream.detection.alignment import AlignmentConfig, DomainAlignment, DomainFeatures
from gh_downstream.gpu_check.setting import LeftOutError, Setting
from gh_downstream.harmonization import Weighting, fork

Losses = dict[str, Tensor]


class Adapted(nn.Module):
    """A network with a task and an alignment, on one batch that it holds.

    Its call returns the losses; with a weighting, the gradients meet in a fork at the features.
    """

    shared: Sequence[str] = ("trunk",)

    def inputs(self) -> list[Tensor]:
        """Make the batch, on the CPU."""
        raise NotImplementedError

    def forward(self, batch: Sequence[Tensor], weighting: Weighting | None = None) -> Losses:
        """Return the losses by task."""
        raise NotImplementedError


class Classifier(Adapted):
    """A classifier whose discriminator sees reversed features; task and alignment also pull them apart.

    Args:
        trunk: From images to features ``[N, D]``.
        features: D.
        shape: Shape of an image.
        size: Images of each domain.
        third: A third task beside the two, a regression.
    """

    def __init__(self, trunk: nn.Module, features: int, shape: Sequence[int], size: int, third: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.head, self.discriminator = nn.Linear(features, 10), nn.Linear(features, 1)
        self.regression = nn.Linear(features, 2) if third else None
        self.shape, self.size = list(shape), size

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return ("alignment", "task") if self.regression is None else ("alignment", "task", "regression")

    def inputs(self) -> list[Tensor]:
        """Images of source and target, and classes of the source."""
        labels = torch.arange(self.size) % 10
        return [torch.randn(self.size, *self.shape), torch.randn(self.size, *self.shape) + 0.5, labels]

    def features(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Those of source and target."""
        return self.trunk(batch[0]), self.trunk(batch[1])

    def losses(self, for_alignment: Sequence[Tensor], for_task: Tensor, labels: Tensor) -> Losses:
        """The losses of features, which may be forked."""
        source, target = (self.discriminator(scale_gradient(f, -1.0)) for f in for_alignment)
        spread = sum(f.float().square().mean() for f in for_alignment)
        found = {
            "alignment": domain_loss(source, target) - 4 * spread,
            "task": cross_entropy(self.head(for_task), labels) + 4 * for_task.float().square().mean(),
        }
        if self.regression is not None:
            found["regression"] = (self.regression(for_task) - 1).float().square().mean()
        return found

    def forward(self, batch: Sequence[Tensor], weighting: Weighting | None = None) -> Losses:
        """As the base."""
        features = self.features(batch)
        if weighting is None:
            return self.losses(features, features[0], batch[2])
        for_alignment, (for_task, _) = fork(features, weighting)
        return self.losses(for_alignment, for_task, batch[2])


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
    try:
        from torchvision.models import resnet18, resnet50
    except ImportError as error:
        raise LeftOutError("needs torchvision") from error
    trunk = resnet18() if setting.small else resnet50()
    features, trunk.fc = trunk.fc.in_features, nn.Identity()
    side = setting.size(224, 32)
    return Classifier(trunk, features, (3, side, side), setting.size(32, 2))


class Pairs(Adapted):
    """A CLIP of the size of ViT-B/32: contrastive on source, the features of both towers aligned by MMD."""

    shared = ("clip.vision_model", "clip.text_model", "clip.visual_projection", "clip.text_projection")

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        try:
            from transformers import CLIPConfig, CLIPModel
        except ImportError as error:
            raise LeftOutError("needs transformers") from error
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        small: dict[str, Any] = {"text_config": tower, "vision_config": {**tower, "image_size": 64}}
        self.clip: Any = CLIPModel(CLIPConfig(**(small if setting.small else {})))
        self.size, self.side = setting.size(256, 4), setting.size(224, 64)

    def inputs(self) -> list[Tensor]:
        """Images of source and target, texts of source and target."""
        texts = torch.randint(1000, 40000, (2, self.size, 77))
        texts[:, :, -1] = self.clip.config.text_config.eos_token_id
        return [*torch.randn(2, self.size, 3, self.side, self.side), *texts]

    def forward(self, batch: Sequence[Tensor], weighting: Weighting | None = None) -> Losses:
        """As the base."""
        clip = self.clip
        images = [clip.visual_projection(clip.vision_model(pixel_values=part).pooler_output) for part in batch[:2]]
        texts = [clip.text_projection(clip.text_model(input_ids=part).pooler_output) for part in batch[2:]]
        aligned = task = [normalize(part.float(), dim=1) for part in (*images, *texts)]
        if weighting is not None:
            aligned, task = fork(aligned, weighting)
        logits = clip.logit_scale.exp() * task[0] @ task[2].T
        own = torch.arange(self.size, device=logits.device)
        contrastive = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
        return {"alignment": mmd(aligned[0], aligned[1]) + mmd(aligned[2], aligned[3]), "task": contrastive}


class Detector(Adapted):
    """Faster R-CNN with a ResNet-50-FPN of torchvision, its feature maps aligned by a discriminator."""

    shared = ("detector.backbone",)

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        try:
            from torchvision.models import detection
            from torchvision.ops import FrozenBatchNorm2d
        except ImportError as error:
            raise LeftOutError("needs torchvision") from error
        self.height, self.width = setting.size(600, 64), setting.size(1200, 128)
        backbone = detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18" if setting.small else "resnet50",
            weights=None,
            norm_layer=FrozenBatchNorm2d,
            trainable_layers=5,
        )
        for name, norm in backbone.named_modules():
            if name.endswith("bn2" if setting.small else "bn3"):
                norm.weight.fill_(0.3)  # Frozen and untrained, the blocks would add up to more than float16 holds.
        self.detector = detection.FasterRCNN(
            backbone,
            num_classes=9,
            min_size=self.height,
            max_size=self.width,
            rpn_post_nms_top_n_train=setting.size(2000, 20),
            box_batch_size_per_image=setting.size(512, 8),
        )
        self.alignment = DomainAlignment(256, 1024, AlignmentConfig(instance_weight=0, consistency_weight=0))

    def inputs(self) -> list[Tensor]:
        """Two images of source and two of target, and the boxes of the source."""
        corner = torch.rand(2, 12, 2) * torch.tensor([self.width * 0.6, self.height * 0.6])
        sides = torch.tensor([self.width, self.height]) * (0.1 + 0.2 * torch.rand(2, 12, 2))
        boxes = torch.cat([corner, corner + sides], dim=2)
        return [*torch.rand(2, 2, 3, self.height, self.width), boxes]

    def forward(self, batch: Sequence[Tensor], weighting: Weighting | None = None) -> Losses:
        """As the base."""
        source, target, boxes = batch
        labels = 1 + torch.arange(boxes.shape[1], device=boxes.device) % 8
        targets = [{"boxes": of_image, "labels": labels} for of_image in boxes]
        images, targets = self.detector.transform(list(source), targets)
        maps = task_maps = self.detector.backbone(images.tensors)
        target_maps = self.detector.backbone(self.detector.transform(list(target))[0].tensors)
        if weighting is not None:
            (maps, target_maps), (task_maps, _) = fork((maps, target_maps), weighting)
        proposals, losses = self.detector.rpn(images, task_maps, targets)
        losses |= self.detector.roi_heads(task_maps, proposals, images.image_sizes, targets)[1]
        aligned = self.alignment(DomainFeatures(maps), DomainFeatures(target_maps))
        return {"alignment": torch.stack([*aligned.values()]).sum(), "task": torch.stack([*losses.values()]).sum()}
