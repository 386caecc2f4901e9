"""Annotations: what torchvision gets of them, and which are refused."""

import pytest

pytest.importorskip("torchvision", reason="needs pip install 'gh_downstream[detection]'")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gh_downstream.detection.native.data import checked_targets
from tests.detection.native.adaptive_models import images, targets


def test_labels_count_from_one_and_boxes_are_in_float32():
    wide = {"boxes": torch.tensor([[10, 8, 129, 64]]), "labels": torch.tensor([7], dtype=torch.int32)}
    nothing = {"boxes": torch.zeros(0), "labels": torch.zeros(0)}
    first, second = checked_targets(images(2), [wide, nothing], 8)
    assert first["boxes"].tolist() == [[10.0, 8.0, 129.0, 64.0]]  # Rounded annotations may be off by a pixel.
    assert first["boxes"].dtype == torch.float32
    assert first["labels"].tolist() == [8]
    assert second["boxes"].shape == (0, 4)
    assert second["labels"].dtype == torch.int64


def test_every_image_needs_targets():
    with pytest.raises(ValueError, match="2 source images but targets for 1"):
        checked_targets(images(2), targets(1), 8)


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([[10.0, 10.0, 10.0, 30.0]], [0], r"box \[10\.0, 10\.0, 10\.0, 30\.0\] does not have a positive width"),
        ([[10.0, 10.0, 30.0, float("nan")]], [0], "does not have a positive width and height"),
        ([[10.0, 10.0, 20.0, 20.0], [100.0, 10.0, 140.0, 30.0]], [0, 0], "outside of the image of 128 x 64 pixels"),
        ([[-20.0, 10.0, 10.0, 30.0]], [0], "outside of the image"),
        ([[10.0, 10.0, 20.0, 20.0]], [8], r"label 8 of box .* not between 0 and 7"),
        ([[10.0, 10.0, 20.0, 20.0]], [-1], "label -1"),
        ([[10.0, 10.0, 20.0, 20.0]], [0, 1], "1 boxes but 2 labels"),
    ],
)
def test_impossible_annotations_name_the_file(boxes, labels, message):
    wrong = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "file_name": "frankfurt_000001.png"}
    with pytest.raises(ValueError, match=f"frankfurt_000001.png: .*{message}"):
        checked_targets(images(2), [*targets(1), wrong], 8)
    del wrong["file_name"]
    with pytest.raises(ValueError, match=f"source image 1 of the batch: .*{message}"):
        checked_targets(images(2), [*targets(1), wrong], 8)


def test_the_device_is_read_once_for_all_targets():
    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.__name__.partition(".")[0])
            return function(*args, **(kwargs or {}))

    batch, annotations = images(3), targets(3)
    with Calls() as calls:
        checked_targets(batch, annotations, 8)
    assert calls.names.count("_local_scalar_dense") == 1
    assert not {"nonzero", "lift_fresh", "tensor"} & set(calls.names)  # which waits, and what comes from the host
