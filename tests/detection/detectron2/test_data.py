"""Data sets in Detectron2's catalogs, and batches of two domains, on a small Mini-Cityscapes."""

import json
import logging
import random
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, get_detection_dataset_dicts, transforms
from detectron2.structures import BoxMode
from PIL import Image

from gh_downstream.data.images import open_image
from gh_downstream.detection.data import BDD100K_CLASSES, CITYSCAPES_CLASSES, load_cityscapes
from gh_downstream.detection.detectron2.config import add_adaptation_config
from gh_downstream.detection.detectron2.data import (
    ImageMapper,
    PairedLoader,
    TargetMapper,
    build_paired_train_loader,
    classes_of,
    dataset_of,
    load_dicts,
    register_coco_datasets,
    register_datasets,
)
from gh_downstream.detection.detectron2.data.loader import index_batches
from gh_downstream.integrations.detectron2 import add_gh_config
from tests.integrations.detectron2 import toy_detectors as common_detectors  # noqa: F401  # skips where there is no Detectron2

SOURCE, TARGET = "mini_cityscapes_source_train", "mini_cityscapes_foggy_0.02_target_train"
NAMES = {
    *(f"cityscapes{kind}_{split}" for kind in ("", "_car", "_bdd") for split in ("train", "val")),
    *(
        f"{tree}_foggy_{density}_{split}"
        for tree in ("cityscapes", "mini_cityscapes")
        for density in ("0.005", "0.01", "0.02")
        for split in ("train", "val")
    ),
    *("mini_cityscapes_train", "mini_cityscapes_val", SOURCE, TARGET),
    *("sim10k_car_train", "kitti_car_train", "bdd100k_daytime_train", "bdd100k_daytime_val"),
}


@pytest.fixture(scope="module")
def streets(mini_tree, tmp_path_factory):
    """A copy, as reading leaves a cache beside the data."""
    return shutil.copytree(mini_tree, tmp_path_factory.mktemp("streets") / "mini")


@pytest.fixture(autouse=True)
def catalogs():
    """The catalogs with our data sets, as they were before afterwards."""
    before = dict(DatasetCatalog), dict(MetadataCatalog)
    register_datasets()
    yield
    for catalog, content in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalog.data.clear()
        catalog.data.update(content)


@pytest.fixture
def root(streets, tmp_path, monkeypatch):
    """``DETECTRON2_DATASETS``, where the drawn streets are Cityscapes too."""
    folder = tmp_path / "root"
    folder.mkdir()
    for name in ("mini_cityscapes", "cityscapes"):
        (folder / name).symlink_to(streets)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    return folder


def make_cfg(*overrides):
    cfg = get_cfg()
    add_gh_config(cfg)
    add_adaptation_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TARGET, cfg.DATASETS.TEST = (SOURCE,), (TARGET,), ()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (48, 64, 80), 200
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 5
    cfg.merge_from_list(list(overrides))
    return cfg


def take(loader, count, start=0):
    loader.start = start
    return list(islice(iter(loader), count))


def content(value):
    """Everything in what a loader yields, in a form that compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: content(item) for key, item in value.items()}
    if isinstance(value, list):
        return [content(item) for item in value]
    if hasattr(value, "get_fields"):
        return {key: content(getattr(item, "tensor", item)) for key, item in value.get_fields().items()}
    return value


def custom(name, dicts, **metadata):
    """A data set that a user registered."""
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(**metadata)


# Data sets


def test_every_data_set_is_registered_once(caplog):
    register_datasets()
    assert set(DatasetCatalog) >= NAMES
    assert not caplog.records
    for name in NAMES:
        metadata = MetadataCatalog.get(name)
        density = float(name.split("_foggy_")[1].split("_")[0]) if "_foggy_" in name else None
        assert metadata.fog_density == density
        classes = ["car"] if "_car_" in name else BDD100K_CLASSES if "bdd" in name else CITYSCAPES_CLASSES
        assert metadata.thing_classes == list(classes)


def test_a_name_that_is_taken_is_left_alone(caplog):
    DatasetCatalog.remove("cityscapes_val")
    MetadataCatalog.remove("cityscapes_val")
    custom("cityscapes_val", [], thing_classes=["other"])
    register_datasets()
    assert DatasetCatalog.get("cityscapes_val") == []
    assert MetadataCatalog.get("cityscapes_val").thing_classes == ["other"]
    assert "cityscapes_val is registered already" in caplog.text


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mini_cityscapes_val", {"split": "val"}),
        ("mini_cityscapes_foggy_0.005_train", {"split": "train", "fog_density": 0.005}),
        (SOURCE, {"split": "train", "cities": ["ardmore", "belford"]}),
        (TARGET, {"split": "train", "fog_density": 0.02, "cities": ["corwen", "dunholm"]}),
        ("cityscapes_foggy_0.01_val", {"split": "val", "fog_density": 0.01}),
    ],
)
def test_records_go_through_detectron2_and_back(root, streets, name, arguments):
    expected = load_cityscapes(streets, **arguments)
    found = dataset_of(name)
    assert (found.name, found.classes, found.fog_density) == (name, expected.classes, expected.fog_density)

    def relative(records):
        return [{**record, "file_name": Path(record["file_name"]).name} for record in records]

    assert relative(found.records) == relative(expected.records)
    assert expected.num_boxes > 0
    assert len(get_detection_dataset_dicts([name], filter_empty=False)) == len(expected)


@pytest.mark.parametrize(("kind", "classes"), [("car", ("car",)), ("bdd", BDD100K_CLASSES)])
def test_cityscapes_with_fewer_classes(root, kind, classes):
    full, part = dataset_of("cityscapes_train"), dataset_of(f"cityscapes_{kind}_train")
    assert part.classes == classes
    assert len(part) == len(full) == 8
    for record, before in zip(part.records, full.records, strict=True):
        names = [full.classes[annotation["category_id"]] for annotation in before["annotations"]]
        kept = [classes[annotation["category_id"]] for annotation in record["annotations"]]
        assert kept == [name for name in names if name in classes]
    assert part.num_boxes > 0


def test_the_published_loaders_are_found_where_their_archives_unpack(root):
    (root / "sim10k" / "VOC2012" / "JPEGImages").mkdir(parents=True)
    (root / "kitti" / "training" / "image_2").mkdir(parents=True)
    (root / "bdd100k" / "images" / "100k" / "val").mkdir(parents=True)
    (root / "bdd100k" / "labels" / "det_20").mkdir(parents=True)
    for path in ("sim10k/VOC2012/JPEGImages/1.jpg", "kitti/training/image_2/1.png", "bdd100k/images/100k/val/1.jpg"):
        Image.new("RGB", (20, 10)).save(root / path)
    frame = {"name": "1.jpg", "attributes": {"timeofday": "daytime"}}
    (root / "bdd100k" / "labels" / "det_20" / "det_val.json").write_text(json.dumps([frame]))
    for name in ("sim10k_car_train", "kitti_car_train", "bdd100k_daytime_val"):
        (image,) = load_dicts(name, labels=False)
        assert (image["height"], image["width"], image["domain"]) == (10, 20, "target")


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("cityscapes_train", ["cityscapes/leftImg8bit/train", "leftImg8bit_trainvaltest.zip"]),
        ("cityscapes_foggy_0.02_val", ["cityscapes/leftImg8bit_foggy/val", "leftImg8bit_trainvaltest_foggy.zip"]),
        ("sim10k_car_train", ["sim10k/VOC2012/JPEGImages", "repro_10k_images.tgz"]),
        ("kitti_car_train", ["kitti/training/image_2", "data_object_image_2.zip"]),
        ("bdd100k_daytime_train", ["bdd100k/labels/det_20/det_train.json", "bdd100k_det_20_labels_trainval.zip"]),
        (SOURCE, ["mini_cityscapes does not exist", "gh-downstream data make streets"]),
    ],
)
def test_missing_data_are_named_with_what_brings_them(tmp_path, monkeypatch, name, messages):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        dataset_of(name)
    for message in [*messages, str(tmp_path), "DETECTRON2_DATASETS"]:
        assert message in str(caught.value)


def test_a_target_needs_no_annotation_files(root, streets):
    (root / "cityscapes").unlink()
    (root / "cityscapes").mkdir()
    (root / "cityscapes" / "leftImg8bit_foggy").symlink_to(streets / "leftImg8bit_foggy")
    assert len(load_dicts("cityscapes_foggy_0.02_train", labels=False)) == 8
    with pytest.raises(FileNotFoundError, match="gtFine"):
        load_dicts("cityscapes_foggy_0.02_train")
    loader = build_paired_train_loader(make_cfg("DATASETS.TARGET", "('cityscapes_foggy_0.02_train',)"))
    assert [image.get("domain") for image in take(loader, 1)[0]] == [None, None, "target", "target"]


def test_an_unknown_name_is_answered_with_those_like_it():
    with pytest.raises(ValueError, match=r"'mini_cityscape_val'; did you mean mini_cityscapes_val"):
        dataset_of("mini_cityscape_val")


def one(file_name="a.png", **more):
    return {"file_name": file_name, "image_id": 7, "height": 30, "width": 40, "annotations": [], **more}


def test_a_data_set_of_a_user_becomes_records():
    annotations = [
        {"bbox": [1, 2, 11, 22], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
        {"bbox": np.array([1.5, 2, 10, 20]), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "area": 9, "iscrowd": 1},
    ]
    custom("theirs", [one(annotations=annotations), one("b.png", image_id="x")], thing_classes=["dog", "cat"])
    dataset = dataset_of("theirs")
    assert (dataset.name, dataset.classes, dataset.fog_density) == ("theirs", ("dog", "cat"), None)
    assert dataset.records[0]["annotations"] == [
        {"bbox": [1.0, 2.0, 10.0, 20.0], "category_id": 1, "area": 200.0, "iscrowd": 0},
        {"bbox": [1.5, 2.0, 10.0, 20.0], "category_id": 0, "area": 9.0, "iscrowd": 1},
    ]
    assert dataset.records[1] == {"file_name": "b.png", "image_id": "x", "height": 30, "width": 40, "annotations": []}


def test_a_data_set_without_names_of_classes_or_ids_is_refused():
    custom("nameless", [one()])
    with pytest.raises(ValueError, match=r"nameless has no thing_classes"):
        dataset_of("nameless")
    image = one()
    del image["image_id"]
    custom("anonymous", [image], thing_classes=["dog"])
    with pytest.raises(ValueError, match=r"anonymous has an image or annotation without 'image_id'"):
        dataset_of("anonymous")


# Data sets in COCO's format


@pytest.fixture
def pair(streets, tmp_path):
    """Clear and foggy streets as COCO, the category ids of the second in another order."""
    entries = []
    for name, density in (("clear", None), ("fog", 0.02)):
        coco = load_cityscapes(streets, "train", density).to_coco()
        if density:
            shift = {item["id"]: len(coco["categories"]) + 1 - item["id"] for item in coco["categories"]}
            for item in coco["categories"]:
                item["id"] = shift[item["id"]]
            for item in coco["annotations"]:
                item["category_id"] = shift[item["category_id"]]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(coco))
        entries.append((name, str(path), str(streets)))
    return entries


def coco_cfg(entries, *overrides):
    return make_cfg("DATASETS.COCO", str(tuple(entries)), *overrides)


def test_a_coco_pair_has_the_classes_of_its_first(pair):
    cfg = coco_cfg(pair, "DATASETS.TRAIN", "('clear',)", "DATASETS.TARGET", "('fog',)")
    register_coco_datasets(cfg)
    register_coco_datasets(cfg)
    clear, fog = dataset_of("clear"), dataset_of("fog")
    assert clear.classes == fog.classes == CITYSCAPES_CLASSES
    assert [record["annotations"] for record in clear.records] == [record["annotations"] for record in fog.records]
    assert [image.get("domain") for image in take(build_paired_train_loader(cfg), 1)[0]] == [
        None,
        None,
        *2 * ["target"],
    ]
    register_coco_datasets(coco_cfg(pair[::-1], "DATASETS.TRAIN", "('fog',)"))  # another config, the other one first
    assert dataset_of("clear").classes == dataset_of("fog").classes == CITYSCAPES_CLASSES[::-1]


@pytest.fixture
def unequal(pair, tmp_path):
    """The same, the foggy one with trams for bicycles."""
    coco = json.loads((tmp_path / "fog.json").read_text())
    (item,) = (item for item in coco["categories"] if item["name"] == "bicycle")
    item["name"] = "tram"
    (tmp_path / "fog.json").write_text(json.dumps(coco))
    return pair


def test_a_coco_pair_has_the_classes_in_common_by_default(unequal, caplog):
    register_coco_datasets(coco_cfg(unequal, "DATASETS.TRAIN", "('clear',)", "DATASETS.TARGET", "('fog',)"))
    assert classes_of("clear") == classes_of("fog") == dataset_of("clear").classes == CITYSCAPES_CLASSES[:-1]
    assert "classes in common" in caplog.text
    # Those that the configuration does not use do not count.
    register_coco_datasets(coco_cfg(unequal, "DATASETS.TRAIN", "('clear',)", "DATASETS.TARGET", "()"))
    assert dataset_of("clear").classes == CITYSCAPES_CLASSES
    with pytest.raises(ValueError, match=r"fog.json: fog has no classes \['bicycle'\]; it has .*tram"):
        dataset_of("fog")


@pytest.mark.parametrize("from_file", [True, False])
def test_classes_can_be_chosen_with_aliases(unequal, tmp_path, from_file):
    cfg = coco_cfg(unequal, "DATASETS.TRAIN", "('clear',)", "DATASETS.TARGET", "('fog',)")
    if from_file:
        (tmp_path / "c.yaml").write_text("DATASETS: {CLASSES: [car, {bicycle: [tram]}]}")
        cfg.merge_from_file(str(tmp_path / "c.yaml"))
    else:
        cfg.merge_from_list(["DATASETS.CLASSES", "('car', {'bicycle': ['tram']})"])
    register_coco_datasets(cfg)
    clear, fog = dataset_of("clear"), dataset_of("fog")
    assert clear.classes == fog.classes == ("car", "bicycle")
    assert [record["annotations"] for record in clear.records] == [record["annotations"] for record in fog.records]
    cfg.DATASETS.CLASSES = ("car", "car")
    with pytest.raises(ValueError, match=r"DATASETS.CLASSES has car twice"):
        register_coco_datasets(cfg)


def test_a_target_may_be_a_folder_or_a_json_of_images_alone(pair, streets, tmp_path):
    content = json.loads((tmp_path / "fog.json").read_text())
    (tmp_path / "bare.json").write_text(json.dumps({"images": content["images"]}))
    entries = [
        pair[0],
        ("bare", str(tmp_path / "bare.json"), str(streets)),
        ("folder", "", str(streets / "leftImg8bit")),
    ]
    for target, count in (("bare", 8), ("folder", 12)):
        cfg = coco_cfg(entries, "DATASETS.TRAIN", "('clear',)", "DATASETS.TARGET", f"('{target}',)")
        register_coco_datasets(cfg)
        assert classes_of("clear") == CITYSCAPES_CLASSES
        assert len(load_dicts(target, labels=False)) == count
        (batch,) = take(build_paired_train_loader(cfg), 1)
        assert [image.get("domain") for image in batch] == [None, None, "target", "target"]
    with pytest.raises(ValueError, match=r"folder is a folder of images without labels: .* DATASETS.TARGET alone"):
        load_dicts("folder")
    with pytest.raises(ValueError, match=r"bare.json is not in COCO's format: it has no list 'annotations'"):
        load_dicts("bare")


def test_images_outside_of_the_folder_are_refused_by_default(pair, streets, tmp_path):
    entries = [(pair[0][0], pair[0][1], str(streets / "gtFine"))]
    register_coco_datasets(coco_cfg(entries))
    with pytest.raises(ValueError, match=r"clear.json: images\[0\]: the image .*DATASETS.OUTSIDE_ROOT True"):
        load_dicts("clear")
    register_coco_datasets(coco_cfg(entries, "DATASETS.OUTSIDE_ROOT", "True"))
    assert len(load_dicts("clear")) == 8


def test_files_of_other_data_sets_are_looked_at_before_the_first_step(streets, tmp_path):
    paths = sorted(map(str, streets.glob("leftImg8bit/train/*/*.png")))
    box = {"bbox": [0, 0, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    dicts = [{"file_name": path, "image_id": path, "height": 96, "width": 192, "annotations": [box]} for path in paths]
    custom("theirs", dicts, thing_classes=["car"])
    cfg = make_cfg("DATASETS.TRAIN", "('theirs',)", "DATASETS.TARGET", "()")
    build_paired_train_loader(cfg)
    dicts[3]["width"] = 96
    with pytest.raises(ValueError, match=r"is of \(96, 192\) pixels .*, theirs lists it with \(96, 96\)"):
        build_paired_train_loader(cfg)
    dicts[3].update(width=192, file_name=str(tmp_path / "none.png"))
    with pytest.raises(FileNotFoundError, match=r"none.png does not exist; theirs lists it"):
        build_paired_train_loader(cfg)


@pytest.mark.parametrize("entry", ["('name', 'a.json')", "('name', 'a.json', 3)", "'name'"])
def test_an_entry_that_is_not_name_json_and_folder_is_shown(entry):
    with pytest.raises(ValueError, match=r"DATASETS.COCO takes \(name, JSON file, image folder\)"):
        register_coco_datasets(make_cfg("DATASETS.COCO", f"({entry},)"))


def test_a_coco_name_that_is_taken_is_refused(pair):
    with pytest.raises(ValueError, match=r"another data set named coco_2017_val"):
        register_coco_datasets(coco_cfg([("coco_2017_val", *pair[0][1:])]))
    with pytest.raises(ValueError, match=r"another data set named cityscapes_val"):
        register_coco_datasets(coco_cfg([("cityscapes_val", *pair[0][1:])]))
    with pytest.raises(ValueError, match=r"another data set named clear"):
        register_coco_datasets(coco_cfg([pair[0], ("clear", *pair[1][1:])]))


# Order


@pytest.mark.parametrize(("length", "ranks", "batch_size"), [(8, 1, 3), (8, 2, 2), (7, 2, 3), (5, 3, 1), (3, 4, 2)])
def test_ranks_share_every_epoch(length, ranks, batch_size):
    epochs = 12
    streams = []
    for rank in range(ranks):
        batches = index_batches([0] * length, batch_size, seed=1, rank=rank, ranks=ranks)
        samples = [sample for batch in islice(batches, epochs * length // ranks) for sample in batch]
        positions = [position for position, _ in samples]
        assert positions == sorted(set(positions))
        streams.append(samples)
    together = sorted(sample for samples in streams for sample in samples)
    whole = min(samples[-1][0] for samples in streams) // length  # epochs that every rank has finished
    assert whole >= 3
    positions = [position for position, _ in together[: whole * length]]
    assert positions == list(range(whole * length))
    orders = [tuple(index for _, index in together[k * length : (k + 1) * length]) for k in range(whole)]
    assert all(sorted(order) == list(range(length)) for order in orders)
    assert len(set(orders)) > 1


def test_the_order_depends_on_the_seed_alone():
    def order(seed):
        return list(islice(index_batches([0] * 20, 4, seed), 10))

    torch.manual_seed(0)
    first = order(3)
    torch.manual_seed(1)
    assert order(3) == first
    assert order(4) != first


def test_a_batch_is_of_one_group_and_nothing_is_lost():
    groups = [0, 1, 1, 0, 0, 1, 0, 2]
    batches = list(islice(index_batches(groups, 2, seed=0), 200))
    assert all(len({groups[index] for _, index in batch}) == 1 for batch in batches)
    positions = sorted(position for batch in batches for position, _ in batch)
    assert len(set(positions)) == len(positions)
    missing = set(range(positions[-1])) - set(positions)
    assert len(missing) <= len(set(groups))  # what waits for its batch to be full


# Images


@pytest.mark.parametrize("is_train", [True, False])
def test_an_ordinary_image_is_mapped_as_by_detectron2(root, streets, is_train):
    cfg = make_cfg("INPUT.CROP.ENABLED", "True", "MODEL.MASK_ON", "False")
    for image in load_dicts(SOURCE):
        segments = {"sem_seg_file_name": str(next(streets.glob("disparity/val/*/*.png")))} if is_train else {}
        found = []
        for mapper in (DatasetMapper(cfg, is_train), ImageMapper(cfg, is_train)):
            np.random.seed(3)
            random.seed(3)
            found.append(content(mapper({**image, **segments})))
        assert found[0] == found[1]


@pytest.mark.parametrize("form", ["RGB", "BGR"])
def test_an_image_of_any_kind_is_read_as_by_the_other_engines(tmp_path, form):
    """Sixteen bits, opacity, and an orientation, of which the size in the dictionary is the one after turning."""
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.linspace(0, 65535, 32 * 48).astype(np.uint16).reshape(32, 48)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.new("RGBA", (48, 32), (200, 0, 0, 100)).save(tmp_path / "clear.png")
    Image.fromarray((ramp >> 8).astype(np.uint8)).convert("RGB").save(tmp_path / "turned.png", exif=exif)
    mapper = ImageMapper(False, augmentations=[], image_format=form)
    for name, (height, width) in {"deep": (32, 48), "clear": (32, 48), "turned": (48, 32)}.items():
        path = str(tmp_path / f"{name}.png")
        found = mapper({"file_name": path, "height": height, "width": width})["image"].numpy()
        expected = np.asarray(open_image(path)).transpose(2, 0, 1)
        assert (found == (expected if form == "RGB" else expected[::-1])).all()
        with pytest.raises(ValueError, match="Mismatched image shape"):
            mapper({"file_name": path, "height": width, "width": height})


# Batches


def test_a_batch_is_source_then_target_without_a_label(root):
    cfg = make_cfg("SOLVER.IMS_PER_BATCH_TARGET", "3")
    source, target = (load_dicts(name) for name in (SOURCE, TARGET))
    assert all(image["annotations"] for image in target)
    for batch in take(build_paired_train_loader(cfg), 6):
        assert [image.get("domain") for image in batch] == [None, None, "target", "target", "target"]
        for image in batch[:2]:
            assert image["file_name"] in {item["file_name"] for item in source}
            assert len(image["instances"]) > 0
        for image in batch[2:]:
            assert image["file_name"] in {item["file_name"] for item in target}
            assert image.keys() == {"file_name", "image_id", "height", "width", "domain", "image"}


def test_no_label_of_the_target_reaches_a_mapper():
    seen = []

    def look(image):
        seen.append(image)
        return image

    annotations = [{"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}]
    labels = {"annotations": annotations, "sem_seg_file_name": "s", "pan_seg_file_name": "p", "segments_info": [1]}
    target = [one("t.png", weather="rain", **labels)]
    loader = PairedLoader([one(**labels)], target, look, look, source_batch=1, seed=0)
    ((source, found),) = take(loader, 1)
    assert source.keys() == {"file_name", "image_id", "height", "width", *labels}
    assert found == {
        **{"file_name": "t.png", "image_id": 7, "height": 30, "width": 40},
        **{"weather": "rain", "domain": "target"},
    }
    assert seen == [source, found]
    assert target[0].keys() > labels.keys()  # those of the caller are not touched
    TargetMapper(look)(target[0])
    assert seen[-1] == found


def test_source_alone(root):
    loader = build_paired_train_loader(make_cfg("DATASETS.TARGET", "()"))
    paired = build_paired_train_loader(make_cfg())
    for alone, both in zip(take(loader, 3), take(paired, 3), strict=True):
        assert len(alone) == 2
        assert content(alone) == content(both[:2])


@pytest.mark.parametrize("teacher", [False, True])
def test_batches_are_the_same_for_any_number_of_workers(root, teacher):
    def batches(workers):
        cfg = make_cfg("DATALOADER.NUM_WORKERS", str(workers), "TEACHER.ENABLED", str(teacher))
        return content(take(build_paired_train_loader(cfg), 5))

    expected = batches(0)
    assert batches(1) == expected
    assert batches(2) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_goes_on_bit_for_bit(root, workers):
    cfg = make_cfg("DATALOADER.NUM_WORKERS", str(workers), "TEACHER.ENABLED", "True")
    whole = content(take(build_paired_train_loader(cfg), 9))
    for start in (1, 4, 7):
        random.seed(start)  # what else happened before does not matter
        np.random.seed(start)
        torch.manual_seed(start)
        assert content(take(build_paired_train_loader(cfg), 2, start)) == whole[start : start + 2]


def test_starting_far_ahead_reads_no_image():
    read = []
    loader = PairedLoader(
        [one(f"{k}.png") for k in range(7)], [], lambda d: read.append(d) or d, source_batch=3, seed=0
    )
    take(loader, 1, start=5000)
    assert len(read) == 3


def test_fewer_images_than_a_batch_takes_are_told(caplog):
    images = [one(f"{k}.png") for k in range(2)]
    PairedLoader(images, images, dict, dict, source_batch=2, target_batch=3, seed=0)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "SOLVER.IMS_PER_BATCH_TARGET=3 is more than the 2 samples of the target"
    ]


def test_random_numbers_of_the_training_are_left_alone(root):
    def drawn(loader):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if loader is not None:
            take(loader, 3)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert drawn(build_paired_train_loader(make_cfg())) == drawn(None)


def test_augmentation_differs_by_image_epoch_and_domain():
    draws = []

    def draw(image):
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
        return image

    images = [one(f"{k}.png") for k in range(3)]
    loader = PairedLoader(images, images, draw, draw, source_batch=3, seed=0)
    take(loader, 4)
    assert all(len(set(column)) == len(draws) == 24 for column in zip(*draws, strict=True))


def test_source_and_target_come_in_orders_of_their_own(root):
    cfg = make_cfg("DATASETS.TARGET", f"('{SOURCE}',)")
    batches = take(build_paired_train_loader(cfg), 8)
    source, target = (
        [image["image_id"] for batch in batches for image in batch[part]] for part in (slice(2), slice(2, 4))
    )
    assert set(source) == set(target)
    assert source != target
    other = take(build_paired_train_loader(make_cfg("DATASETS.TARGET", f"('{SOURCE}',)", "SEED", "6")), 8)
    assert [image["image_id"] for batch in other for image in batch[:2]] != source


def test_source_is_filtered_and_target_is_not(streets):
    dicts = [
        {**record, "annotations": [{**a, "bbox_mode": BoxMode.XYWH_ABS} for a in record["annotations"] if k % 2]}
        for k, record in enumerate(load_cityscapes(streets, "train").records)
    ]
    custom("half", dicts, thing_classes=list(CITYSCAPES_CLASSES))
    names = ["DATASETS.TRAIN", "('half',)", "DATASETS.TARGET", "('half',)"]

    def files(*overrides):
        batches = take(build_paired_train_loader(make_cfg(*names, *overrides)), 8)
        images = [image for batch in batches for image in batch]
        return (
            {image["file_name"] for image in images if "domain" not in image},
            {image["file_name"] for image in images if "domain" in image},
        )

    everything = {image["file_name"] for image in dicts}
    with_boxes = {image["file_name"] for image in dicts if image["annotations"]}
    assert files() == (with_boxes, everything)
    assert files("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False") == (everything, everything)


def test_wide_and_tall_images_are_kept_apart(tmp_path):
    images = []
    for k in range(9):
        width, height = (40, 24) if k % 3 else (24, 40)
        path = tmp_path / f"{k}.png"
        Image.new("RGB", (width, height)).save(path)
        images.append(one(str(path), image_id=k, width=width, height=height))
    mapper = DatasetMapper(True, augmentations=[transforms.RandomFlip()], image_format="BGR")

    def kinds(grouped):
        loader = PairedLoader(
            images, images, mapper, source_batch=3, target_batch=2, seed=0, group_by_orientation=grouped
        )
        parts = [part for batch in take(loader, 12) for part in (batch[:3], batch[3:])]
        return {len({image["image"].shape for image in part}) for part in parts}

    assert kinds(True) == {1}
    assert kinds(False) == {1, 2}
    del images[4]["width"]
    with pytest.raises(ValueError, match=r"no 'width' .*ASPECT_RATIO_GROUPING"):
        kinds(True)


def test_the_strong_view_is_of_the_weak_one(root):
    plain = take(build_paired_train_loader(make_cfg()), 4)
    taught = take(build_paired_train_loader(make_cfg("TEACHER.ENABLED", "True")), 4)
    changed = 0
    for before, after in zip(plain, taught, strict=True):
        assert content(before[:2]) == content(after[:2])
        for single, views in zip(before[2:], after[2:], strict=True):
            assert views.keys() == single.keys() | {"image_weak"}
            assert torch.equal(views["image_weak"], single["image"])
            assert views["image"].shape == views["image_weak"].shape
            assert views["image"].dtype == views["image_weak"].dtype == torch.uint8
            changed += not torch.equal(views["image"], views["image_weak"])
    assert changed > 4


def test_the_strong_view_moves_nothing():
    pixels = torch.randint(0, 256, (3, 6, 8), dtype=torch.uint8)
    mapped = TargetMapper(lambda image: {**image, "image": pixels}, lambda image: 255 - image[:, :, ::-1])(one())
    assert torch.equal(mapped["image"], 255 - pixels.flip(0))
    assert torch.equal(mapped["image_weak"], pixels)


def test_pieces_work_in_a_lazy_config(root):
    mapper = LazyCall(DatasetMapper)(
        is_train=True, augmentations=[LazyCall(transforms.ResizeShortestEdge)(short_edge_length=48)], image_format="BGR"
    )
    lazy = LazyCall(PairedLoader)(
        source=LazyCall(get_detection_dataset_dicts)(names=SOURCE),
        target=LazyCall(load_dicts)(name=TARGET, labels=False),
        source_mapper=mapper,
        target_mapper=LazyCall(TargetMapper)(weak=mapper),
        source_batch=2,
        seed=0,
    )
    ((*_, target),) = take(instantiate(lazy), 1)
    assert target["domain"] == "target"
    assert target["image"].shape == (3, 48, 96)


# Mistakes


@pytest.mark.parametrize(
    ("kind", "left", "workers"), [(FileNotFoundError, None, 0), (ValueError, 999, 0), (ValueError, 999, 1)]
)
def test_an_image_that_cannot_be_read_is_named(root, streets, kind, left, workers):
    (root / "mini_cityscapes").unlink()
    shutil.copytree(streets, root / "mini_cityscapes")
    loader = build_paired_train_loader(make_cfg("DATALOADER.NUM_WORKERS", str(workers)))
    folder = root / "mini_cityscapes" / "leftImg8bit_foggy" / "train" / "corwen"
    path = sorted(folder.glob("*_0.02.png"))[0]
    content = path.read_bytes()
    path.unlink()
    if left:
        path.write_bytes(content[:left])
    with pytest.raises(kind, match=rf"{path} cannot be used for training"):
        take(loader, 4)


def test_a_mapper_that_fails_names_the_image():
    def fail(image):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match=r"a.png cannot be used for training: no such thing"):
        take(PairedLoader([one()], [], fail, source_batch=1, seed=0), 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN names no data set"),
        (["DATASETS.TRAIN", "('mini_cityscapes_sourc_train',)"], "did you mean mini_cityscapes_source_train"),
        (["DATASETS.TARGET", "('foggy',)"], "no data set is registered as 'foggy'"),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH"),
        (["SOLVER.IMS_PER_BATCH_TARGET", "-2"], "SOLVER.IMS_PER_BATCH_TARGET"),
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], "DATALOADER.SAMPLER_TRAIN"),
        (["MODEL.MASK_ON", "True"], "MODEL.MASK_ON needs masks"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(root, overrides, message):
    with pytest.raises(ValueError, match="(?s)" + message):
        build_paired_train_loader(make_cfg(*overrides))


def test_a_source_without_boxes_is_refused():
    custom("bare", [one()], thing_classes=["dog"])
    with pytest.raises(ValueError, match=r"DATASETS.TRAIN: No valid data found in bare"):
        build_paired_train_loader(make_cfg("DATASETS.TRAIN", "('bare',)", "DATASETS.TARGET", "()"))
    with pytest.raises(ValueError, match="no source image"):
        PairedLoader([], [one()], dict, source_batch=1, seed=0)


def test_a_config_without_the_nodes_is_told_so():
    with pytest.raises(ValueError, match=r"call add_adaptation_config\(cfg\)"):
        build_paired_train_loader(get_cfg())


def test_masks_are_taken_where_there_are_some(streets):
    def with_mask(annotation):
        x, y, w, h = annotation["bbox"]
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        return {**annotation, "bbox_mode": BoxMode.XYWH_ABS, "segmentation": [corners]}

    records = load_cityscapes(streets, "train").records
    dicts = [{**r, "annotations": [with_mask(a) for a in r["annotations"] if not a["iscrowd"]]} for r in records]
    custom("masks", dicts, thing_classes=list(CITYSCAPES_CLASSES))
    cfg = make_cfg("DATASETS.TRAIN", "('masks',)", "DATASETS.TARGET", "()", "MODEL.MASK_ON", "True")
    assert all("gt_masks" in image["instances"].get_fields() for image in take(build_paired_train_loader(cfg), 1)[0])


def test_the_same_data_as_source_and_target_are_a_warning(root, caplog):
    with caplog.at_level(logging.WARNING):
        build_paired_train_loader(make_cfg())
        assert not caplog.records
        build_paired_train_loader(make_cfg("DATASETS.TARGET", f"('{SOURCE}', '{TARGET}')"))
    assert f"{SOURCE}: in DATASETS.TRAIN and in DATASETS.TARGET" in caplog.text


# Several processes


def work(rank):
    np.random.seed(rank)
    register_datasets()
    found = {}
    for seed in (-1, 5):
        loader = build_paired_train_loader(make_cfg("SEED", str(seed), "SOLVER.IMS_PER_BATCH_TARGET", "4"))
        found[seed] = [[image["image_id"] for image in batch] for batch in take(loader, 4)]
    try:
        build_paired_train_loader(make_cfg("SOLVER.IMS_PER_BATCH", "3"))
    except ValueError as error:
        found["refusal"] = str(error)
    return found


def test_processes_share_the_batch_and_the_seed(ranks, root):
    results = ranks(work)
    for seed in (-1, 5):
        assert all(len(batch) == 1 + 2 for found in results for batch in found[seed])
        for part, names in ((slice(1), load_dicts(SOURCE)), (slice(1, 3), load_dicts(TARGET))):
            everything = sorted(image["image_id"] for image in names)
            epochs = 8 // len(everything) if part == slice(1) else 16 // len(everything)
            streams = [[name for batch in found[seed] for name in batch[part]] for found in results]
            together = [name for pair in zip(*streams, strict=True) for name in pair]
            for epoch in range(epochs):
                assert sorted(together[epoch * len(everything) : (epoch + 1) * len(everything)]) == everything
    for found in results:
        assert "a batch of 3 source images cannot be shared equally by 2 process(es)" in found["refusal"]
        assert "SOLVER.IMS_PER_BATCH" in found["refusal"]
