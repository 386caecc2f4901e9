import numpy as np
import pytest

from gh_downstream.detection.data import CITYSCAPES_CLASSES
from gh_downstream.detection.data.cityscapes import LABEL_IDS, instance_annotations
from gh_downstream.detection.streets.camera import DEPTH_SCALE
from gh_downstream.detection.streets.scene import render_street


@pytest.fixture(scope="module")
def scenes():
    return [render_street(np.random.default_rng([7, number]), 128, 256, LABEL_IDS) for number in range(24)]


def test_all_classes_are_there_in_number_and_in_several_sizes(scenes):
    boxes = [box for scene in scenes for box in instance_annotations(scene.instance_ids)]
    for category, name in enumerate(CITYSCAPES_CLASSES):
        heights = [box["bbox"][3] for box in boxes if box["category_id"] == category and not box["iscrowd"]]
        assert len(heights) >= len(scenes) / 2, name
        assert max(heights) > 1.5 * min(heights), name
    assert any(box["iscrowd"] for box in boxes)
    assert all(box["area"] >= 6 for box in boxes)


def test_a_rider_sits_on_something(scenes):
    """Where riders are seen, motorcycles and bicycles are, in at least their number less those hidden."""
    for scene in scenes:
        labels = [box["category_id"] for box in instance_annotations(scene.instance_ids)]
        if labels.count(1):
            assert labels.count(6) + labels.count(7) > 0


def test_near_objects_hide_far_ones(scenes):
    """Boxes are those of visible pixels: some objects are cut by others that are nearer."""
    cut = 0
    for scene in scenes:
        boxes = instance_annotations(scene.instance_ids)
        for box in boxes:
            x, y, width, height = (int(value) for value in box["bbox"])
            inside = scene.instance_ids[y : y + height, x : x + width]
            cut += len(np.unique(inside[inside >= 1000])) > 2
    assert cut > len(scenes)


def test_depth_is_that_of_a_street(scenes):
    for scene in scenes:
        assert np.isinf(scene.depth).any()  # sky
        assert scene.depth.min() > 0.8 * DEPTH_SCALE
        # The road at the lower edge, but for things on it and for the pitch of the camera.
        assert scene.depth[-1].max() == pytest.approx(DEPTH_SCALE, rel=0.06)
        assert scene.depth[np.isfinite(scene.depth)].max() > 3 * DEPTH_SCALE


def test_a_street_is_the_same_at_every_size():
    small, large = (render_street(np.random.default_rng(3), height, 2 * height, LABEL_IDS) for height in (96, 192))
    assert large.focal_length == 2 * small.focal_length
    assert large.image.shape == (192, 384, 3)
    alike = np.isclose(large.depth[1::2, 1::2], small.depth, rtol=0.05)
    assert alike.mean() > 0.9  # all but the edges
