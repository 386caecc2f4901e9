"""A GeneralizedRCNN with an alignment loss, as somebody may have written it, on random images."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from gh_downstream.adaptation import scale_gradient
from gh_downstream.harmonization import GH, Harmonizer
from gh_downstream.integrations.detectron2 import install_gradient_harmonization
from tests.integrations.detectron2.toy_detectors import toy_cfg, weights


@META_ARCH_REGISTRY.register()
class AlignedRCNN(GeneralizedRCNN):
    """Every image is of the source and, mirrored in colour, of the target."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.discriminator = nn.Conv2d(32, 1, 1)

    def forward(self, batched_inputs):
        losses = super().forward(batched_inputs)
        if self.training:
            source = self.preprocess_image(batched_inputs).tensor
            logits = [self.discriminator(scale_gradient(self.backbone(x)["p2"], -1)) for x in (source, -source)]
            losses["loss_da_img"] = (nn.functional.softplus(-logits[0]) + nn.functional.softplus(logits[1])).mean()
        return losses


def images(size=(64, 96), seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        batch = []
        for _ in range(2):
            instances = Instances(size)
            instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 48.0], [50.0, 20.0, 90.0, 60.0]]))
            instances.gt_classes = torch.randint(0, 8, (2,), generator=generator)
            image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
            batch.append({"image": image, "height": size[0], "width": size[1], "instances": instances})
        yield batch


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return images()


RES, LEVELS = ["res2", "res3", "res4", "res5"], ["p2", "p3", "p4", "p5"]
SLIM = {
    "BACKBONE": {"NAME": "build_resnet_fpn_backbone", "FREEZE_AT": 2},
    "RESNETS": {
        "OUT_FEATURES": RES,
        "STEM_OUT_CHANNELS": 16,
        "RES2_OUT_CHANNELS": 32,
        "WIDTH_PER_GROUP": 8,
        "NORM": "BN",
    },
    "FPN": {"IN_FEATURES": RES, "OUT_CHANNELS": 32},
    "ANCHOR_GENERATOR": {"SIZES": [[8], [16], [32], [64], [128]]},
    "RPN": {"IN_FEATURES": [*LEVELS, "p6"], "POST_NMS_TOPK_TRAIN": 50, "BATCH_SIZE_PER_IMAGE": 32},
    "ROI_HEADS": {"NAME": "StandardROIHeads", "NUM_CLASSES": 8, "IN_FEATURES": LEVELS, "BATCH_SIZE_PER_IMAGE": 32},
    "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "FC_DIM": 32, "POOLER_RESOLUTION": 7},
    "PIXEL_STD": [60.0, 60.0, 60.0],
}


def slim(folder, *overrides):
    cfg = toy_cfg(folder, "MODEL.META_ARCHITECTURE", "AlignedRCNN", "GH.WEIGHTING", "gh", *overrides)
    cfg.MODEL.merge_from_other_cfg(CfgNode(SLIM))
    cfg.SOLVER.BASE_LR = 0.001
    return cfg


def trained(cfg, steps, harmonized=True):
    cfg.SOLVER.MAX_ITER = steps
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    if harmonized:
        install_gradient_harmonization(trainer, cfg)
    torch.manual_seed(1)  # Detectron2 samples anchors and proposals at random.
    trainer.train()
    return trainer


def test_gh_is_the_core_applied_by_hand(tmp_path):
    trainer = trained(slim(tmp_path), 1)
    torch.manual_seed(0)
    model = Trainer.build_model(slim(tmp_path))
    shared = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    torch.manual_seed(1)
    with EventStorage():
        losses = model(next(images()))
    alignment = losses.pop("loss_da_img")
    losses = {"task": sum(losses.values()), "alignment": alignment}
    each = [
        torch.autograd.grad(losses[task], shared, retain_graph=True, materialize_grads=True)
        for task in ("alignment", "task")
    ]
    Harmonizer(GH(), shared).backward(losses)
    for name, parameter in model.named_parameters():
        found = trainer.model.get_parameter(name).grad
        assert (found is None) == (parameter.grad is None), name
        if found is not None:
            torch.testing.assert_close(found, parameter.grad, msg=lambda m, n=name: f"{n}: {m}")
    # And by the formula of the paper, without the core.
    a, b = (torch.cat([g.flatten() for g in gradient]).double() for gradient in each)
    opposed = min(float(a @ b), 0.0)
    harmonized = (1 - opposed / (a @ a)) * a + (1 - opposed / (b @ b)) * b
    found = torch.cat([p.grad.flatten() for p in trainer.model.backbone.parameters() if p.requires_grad])
    assert (found - harmonized).norm() < 1e-4 * harmonized.norm()


@pytest.mark.parametrize("overrides", [(), ("GH.SCOPE", "all")], ids=["shared", "all"])
def test_it_trains_with_clipping(tmp_path, overrides):
    cfg = slim(tmp_path, "SOLVER.CLIP_GRADIENTS.ENABLED", "True", "GH.LOG_PERIOD", "1", *overrides)
    trainer = trained(cfg, 3)
    assert weights(trainer).isfinite().all()
    assert len(trainer.storage.history("gh/cosine").values()) == 3
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.slow
def test_sum_is_plain_detectron2_bit_for_bit_over_twenty_steps(tmp_path):
    cfg = slim(tmp_path, "GH.WEIGHTING", "sum")
    assert torch.equal(weights(trained(cfg, 20)), weights(trained(cfg, 20, harmonized=False)))
