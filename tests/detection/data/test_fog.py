import json
import logging
import math
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from gh_downstream.cli.main import run
from gh_downstream.detection.data.fog import (
    add_fog,
    depth_from_disparity,
    estimate_airlight,
    make_foggy_split,
    ray_distance,
)
from gh_downstream.detection.data.mini_cityscapes import make_mini_cityscapes
from tests.detection.data.wrong_values import refusals


def test_fog_follows_koschmieders_law():
    image = np.array([[[200, 100, 0], [10, 20, 30]]], np.uint8)
    foggy = add_fog(image, np.array([[50.0, 100.0]]), 0.01, (230, 240, 250))
    near, far = math.exp(-0.5), math.exp(-1.0)
    expected = [
        [round(i * t + a * (1 - t)) for i, a in zip(pixel, (230, 240, 250), strict=True)]
        for pixel, t in (((200, 100, 0), near), ((10, 20, 30), far))
    ]
    assert foggy.tolist() == [expected]


def test_nothing_hides_at_no_distance_and_all_at_infinity():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    depth = np.zeros((4, 6))
    depth[2:] = np.inf
    foggy = add_fog(image, depth, 0.02, (180, 190, 200))
    assert (foggy[:2] == image[:2]).all()
    assert (foggy[2:] == (180, 190, 200)).all()


def test_denser_fog_and_greater_depth_come_closer_to_the_airlight():
    rng = np.random.default_rng(1)
    image, depth = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), rng.uniform(5, 100, (8, 8))
    distances = [
        np.abs(add_fog(image, scale * depth, beta, (220, 220, 220)).astype(int) - 220)
        for beta, scale in ((0.005, 1), (0.01, 1), (0.01, 2), (0.05, 2))
    ]
    for thinner, denser in pairwise(distances):
        assert (denser <= thinner).all()
        assert denser.mean() < thinner.mean()


@pytest.mark.parametrize(
    ("image", "depth", "beta", "message"),
    [
        (np.zeros((2, 3, 3), np.float32), np.ones((2, 3)), 0.01, "uint8"),
        (np.zeros((2, 3, 3), np.uint8), np.ones((3, 2)), 0.01, "shape"),
        (np.zeros((2, 3, 3), np.uint8), np.ones((2, 3)), 0.0, "beta"),
        (np.zeros((2, 3, 3), np.uint8), np.ones((2, 3)), math.nan, "beta"),
        (np.zeros((2, 3, 3), np.uint8), -np.ones((2, 3)), 0.01, "depth"),
        (np.zeros((2, 3, 3), np.uint8), np.full((2, 3), np.nan), 0.01, "depth"),
    ],
)
def test_wrong_input_is_refused(image, depth, beta, message):
    with pytest.raises(ValueError, match=message):
        add_fog(image, depth, beta, (200, 200, 200))


def test_depth_is_baseline_times_focal_length_over_disparity():
    disparity = np.array([[1 + 256 * 10, 1 + 128, 1]], np.uint16)
    depth = depth_from_disparity(disparity, baseline=0.2, focal_length=2000)
    np.testing.assert_allclose(depth, [[40.0, 800.0, np.inf]], rtol=1e-6)


# Made up, and what the formulas of the authors' MATLAB code (fog_simulation-SFSU_synthetic: completion by the nearest
# neighbour, distance_in_meters_cityscapes, estimate_atmospheric_light_rf, haze_linear) give for it, computed apart.
DISPARITY = np.array(
    [
        [2561, 0, 0, 0, 0, 1281],
        [0, 0, 5121, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 641, 0, 0, 0, 0],
    ],
    np.uint16,
)
CAMERA = {"extrinsic": {"baseline": 25.0}, "intrinsic": {"fx": 8.0, "u0": 3.2, "v0": 2.4}}
DISTANCE = [
    [21.035684, 20.524376, 10.155048, 10.201103, 41.593269, 42.953463],
    [20.76656, 10.124228, 10.015613, 10.062306, math.inf, 42.426407],
    [20.796634, 10.13965, 10.031201, math.inf, math.inf, math.inf],
    [84.498521, 82.462113, 81.608823, math.inf, math.inf, math.inf],
    [86.94826, 84.970583, 84.142736, 84.498521, math.inf, math.inf],
]


def slopes():
    """An image of slopes with a brighter field, ``[50, 60, 3]``."""
    row, column = np.mgrid[:50, :60]
    image = np.stack(
        [(row * 7 + column * 13) % 200 + 20, (row * 3 + column * 5) % 210 + 10, (row * 11 + column) % 190 + 30], -1
    )
    row, column = row[5:25, 10:40], column[5:25, 10:40]
    image[5:25, 10:40] = np.stack([200 + (row + column) % 40, 190 + (2 * row + column) % 50, 210 + row * 3 % 30], -1)
    return image.astype(np.uint8)


def test_open_pixels_take_the_nearest_depth_and_light_goes_along_the_ray():
    depth = depth_from_disparity(DISPARITY, 25.0, 8.0)
    assert depth[:, 0].tolist() == [20, 20, 20, 80, 80]
    np.testing.assert_allclose(ray_distance(depth, 8.0, (3.2, 2.4)), DISTANCE, atol=1e-6)
    with pytest.raises(ValueError, match="no pixel"):
        depth_from_disparity(np.zeros((3, 3), np.uint16), 0.2, 2000)


def test_the_airlight_is_that_of_the_published_code():
    assert estimate_airlight(slopes()).tolist() == [230, 233, 219]


def test_a_foggy_image_is_that_of_the_published_code(tmp_path):
    paths = {
        folder: tmp_path / folder / "val" / "ulm" / f"ulm_000000_000019_{end}"
        for folder, end in (
            ("leftImg8bit", "leftImg8bit.png"),
            ("disparity", "disparity.png"),
            ("camera", "camera.json"),
            ("leftImg8bit_foggy", "leftImg8bit_foggy_beta_0.02.png"),
        )
    }
    for path in paths.values():
        path.parent.mkdir(parents=True)
    Image.fromarray(slopes()[:5, :6]).save(paths["leftImg8bit"])
    Image.fromarray(DISPARITY).save(paths["disparity"])
    paths["camera"].write_text(json.dumps(CAMERA))
    make_foggy_split(tmp_path, "val", [0.02], airlight=(230, 235, 240))
    found = np.asarray(Image.open(paths["leftImg8bit_foggy"]))
    assert found[1].tolist() == [
        [96, 88, 109],
        [75, 58, 78],
        [85, 61, 79],
        [96, 66, 80],
        [230, 235, 240],
        [171, 151, 157],
    ]
    assert found[2].tolist() == [[101, 91, 116], [81, 60, 87], [91, 64, 88], *3 * [[230, 235, 240]]]


def test_the_airlight_is_the_colour_of_the_sky_and_not_of_small_bright_things():
    image = np.random.default_rng(2).integers(20, 120, (128, 256, 3), dtype=np.uint8)
    image[:40] = (190, 200, 215)
    image[100:103, 50:53] = 255  # a headlight
    np.testing.assert_allclose(estimate_airlight(image), (190, 200, 215))


def test_the_foggy_tree_is_named_and_made_as_documented(tree, caplog):
    clear = sorted(tree.glob("leftImg8bit/val/*/*.png"))
    for path in tree.glob("leftImg8bit_foggy/val/*/*_0.02.png"):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in tree.glob("leftImg8bit_foggy/val/*/*.png")}
    with caplog.at_level(logging.INFO):
        written = make_foggy_split(tree, "val", airlight=(200, 210, 220))
    assert written == len(clear) == 4
    assert "4 foggy images written, 8 were there already" in caplog.text
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for path in clear:
        city, frame = path.parent.name, path.name.removesuffix("_leftImg8bit.png")
        camera = json.loads((tree / f"camera/val/{city}/{frame}_camera.json").read_text())
        disparity = np.asarray(Image.open(tree / f"disparity/val/{city}/{frame}_disparity.png")).astype(float)
        with np.errstate(divide="ignore"):
            depth = camera["extrinsic"]["baseline"] * camera["intrinsic"]["fx"] / ((disparity - 1) / 256)
        fx, u0, v0 = (camera["intrinsic"][name] for name in ("fx", "u0", "v0"))
        y, x = np.mgrid[1 : depth.shape[0] + 1, 1 : depth.shape[1] + 1]
        depth *= np.sqrt(fx**2 + (x - u0) ** 2 + (y - v0) ** 2) / fx
        foggy = np.asarray(Image.open(tree / f"leftImg8bit_foggy/val/{city}/{frame}_leftImg8bit_foggy_beta_0.02.png"))
        t = np.exp(-0.02 * depth)[..., None]
        expected = np.asarray(Image.open(path)) * t + np.array([200, 210, 220]) * (1 - t)
        assert np.abs(foggy - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("pattern", "content", "error", "archive"),
    [
        ("camera/val/*/*.json", None, FileNotFoundError, "camera_trainvaltest.zip"),
        ("camera/val/*/*.json", b'{"intrinsic": {}}', ValueError, "camera_trainvaltest.zip"),
        (
            "camera/val/*/*.json",
            b'{"extrinsic": {"baseline": 0}, "intrinsic": {"fx": 1, "u0": 1, "v0": 1}}',
            ValueError,
            "camera_trainvaltest.zip",
        ),
        ("disparity/val/*/*.png", None, FileNotFoundError, "disparity_trainvaltest.zip"),
        ("disparity/val/*/*.png", b"nothing", ValueError, "disparity_trainvaltest.zip"),
        ("leftImg8bit/val/*/*.png", b"nothing", ValueError, "leftImg8bit_trainvaltest.zip"),
    ],
)
def test_a_missing_or_corrupt_input_is_named_with_its_archive(tree, capsys, pattern, content, error, archive):
    path = sorted(tree.glob(pattern))[-1]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as caught:
        make_foggy_split(tree, "val", [0.03])
    assert path.name in str(caught.value)
    assert archive in str(caught.value)
    assert run(["data", "fog", str(tree), "--split", "val", "--beta", "0.03"]) == 2
    assert capsys.readouterr().err == f"error: {caught.value}\n"


def test_a_disparity_map_without_any_disparity_is_named(tree):
    path = min(tree.glob("disparity/val/*/*.png"))
    Image.fromarray(np.zeros((96, 192), np.uint16)).save(path)
    with pytest.raises(ValueError, match=f"{path.name}: no pixel has a disparity"):
        make_foggy_split(tree, "val", [0.03])


def test_the_tool_adds_a_density(tree):
    assert (
        run(
            [
                "data",
                "fog",
                str(tree),
                "--split",
                "val",
                "--split",
                "train",
                "--beta",
                "0.03",
                "--airlight",
                "200",
                "200",
                "200",
            ]
        )
        == 0
    )
    assert len(list(tree.glob("leftImg8bit_foggy/*/*/*_foggy_beta_0.03.png"))) == 12
    assert not list(tree.glob("**/*.tmp"))


def test_any_wrong_value_in_a_camera_file_is_taken_or_named_in_one_line(tmp_path):
    make_mini_cityscapes(tmp_path / "mini", train=1, val=1, height=64, width=128)
    (camera,) = tmp_path.glob("mini/camera/val/*/*.json")

    def load():
        for path in tmp_path.glob("mini/leftImg8bit_foggy/val/*/*_0.03.png"):
            path.unlink()
        make_foggy_split(tmp_path / "mini", "val", [0.03])

    _, messages = refusals(camera, json.loads(camera.read_text()), load)
    assert len(messages) > 50
    assert all("_camera.json" in message for message in messages)
