import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from gh_downstream.cli.main import run
from gh_downstream.detection.data import load_cityscapes
from gh_downstream.detection.data.cityscapes import LABEL_IDS
from gh_downstream.detection.data.fog import depth_from_disparity
from gh_downstream.detection.data.mini_cityscapes import CITIES, make_mini_cityscapes
from gh_downstream.detection.streets.scene import render_street

SIZE = {"train": 8, "val": 4, "seed": 3, "height": 96, "width": 192}


def files(root):
    """Content of every file but the reader's cache, by its path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".gh_cache" not in path.parts
    }


def test_the_layout_is_that_of_cityscapes(mini_tree):
    expected = {"manifest.json"}
    frames = {
        "train": [f"{CITIES['train'][number // 2]}_{number:06d}_000019" for number in range(8)],
        "val": [f"{CITIES['val'][number // 2]}_{number:06d}_000019" for number in range(4)],
    }
    for split, names in frames.items():
        for frame in names:
            place = f"{split}/{frame.split('_')[0]}/{frame}"
            expected |= {
                f"leftImg8bit/{place}_leftImg8bit.png",
                f"gtFine/{place}_gtFine_instanceIds.png",
                f"disparity/{place}_disparity.png",
                f"camera/{place}_camera.json",
            }
            expected |= {
                f"leftImg8bit_foggy/{place}_leftImg8bit_foggy_beta_{beta}.png" for beta in ("0.005", "0.01", "0.02")
            }
    assert set(files(mini_tree)) == expected


def test_the_same_seed_gives_the_same_bytes(mini_tree, tmp_path):
    make_mini_cityscapes(tmp_path / "again", **SIZE)
    assert files(tmp_path / "again") == files(mini_tree)


def test_every_image_is_another_one(mini_tree, tmp_path):
    make_mini_cityscapes(tmp_path / "other", **{**SIZE, "seed": 4, "train": 2, "val": 1})
    images = [path for root in (mini_tree, tmp_path / "other") for path in root.glob("leftImg8bit/*/*/*.png")]
    assert len({path.read_bytes() for path in images}) == len(images) == 15


def test_images_and_maps_are_of_the_right_kind(mini_tree):
    for path in mini_tree.glob("leftImg8bit/val/*/*.png"):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (192, 96))
    for path in [*mini_tree.glob("gtFine/val/*/*.png"), *mini_tree.glob("disparity/val/*/*.png")]:
        with Image.open(path) as image:
            assert image.mode.startswith("I;16")
            assert image.size == (192, 96)


def test_the_disparity_file_holds_the_depth(mini_tree):
    scene = render_street(np.random.default_rng([3, 1, 0]), 96, 192, LABEL_IDS)
    frame = f"val/{CITIES['val'][0]}/{CITIES['val'][0]}_000000_000019"
    camera = json.loads((mini_tree / f"camera/{frame}_camera.json").read_text())
    stored = np.asarray(Image.open(mini_tree / f"disparity/{frame}_disparity.png"))
    depth = depth_from_disparity(stored, camera["extrinsic"]["baseline"], camera["intrinsic"]["fx"])
    assert (np.isinf(depth) == np.isinf(scene.depth)).all()
    near = scene.depth < 40
    np.testing.assert_allclose(depth[near], scene.depth[near], rtol=0.01)
    assert (np.asarray(Image.open(mini_tree / f"leftImg8bit/{frame}_leftImg8bit.png")) == scene.image).all()


def test_fog_hides_what_is_far_and_leaves_what_is_near(mini_tree):
    clear, foggy = load_cityscapes(mini_tree, "train"), load_cityscapes(mini_tree, "train", 0.02)
    for number, (before, after) in enumerate(zip(clear.records, foggy.records, strict=True)):
        depth = render_street(np.random.default_rng([3, 0, number]), 96, 192, LABEL_IDS).depth
        images = [np.asarray(Image.open(record["file_name"])).astype(float) for record in (before, after)]
        airlight = images[1][np.isinf(depth)]
        assert (airlight == airlight[0]).all()  # nothing is left of the sky
        left = [np.abs(image - airlight[0]) for image in images]
        for part, least, most in ((depth < 15, 0.7, 1.0), ((depth > 60) & np.isfinite(depth), 0.0, 0.32)):
            assert least < left[1][part].mean() / left[0][part].mean() < most


def test_a_complete_tree_is_left_as_it_is(tree, caplog):
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    with caplog.at_level(logging.INFO):
        make_mini_cityscapes(tree, **SIZE)
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before
    assert "left as it is" in caplog.text


def test_a_half_written_tree_is_completed_to_the_same_bytes(tree, mini_tree):
    for pattern in (
        "leftImg8bit/train/*/*_000003_*.png",
        "gtFine/train/*/*_000005_*",
        "leftImg8bit_foggy/val/*/*_0.01.png",
    ):
        for path in tree.glob(pattern):
            path.unlink()
    shutil.rmtree(tree / "disparity" / "val")
    make_mini_cityscapes(tree, **SIZE)
    assert files(tree) == files(mini_tree)


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(ValueError, match="something else"):
        make_mini_cityscapes(tmp_path, **SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="something else"):
        make_mini_cityscapes(tmp_path / "thesis.txt", **SIZE)


def test_a_tree_of_other_arguments_is_not_touched(tree):
    before = files(tree)
    with pytest.raises(ValueError, match=r"'seed': 3.*'seed': 5"):
        make_mini_cityscapes(tree, **{**SIZE, "seed": 5})
    (tree / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is not readable JSON"):
        make_mini_cityscapes(tree, **SIZE)
    (tree / "manifest.json").write_bytes(before["manifest.json"])
    assert files(tree) == before


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"val": -1}, {"seed": -1}, {"height": 32}, {"height": 128, "width": 96}]
)
def test_arguments_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        make_mini_cityscapes(tmp_path / "tree", **{**SIZE, **wrong})
    assert not (tmp_path / "tree").exists()


def test_the_tool_writes_a_tree_and_reports_mistakes_in_one_line(tmp_path, capsys):
    arguments = ["--train", "1", "--val", "1", "--height", "64", "--width", "128"]
    assert run(["data", "make", "streets", str(tmp_path / "tree"), *arguments]) == 0
    assert len(load_cityscapes(tmp_path / "tree", "train", 0.02)) == 1
    assert run(["data", "make", "streets", str(tmp_path / "tree"), *arguments, "--seed", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "'seed': 1" in error
