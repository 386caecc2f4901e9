import numpy as np
import pytest

from gh_downstream.detection.streets.camera import DEPTH_SCALE
from gh_downstream.detection.streets.layout import populate

SUN = np.array([1.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def streets():
    return [populate(np.random.default_rng(number), SUN) for number in range(20)]


def test_no_vehicle_stands_in_another_one(streets):
    for things in streets:
        vehicles = [thing for thing in things if thing.label in ("car", "truck", "bus", "train")]
        boxes = [(thing.footprint.min(0)[[0, 2]], thing.footprint.max(0)[[0, 2]]) for thing in vehicles]
        for number, (low, high) in enumerate(boxes):
            for other_low, other_high in boxes[:number]:
                common = np.clip(np.minimum(high, other_high) - np.maximum(low, other_low), 0, None)
                assert common.min() < 0.7  # a little, as they drive and are built not quite as planned


def test_everything_stands_ahead_of_the_camera(streets):
    for things in streets:
        assert len(things) > 10
        assert min(shape.points[:, 2].min() for thing in things for shape in thing.shapes) > 0.8 * DEPTH_SCALE


def test_every_rider_rides(streets):
    for things in streets:
        labels = [thing.label for thing in things]
        assert labels.count("rider") <= labels.count("motorcycle") + labels.count("bicycle")


def test_only_a_crowd_is_a_group(streets):
    groups = [thing for things in streets for thing in things if thing.group]
    assert groups
    assert {thing.label for thing in groups} == {"person"}
