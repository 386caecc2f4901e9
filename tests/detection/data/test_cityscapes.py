import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from gh_downstream.detection.data import CITYSCAPES_CLASSES, load_cityscapes
from gh_downstream.detection.data.cityscapes import LABEL_IDS, draw_instance_ids, instance_annotations
from tests.detection.data.wrong_values import refusals

CLASS_OF_LABEL = {24: 0, 25: 1, 26: 2, 27: 3, 28: 4, 31: 5, 32: 6, 33: 7}  # as Cityscapes documents its ids


def boxes_by_masks(instance_ids):
    """The annotations of an instance map, one mask at a time."""
    found = []
    for number in sorted(set(instance_ids.ravel().tolist())):
        label = number // 1000 if number >= 1000 else number
        if label not in CLASS_OF_LABEL:
            continue
        ys, xs = np.where(instance_ids == number)
        box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        found.append((list(map(float, box)), CLASS_OF_LABEL[label], float(len(xs)), int(number < 1000)))
    return found


def as_tuples(annotations):
    return [(a["bbox"], a["category_id"], a["area"], a["iscrowd"]) for a in annotations]


def one(root, pattern):
    return sorted(root.glob(pattern))[0]


def test_label_ids_are_those_of_the_classes():
    assert list(LABEL_IDS.values()) == list(CLASS_OF_LABEL)
    assert tuple(LABEL_IDS) == CITYSCAPES_CLASSES


def test_boxes_of_a_map_drawn_by_hand():
    ids = np.zeros((20, 30), np.uint16)
    ids[:] = 7  # road
    ids[2:6, 3:10] = 26000
    ids[4:9, 8:12] = 26001  # hides a corner of the first car
    ids[15, 5] = 24005  # a single pixel
    ids[10:12, 20:30] = 33  # a group of bicycles, up to the edge
    ids[0:2, 0:2] = 17  # a pole
    ids[18:20, 0:3] = 29000  # a caravan, not one of the classes
    assert as_tuples(instance_annotations(ids)) == [
        ([20.0, 10.0, 10.0, 2.0], 7, 20.0, 1),
        ([5.0, 15.0, 1.0, 1.0], 0, 1.0, 0),
        ([3.0, 2.0, 7.0, 4.0], 2, 24.0, 0),
        ([8.0, 4.0, 4.0, 5.0], 2, 20.0, 0),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_boxes_of_random_maps_equal_those_of_their_masks(seed):
    rng = np.random.default_rng(seed)
    ids = rng.choice([0, 7, 24, 26, 24000, 25003, 26999, 31000, 33012, 30001], (37, 53)).astype(np.uint16)
    assert as_tuples(instance_annotations(ids)) == boxes_by_masks(ids)


def test_a_map_without_objects_has_no_boxes():
    assert instance_annotations(np.zeros((8, 8), np.uint16)) == []


@pytest.mark.parametrize("fog_density", [None, 0.005, 0.01, 0.02])
def test_every_image_becomes_a_record_with_the_boxes_of_its_masks(tree, fog_density):
    dataset = load_cityscapes(tree, "val", fog_density)
    assert dataset.name == (
        "mini_cityscapes_val" if fog_density is None else f"mini_cityscapes_foggy_{fog_density}_val"
    )
    assert dataset.fog_density == fog_density
    assert dataset.classes == CITYSCAPES_CLASSES
    assert len(dataset) == 4
    for record in dataset.records:
        assert (record["height"], record["width"]) == (96, 192)
        assert Image.open(record["file_name"]).size == (192, 96)
        assert str(record["image_id"]) in record["file_name"]
        assert ("foggy" in record["file_name"]) == (fog_density is not None)
        ids = np.asarray(Image.open(one(tree, f"gtFine/val/*/{record['image_id']}_gtFine_instanceIds.png")))
        expected = [box for box in boxes_by_masks(ids) if min(box[0][2:]) > 1]
        assert as_tuples(record["annotations"]) == expected
        assert len(expected) > 2


def test_clear_and_foggy_images_have_the_same_ids_and_boxes(tree):
    clear, foggy = load_cityscapes(tree, "val"), load_cityscapes(tree, "val", 0.02)
    assert [r["image_id"] for r in clear.records] == [r["image_id"] for r in foggy.records]
    assert [r["annotations"] for r in clear.records] == [r["annotations"] for r in foggy.records]


def test_a_tree_without_manifest_is_cityscapes_and_says_what_is_missing(tree, caplog):
    (tree / "manifest.json").unlink()
    with caplog.at_level(logging.INFO):
        dataset = load_cityscapes(tree, "val", 0.02)
    assert dataset.name == "cityscapes_foggy_0.02_val"
    assert "4 images of 500 expected" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


def test_the_summary_counts_images_boxes_and_dropped_boxes(tree, caplog):
    path = one(tree, "gtFine/val/*/*_instanceIds.png")
    ids = np.array(Image.open(path))
    ids[-3:, :] = 0
    ids[-2, 10:20] = 26999  # a pixel high
    Image.fromarray(ids).save(path)
    with caplog.at_level(logging.INFO):
        dataset = load_cityscapes(tree, "val")
    assert f"4 images of 4 expected, {dataset.num_boxes} boxes" in caplog.text
    assert "(1 a single pixel thick dropped)" in caplog.text
    assert caplog.records[-1].levelno == logging.INFO


def test_an_image_without_objects_is_kept(tree):
    path = one(tree, "gtFine/val/*/*_instanceIds.png")
    Image.fromarray(np.zeros((96, 192), np.uint16)).save(path)
    dataset = load_cityscapes(tree, "val")
    assert len(dataset) == 4
    assert dataset.records[0]["annotations"] == []


def test_cities_part_a_split(tree):
    whole = load_cityscapes(tree, "train")
    source = load_cityscapes(tree, "train", cities=["ardmore", "belford"])
    target = load_cityscapes(tree, "train", 0.02, cities=["corwen", "dunholm"], labels=False)
    parts = [{record["image_id"] for record in part.records} for part in (source, target)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {record["image_id"] for record in whole.records}
    with pytest.raises(ValueError, match="no cities atlantis; it has ardmore, belford"):
        load_cityscapes(tree, "train", cities=["ardmore", "atlantis"])


def test_an_unlabelled_target_needs_no_annotations(tree):
    shutil.rmtree(tree / "gtFine")
    dataset = load_cityscapes(tree, "train", 0.02, labels=False)
    assert len(dataset) == 8
    assert dataset.num_boxes == 0
    assert not (tree / ".gh_cache").exists()


def polygon(label, left, top, right, bottom, **more):
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {"label": label, "polygon": corners, **more}


def test_polygons_give_the_visible_boxes():
    content = {
        "imgHeight": 96,
        "imgWidth": 192,
        "objects": [
            polygon("road", 0, 0, 191, 95),
            polygon("car", 10, 10, 49, 29),
            polygon("license plate", 20, 20, 24, 22),
            polygon("cargroup", 100, 10, 119, 29),
            polygon("rider", 60, 20, 69, 60),
            polygon("bicycle", 55, 40, 80, 70),  # hides the lower part of its rider
            polygon("pole", 10, 0, 14, 95),  # hides the left edge of the car
            polygon("person", 180, 80, 250, 120),  # sticks out of the image
            polygon("person", 150, 50, 160, 60, deleted=1),
        ],
    }
    assert as_tuples(instance_annotations(draw_instance_ids(content))) == [
        ([100.0, 10.0, 20.0, 20.0], 2, 400.0, 1),
        ([180.0, 80.0, 12.0, 16.0], 0, 192.0, 0),
        ([60.0, 20.0, 10.0, 20.0], 1, 200.0, 0),
        ([15.0, 10.0, 35.0, 20.0], 2, 700.0, 0),
        ([55.0, 40.0, 26.0, 31.0], 7, 806.0, 0),
    ]


def test_polygons_stand_in_for_a_missing_instance_map(tree):
    before = load_cityscapes(tree, "val")
    path = one(tree, "gtFine/val/*/*_instanceIds.png")
    path.unlink()
    content = {"imgHeight": 96, "imgWidth": 192, "objects": [polygon("bus", 5, 5, 44, 34)]}
    path.with_name(path.name.replace("instanceIds.png", "polygons.json")).write_text(json.dumps(content))
    after = load_cityscapes(tree, "val")
    assert as_tuples(after.records[0]["annotations"]) == [([5.0, 5.0, 40.0, 30.0], 4, 1200.0, 0)]
    assert after.records[1:] == before.records[1:]


def break_in_place(path):
    """Make a file unreadable without changing its size or modification time."""
    status = path.stat()
    path.write_bytes(b"?" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_unchanged_annotations_come_from_the_cache_and_changed_ones_do_not(tree):
    before = load_cityscapes(tree, "val")
    first, second = sorted(tree.glob("gtFine/val/*/*_instanceIds.png"))[:2]
    break_in_place(first)
    assert load_cityscapes(tree, "val").records == before.records  # not read again
    Image.fromarray(np.zeros((96, 192), np.uint16)).save(second)
    assert load_cityscapes(tree, "val").records[1]["annotations"] == []
    os.utime(first)
    with pytest.raises(ValueError, match=first.name):
        load_cityscapes(tree, "val")


def test_a_filtered_load_leaves_the_rest_of_the_cache(tree):
    whole = load_cityscapes(tree, "train")
    path = one(tree, "gtFine/train/dunholm/*_instanceIds.png")
    load_cityscapes(tree, "train", cities=["ardmore"])
    os.utime(one(tree, "gtFine/train/ardmore/*_instanceIds.png"))
    load_cityscapes(tree, "train", cities=["ardmore"])
    break_in_place(path)
    assert load_cityscapes(tree, "train").records == whole.records


def test_a_cache_that_cannot_be_written_or_read_is_said_and_done_without(tree, caplog):
    cache = tree / ".gh_cache" / "cityscapes_val.json"
    cache.parent.write_text("in the way")
    expected = load_cityscapes(tree, "val")
    assert "without a cache" in caplog.text
    cache.parent.unlink()
    assert load_cityscapes(tree, "val").records == expected.records
    cache.write_text(cache.read_text()[:50])
    caplog.clear()
    assert load_cityscapes(tree, "val").records == expected.records
    assert str(cache) in caplog.text
    caplog.clear()
    assert load_cityscapes(tree, "val").records == expected.records
    assert not caplog.text  # the cache was repaired


def remove_folder(folder):
    return lambda tree: shutil.rmtree(tree / folder)


def remove_file(pattern):
    return lambda tree: one(tree, pattern).unlink()


def cut_off(pattern):
    def cut(tree):
        path = one(tree, pattern)
        path.write_bytes(path.read_bytes()[:-200])

    return cut


@pytest.mark.parametrize(
    ("damage", "fog_density", "error", "names"),
    [
        (remove_folder("leftImg8bit"), None, FileNotFoundError, ["leftImg8bit/val", "leftImg8bit_trainvaltest.zip"]),
        (remove_folder("leftImg8bit_foggy"), 0.02, FileNotFoundError, ["leftImg8bit_trainvaltest_foggy.zip"]),
        (remove_folder("gtFine"), None, FileNotFoundError, ["_gtFine_polygons.json", "gtFine_trainvaltest.zip"]),
        (
            remove_file("gtFine/val/*/*000002*_instanceIds.png"),
            None,
            FileNotFoundError,
            ["farley_000002_000019_gtFine_instanceIds.png", "gtFine_trainvaltest.zip"],
        ),
        (
            cut_off("gtFine/val/*/*000002*_instanceIds.png"),
            None,
            ValueError,
            ["farley_000002_000019_gtFine_instanceIds.png", "gtFine_trainvaltest.zip"],
        ),
        (
            cut_off("leftImg8bit/val/*/*000003*.png"),
            None,
            ValueError,
            ["farley_000003_000019_leftImg8bit.png", "leftImg8bit_trainvaltest.zip"],
        ),
        (
            cut_off("leftImg8bit_foggy/val/*/*000003*_0.02.png"),
            0.02,
            ValueError,
            ["farley_000003_000019_leftImg8bit_foggy_beta_0.02.png", "leftImg8bit_trainvaltest_foggy.zip"],
        ),
    ],
)
def test_an_error_names_the_file_and_its_archive(tree, damage, fog_density, error, names):
    damage(tree)
    with pytest.raises(error) as caught:
        load_cityscapes(tree, "val", fog_density)
    for name in names:
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_density_lists_those_that_exist(tree):
    with pytest.raises(FileNotFoundError, match=r"beta_0.04.png \(densities found: 0.005, 0.01, 0.02\)"):
        load_cityscapes(tree, "val", 0.04)
    with pytest.raises(ValueError, match="fog_density is 0"):
        load_cityscapes(tree, "val", 0)


def test_an_instance_map_of_another_size_or_depth_is_refused(tree):
    path = one(tree, "gtFine/val/*/*_instanceIds.png")
    Image.fromarray(np.zeros((48, 192), np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"instanceIds.png is of \[48, 192\]"):
        load_cityscapes(tree, "val")
    Image.fromarray(np.zeros((96, 192), np.uint8)).save(path)
    with pytest.raises(ValueError, match=f"{path.name}.*16-bit"):
        load_cityscapes(tree, "val")


def test_a_polygon_file_that_is_none_is_refused(tree):
    path = one(tree, "gtFine/val/*/*_instanceIds.png")
    path.unlink()
    polygons = path.with_name(path.name.replace("instanceIds.png", "polygons.json"))
    for content in ("[", "{}", '{"imgHeight": 96, "imgWidth": 192, "objects": [{"label": "car"}]}'):
        polygons.write_text(content)
        with pytest.raises(ValueError, match=f"{polygons.name}.*gtFine_trainvaltest.zip"):
            load_cityscapes(tree, "val")


@pytest.mark.parametrize("cities", [None, ["corwen", "ardmore"]])
def test_fog_on_some_of_the_images_alone_is_refused_with_the_cure(tree, cities):
    lost = sorted(tree.glob("leftImg8bit_foggy/train/corwen/*_0.02.png"))[:1]
    for path in lost:
        path.unlink()
    whole = 8 if cities is None else 4
    with pytest.raises(FileNotFoundError, match=rf"leftImg8bit_foggy/train lacks 1 of {whole} images .*0.02") as error:
        load_cityscapes(tree, "train", 0.02, cities=cities)
    assert lost[0].name.removesuffix("_leftImg8bit_foggy_beta_0.02.png") in str(error.value)
    assert f"gh-downstream data fog {tree} --split train --beta 0.02" in str(error.value)
    assert len(load_cityscapes(tree, "train", 0.02, cities=["ardmore"])) == 2
    assert len(load_cityscapes(tree, "train", 0.01)) == 8
    shutil.rmtree(tree / "leftImg8bit")  # nothing to compare with
    assert len(load_cityscapes(tree, "train", 0.02)) == 7


def test_any_wrong_value_in_polygons_and_manifest_is_taken_or_named_in_one_line(tree):
    (clear,) = sorted(tree.glob("leftImg8bit/val/*/*.png"))[:1]
    for path in tree.glob("leftImg8bit/val/*/*.png"):
        if path != clear:
            path.unlink()
    frame = one(tree, f"gtFine/val/*/{clear.name.removesuffix('_leftImg8bit.png')}_gtFine_instanceIds.png")
    frame.unlink()
    polygons = frame.with_name(frame.name.replace("instanceIds.png", "polygons.json"))
    corners = [[1, 1], [50, 1], [50, 40]]
    objects = [{"label": "car", "polygon": corners}, {"label": "busgroup", "deleted": 0, "polygon": corners}]
    content = {"imgWidth": 192, "imgHeight": 96, "objects": objects}
    _, messages = refusals(polygons, content, lambda: load_cityscapes(tree, "val"))
    assert len(messages) > 100
    assert all(polygons.name in message for message in messages)
    polygons.write_text(json.dumps(content))
    manifest = tree / "manifest.json"
    _, messages = refusals(manifest, json.loads(manifest.read_text()), lambda: load_cityscapes(tree, "val"))
    assert messages
    assert all("manifest.json" in message for message in messages)
