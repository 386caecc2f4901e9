import numpy as np
import pytest

from gh_downstream.detection.streets.shapes import Card, Solid, colours, rectangle

WHITE = colours("ffffff")[0]


def box(heading, sun):
    """A block straight ahead of the camera, from the ground to above its height."""
    solid = Solid("car", (0.0, 20.0), heading, np.array(sun), 1.0, 2.0)
    solid.prism(rectangle(-2.0, 2.0, 0.0, 3.0), WHITE)
    return solid


@pytest.mark.parametrize("heading", [0.0, np.pi])
def test_only_the_face_that_is_turned_to_the_camera_is_painted(heading):
    (face,) = box(heading, [1.0, 0.0, 0.0]).shapes
    np.testing.assert_allclose(face.points[:, 2], 18)


def test_a_vehicle_across_the_street_shows_its_side():
    (face,) = box(np.pi / 2, [1.0, 0.0, 0.0]).shapes
    np.testing.assert_allclose(face.points[:, 2], 19)
    assert np.ptp(face.points[:, 0]) == pytest.approx(4)


def test_the_sun_lights_the_faces_that_are_turned_to_it():
    (lit,), (dark,) = (box(0.0, sun).shapes for sun in ([0.0, 0.0, -1.0], [0.0, 0.0, 1.0]))
    np.testing.assert_allclose(lit.colour, WHITE)
    np.testing.assert_allclose(dark.colour, 0.55 * WHITE)


def test_a_card_scales_and_mirrors_its_picture_but_not_its_footprint():
    plain, changed = Card("person", (1.0, 20.0), 0.25), Card("person", (1.0, 20.0), 0.25, mirror=-1, scale=2)
    for card in (plain, changed):
        card.draw(WHITE, [(0, 0), (0.5, 0), (0, 1)])
    np.testing.assert_allclose(plain.shapes[0].points, [(1, 0, 20), (1.5, 0, 20), (1, 1, 20)])
    np.testing.assert_allclose(changed.shapes[0].points, [(1, 0, 20), (0, 0, 20), (1, 2, 20)])
    for card in (plain, changed):
        np.testing.assert_allclose(sorted(card.footprint[:, 0]), [0.75, 0.75, 1.25, 1.25])
