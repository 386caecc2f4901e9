import json
import logging
import shutil

import pytest

from gh_downstream.cli.main import run
from gh_downstream.detection.data import load_cityscapes
from gh_downstream.detection.data.check import check_cityscapes
from gh_downstream.detection.data.fog import FOG_DENSITIES

FOGGY = [f"leftImg8bit_foggy {density:g}" for density in FOG_DENSITIES]
CHECK = ["data", "check"]
REQUIRED = ["leftImg8bit", *FOGGY, "gtFine"]
ARCHIVES = {
    "leftImg8bit": "leftImg8bit_trainvaltest.zip",
    "leftImg8bit_foggy": "leftImg8bit_trainvaltest_foggy.zip",
    "gtFine": "gtFine_trainvaltest.zip",
}


def one(root, pattern):
    return sorted(root.glob(pattern))[0]


def parts_of(root, read=False):
    return {(part.name, part.split): part for part in check_cityscapes(root, read)}


@pytest.fixture
def cityscapes(tmp_path):
    """As many files as Cityscapes and Foggy Cityscapes have, empty and under invented names; no disparity or camera."""
    root = tmp_path / "cityscapes"
    suffixes = {
        "leftImg8bit": ["leftImg8bit.png"],
        "leftImg8bit_foggy": [f"leftImg8bit_foggy_beta_{beta}.png" for beta in ("0.005", "0.01", "0.02")],
        "gtFine": ["gtFine_polygons.json"],
    }
    for folder, endings in suffixes.items():
        for split, count in (("train", 2975), ("val", 500)):
            city = root / folder / split / "ulm"
            city.mkdir(parents=True)
            for number in range(count):
                for ending in endings:
                    (city / f"ulm_{number:06d}_000019_{ending}").touch()
    return root


def test_a_whole_mini_tree_is_complete(mini_tree, capsys):
    parts = parts_of(mini_tree, read=True)
    names = [*REQUIRED, "disparity", "camera"]
    assert list(parts) == [(name, split) for name in names for split in ("train", "val")]
    for (_, split), part in parts.items():
        assert part.found == part.expected == {"train": 8, "val": 4}[split]
        assert part.whole
        assert part.damaged == []
    assert run([*CHECK, str(mini_tree), "--read"]) == 0
    shown = capsys.readouterr().out
    assert "complete: all that training and evaluation need is there" in shown
    assert ".zip" not in shown


def test_what_is_complete_loads_without_warning(mini_tree, caplog):
    assert all(part.whole for part in check_cityscapes(mini_tree))
    for split in ("train", "val"):
        for density in (None, *FOG_DENSITIES):
            load_cityscapes(mini_tree, split, density)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_cityscapes_is_complete_without_disparity_and_camera(cityscapes, capsys):
    assert run([*CHECK, str(cityscapes)]) == 0
    shown = capsys.readouterr().out
    assert "complete: all" in shown
    assert "disparity_trainvaltest.zip" in shown  # for those who want to make fog
    assert {part.name for part in check_cityscapes(cityscapes) if not part.required} == {"disparity", "camera"}


def test_a_partly_unpacked_cityscapes_names_archives_and_files(cityscapes, capsys):
    shutil.rmtree(cityscapes / "leftImg8bit_foggy" / "val")
    lost = sorted((cityscapes / "gtFine" / "train").glob("*/*"))[:5]
    for path in lost:
        path.unlink()
    parts = parts_of(cityscapes)
    lacking = {key: part.lacking for key, part in parts.items() if part.required and part.lacking}
    assert lacking == {("gtFine", "train"): 5, **{(name, "val"): 500 for name in FOGGY}}
    assert run([*CHECK, str(cityscapes)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(" gtFine")] == [ARCHIVES["gtFine"], "0"]
    frames = [path.name.removesuffix("_gtFine_polygons.json") for path in lost]
    assert [f"missing: gtFine/train/ulm/{frame}_gtFine_instanceIds.png" in lines for frame in frames] == [
        *(True, True, True),
        *(False, False),
    ]
    assert "and 2 more files missing in gtFine train" in lines
    (verdict,) = [line for line in lines if line.startswith("incomplete")]
    assert all((ARCHIVES[folder] in verdict) == (folder != "leftImg8bit") for folder in ARCHIVES)
    assert f"in {cityscapes}" in verdict


def test_an_empty_tree_asks_for_every_archive(tmp_path, capsys):
    assert run([*CHECK, str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert all(archive in shown.splitlines()[-1] for archive in ARCHIVES.values())
    for part in check_cityscapes(tmp_path):
        assert (part.found, part.expected) == (0, {"train": 2975, "val": 500}[part.split])


@pytest.mark.parametrize(
    "file",
    [
        "leftImg8bit/val/farley/farley_000002_000019_leftImg8bit.png",
        "leftImg8bit_foggy/train/corwen/corwen_000004_000019_leftImg8bit_foggy_beta_0.01.png",
        "gtFine/train/ardmore/ardmore_000000_000019_gtFine_instanceIds.png",
    ],
)
def test_one_missing_file_is_named(tree, file, capsys):
    (tree / file).unlink()
    assert [part.lacking for part in check_cityscapes(tree) if not part.whole] == [1]
    assert run([*CHECK, str(tree)]) == 1
    shown = capsys.readouterr().out
    assert f"missing: {file}\n" in shown
    assert "gh-downstream data make streets" in shown  # no archive holds this tree
    assert ".zip" not in shown


def test_polygons_stand_in_for_instance_maps(tree):
    path = one(tree, "gtFine/val/*/*_instanceIds.png")
    path.with_name(path.name.replace("instanceIds.png", "polygons.json")).write_text("{}")
    assert parts_of(tree)["gtFine", "val"].found == 4  # one frame that has both
    path.unlink()
    assert parts_of(tree, read=True)["gtFine", "val"].whole


def test_an_image_without_annotation_is_noticed_though_the_numbers_fit(tree, capsys):
    path = one(tree, "leftImg8bit/val/*/*.png")
    shutil.copy(path, path.with_name("elstow_999999_000019_leftImg8bit.png"))
    parts = parts_of(tree)
    assert parts["gtFine", "val"].found == parts["gtFine", "val"].expected
    assert parts["gtFine", "val"].lacking == 1
    assert run([*CHECK, str(tree)]) == 1
    shown = capsys.readouterr().out
    assert "missing: gtFine/val/elstow/elstow_999999_000019_gtFine_instanceIds.png" in shown
    assert "leftImg8bit val has 1 more than it should" in shown


@pytest.mark.parametrize(
    ("pattern", "required"),
    [
        ("leftImg8bit/val/*/*.png", True),
        ("leftImg8bit_foggy/train/*/*_0.02.png", True),
        ("gtFine/train/*/*_instanceIds.png", True),
        ("disparity/val/*/*.png", False),
        ("camera/train/*/*.json", False),
    ],
)
def test_a_file_that_was_cut_off_is_found_by_reading(tree, pattern, required, capsys):
    path = one(tree, pattern)
    path.write_bytes(path.read_bytes()[:-100])
    assert run([*CHECK, str(tree)]) == 0  # its name is there
    assert "damaged" not in capsys.readouterr().out
    assert run([*CHECK, str(tree), "--read"]) == int(required)
    assert str(path) in capsys.readouterr().out
    assert [len(part.damaged) for part in check_cityscapes(tree, read=True) if not part.whole] == [1]


def test_an_empty_file_is_damaged(tree):
    path = one(tree, "leftImg8bit/train/*/*.png")
    path.write_bytes(b"")
    (problem,) = parts_of(tree, read=True)["leftImg8bit", "train"].damaged
    assert str(path) in problem


def test_folders_one_level_too_deep_are_found(tree, capsys):
    (tree / "unpacked").mkdir()
    for folder in ("leftImg8bit", "gtFine"):
        (tree / folder).rename(tree / "unpacked" / folder)
    assert run([*CHECK, str(tree)]) == 1
    assert f"{tree / 'unpacked'} holds leftImg8bit, gtFine: check that folder instead" in capsys.readouterr().out
    assert run([*CHECK, str(tree.parent)]) == 1
    assert f"{tree} holds leftImg8bit_foggy, disparity, camera: check that" in capsys.readouterr().out


def test_fog_can_be_made_where_its_sources_are_whole(tree, capsys):
    advice = f"gh-downstream data fog {tree}"
    shutil.rmtree(tree / "leftImg8bit_foggy")
    assert run([*CHECK, str(tree)]) == 1
    assert advice in capsys.readouterr().out
    one(tree, "camera/val/*/*.json").unlink()
    assert run([*CHECK, str(tree)]) == 1
    assert advice not in capsys.readouterr().out


def test_misuse_is_told_from_missing_files(tree, capsys):
    assert run([*CHECK, str(tree / "nowhere")]) == 2
    assert str(tree / "nowhere") in capsys.readouterr().err
    (tree / "manifest.json").write_text(json.dumps({"name": "mini_cityscapes", "images": {"train": {}}}))
    assert run([*CHECK, str(tree)]) == 2
    assert str(tree / "manifest.json") in capsys.readouterr().err
    assert run(CHECK) == 2
