import os

import numpy as np
import pytest
from PIL import Image

from gh_downstream.classification.data import DataConfig, load_dataset
from gh_downstream.classification.data.benchmarks import BENCHMARKS


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def load(format, path, **options):
    return load_dataset(DataConfig(format, str(path), **options))


def listed(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


# ---- folders


def test_class_folders_are_sorted_and_hidden_things_and_other_files_left_out(tmp_path):
    touch(
        tmp_path,
        "mug/b.jpg",
        "mug/deeper/a.PNG",
        "bike/c.jpeg",
        "bike/.hidden.jpg",
        "bike/notes.txt",
        ".git/x.jpg",
        "x.jpg",
    )
    dataset = load("folder", tmp_path)
    assert dataset.classes == ("bike", "mug")
    assert dataset.images == [str(tmp_path / name) for name in ("bike/c.jpeg", "mug/b.jpg", "mug/deeper/a.PNG")]
    assert dataset.labels == (0, 1, 1)
    assert dataset.file_name(2) == str(tmp_path / "mug/deeper/a.PNG")


def test_an_image_is_read_as_rgb_and_a_damaged_one_is_named(tmp_path):
    touch(tmp_path, "bike/a.png", "mug/b.png")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "bike/a.png")
    dataset = load("folder", tmp_path)
    assert dataset.image(0).mode == "RGB"
    assert np.array_equal(np.asarray(dataset.image(0)), np.repeat(pixels[..., None], 3, axis=-1))
    with pytest.raises(ValueError, match=r"mug/b\.png is not a readable image"):
        dataset.image(1)


@pytest.mark.parametrize(
    "files", [("a.jpg", "b.ppm"), ("all/a.jpg", "all/b.jpg"), ("mug/a.jpg", "b.jpg"), ("a/a/a.jpg",)]
)
def test_a_target_is_a_folder_of_images_wherever_they_lie(tmp_path, files):
    touch(tmp_path, *files)
    (tmp_path / "empty").mkdir()
    dataset = load_dataset(DataConfig("folder", str(tmp_path)), labels=False)
    assert dataset.labels is None
    assert sorted(dataset.images) == sorted(str(tmp_path / name) for name in files)


def test_a_target_without_an_image_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"has no images \("):
        load_dataset(DataConfig("folder", str(tmp_path)), labels=False)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.jpg"], "has no folders; give the folder that holds the folders of the classes"),
        (["images/a.jpg"], "has only the folder images; give the folder"),
        (["bike/a.jpg", "mug/notes.txt"], r"mug has no images .*format=list"),
    ],
)
def test_a_folder_that_holds_no_classes_is_an_error(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(ValueError, match=message) as error:
        load("folder", tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_file_is_not_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"l\.txt is not a folder"):
        load("folder", listed(tmp_path / "l.txt"))
    with pytest.raises(ValueError, match="is a folder, format=list reads a text file"):
        load("list", tmp_path)


# ---- lists


def test_files_have_no_split():
    for given in (None, "train"):  # what a config.yaml of an older training says
        assert DataConfig("folder", "x", split=given).split is None
    assert DataConfig("mnist", "x").split == DataConfig("embedded", domain="source").split == "train"


def test_a_list_is_split_at_the_last_space(tmp_path):
    touch(tmp_path, "Real World/a b.jpg", "bike/c.jpg")
    path = listed(tmp_path / "l.txt", "Real World/a b.jpg 1", "", f"{tmp_path}/bike/c.jpg 0")
    dataset = load("list", path)
    assert dataset.images == [str(tmp_path / "Real World/a b.jpg"), str(tmp_path / "bike/c.jpg")]
    assert dataset.labels == (1, 0)
    assert dataset.classes == ("bike", "Real World")


def test_relative_paths_start_from_root_or_from_the_list(tmp_path):
    touch(tmp_path, "photos/bike/a.jpg", "photos/mug/b.jpg")
    (tmp_path / "lists").mkdir()
    path = listed(tmp_path / "lists/l.txt", "./bike/a.jpg 0", "./mug/b.jpg 1")
    dataset = load("list", path, root=str(tmp_path / "photos"))
    assert dataset.images == [str(tmp_path / "photos/bike/a.jpg"), str(tmp_path / "photos/mug/b.jpg")]
    with pytest.raises(FileNotFoundError, match=r"bike/a\.jpg does not exist \(2 of 2 images\).*root=FOLDER") as error:
        load("list", path)
    assert str(path) in str(error.value)
    (tmp_path / "photos/mug/b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"mug/b\.jpg does not exist \(1 of 2 images\)"):
        load("list", path, root=str(tmp_path / "photos"))


@pytest.mark.parametrize(
    ("lines", "classes"),
    [
        (["bike/a.jpg 0", "mug/b.jpg 2"], ("bike", "1", "mug")),
        (["bike/a.jpg 0", "mug/b.jpg 0", "pen/c.jpg 1"], ("0", "1")),
        (["all/a.jpg 0", "all/b.jpg 1"], ("0", "1")),
    ],
)
def test_classes_are_named_by_the_folders_where_each_has_its_own(tmp_path, lines, classes):
    touch(tmp_path, *(line.split()[0] for line in lines))
    assert load("list", listed(tmp_path / "l.txt", *lines)).classes == classes


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg mug", "a.jpg -1", "a.jpg 1.5", "7"])
def test_a_line_without_a_label_is_an_error_that_names_it(tmp_path, line):
    touch(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match=r"l\.txt, line 2 is '" + line):
        load("list", listed(tmp_path / "l.txt", "a.jpg 0", line))


def test_an_empty_list_and_one_that_is_not_utf8_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"l\.txt lists no images"):
        load("list", listed(tmp_path / "l.txt", ""))
    (tmp_path / "l.txt").write_bytes(b"caf\xe9.jpg 0\n")
    with pytest.raises(ValueError, match=r"l\.txt is not UTF-8"):
        load("list", tmp_path / "l.txt")


# ---- benchmarks


def webcam(folder, without=()):
    """As many images as Office-31's webcam domain, for each class the same number up to one."""
    classes = [name for name in BENCHMARKS["office31/webcam"].classes if name not in without]
    names = [f"{classes[k % len(classes)]}/{k}.jpg" for k in range(795)]
    touch(folder, *names)
    return names, classes


def test_the_numbers_of_classes_that_the_papers_give():
    sizes = {name: (len(set(benchmark.classes)), benchmark.images) for name, benchmark in BENCHMARKS.items()}
    assert sizes["office31/amazon"] == (31, 2817)
    assert sizes["office-home/Real World"] == (65, 4357)
    assert sizes["visda-2017/train"] == (12, 152397)
    domainnet = {name: size for name, size in sizes.items() if name.startswith("domainnet/")}
    assert {classes for classes, _ in domainnet.values()} == {345}
    assert sum(images for _, images in domainnet.values()) == 586575
    assert all(set(benchmark.without_images) <= set(benchmark.classes) for benchmark in BENCHMARKS.values())


@pytest.mark.parametrize("format", ["folder", "list"])
def test_a_whole_benchmark_is_read(tmp_path, format):
    names, classes = webcam(tmp_path)
    path = listed(tmp_path / "l.txt", *(f"{name} {classes.index(name.split('/')[0])}" for name in names))
    dataset = load(format, tmp_path if format == "folder" else path, benchmark="office31/webcam")
    assert (len(dataset), dataset.classes) == (795, BENCHMARKS["office31/webcam"].classes)


@pytest.mark.parametrize("format", ["folder", "list"])
def test_a_benchmark_with_a_class_too_few_says_which(tmp_path, format):
    names, _ = webcam(tmp_path, without=["mug"])
    labels = BENCHMARKS["office31/webcam"].classes
    path = listed(tmp_path / "l.txt", *(f"{name} {labels.index(name.split('/')[0])}" for name in names))
    path = tmp_path if format == "folder" else path
    message = "has 30 classes with 795 images, but office31/webcam has 31 with 795; missing: mug$"
    with pytest.raises(ValueError, match=message) as error:
        load(format, path, benchmark="office31/webcam")
    assert str(path) in str(error.value)


def test_a_benchmark_with_images_too_few_or_a_label_too_high_is_an_error(tmp_path):
    names, classes = webcam(tmp_path)
    lines = [f"{name} {classes.index(name.split('/')[0])}" for name in names]
    with pytest.raises(ValueError, match=r"31 classes with 794 images, but office31/webcam has 31 with 795$"):
        load("list", listed(tmp_path / "l.txt", *lines[1:]), benchmark="office31/webcam")
    with pytest.raises(ValueError, match="label 31, but office31/webcam has 31 classes, from 0"):
        load("list", listed(tmp_path / "l.txt", *lines[1:], "mug/1.jpg 31"), benchmark="office31/webcam")


def test_folders_of_another_benchmark_are_named(tmp_path):
    touch(tmp_path, *(f"{name}/a.jpg" for name in ("mug", "plant", "train")))
    with pytest.raises(
        ValueError, match=r"missing: back_pack, bike, .* and 20 more; not in the benchmark: plant, train"
    ):
        load("folder", tmp_path, benchmark="office31/amazon")


# ---- keys


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"format": "jpeg", "path": "a"},
            "format must be one of embedded, mnist, usps, svhn, folder, list; got 'jpeg'",
        ),
        ({"format": "mnist", "path": "a", "split": "val"}, "split must be one of train, test; got 'val'"),
        (
            {"format": "list", "path": "a", "benchmark": "office"},
            "benchmark must be one of office31/amazon, .*'office'",
        ),
        ({"format": "embedded"}, r"needs domain=source\|target; got None"),
        ({"format": "embedded", "domain": "mnist"}, r"needs domain=source\|target; got 'mnist'"),
        ({"format": "usps"}, "format=usps needs path="),
        ({"format": "embedded", "domain": "source", "path": "a"}, "format=embedded has no path; leave path=a out"),
        ({"format": "mnist", "path": "a", "domain": "source"}, "format=mnist has no domain"),
        ({"format": "folder", "path": "a", "root": "b"}, "format=folder has no root"),
        ({"format": "folder", "path": "a", "split": "test"}, "format=folder has no split"),
        ({"format": "svhn", "path": "a", "benchmark": "visda-2017/train"}, "format=svhn has no benchmark"),
    ],
)
def test_keys_that_do_not_fit_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_a_missing_path_is_an_error(tmp_path):
    for format in ("mnist", "folder", "list"):
        with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
            load(format, tmp_path / "nowhere")


@pytest.mark.parametrize("format", ["list", "folder", "mnist", "svhn"])
def test_a_pipe_is_not_waited_for(tmp_path, format):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe is neither a file nor a folder"):
        load(format, tmp_path / "pipe")


def test_a_label_that_no_data_set_has_is_refused_before_its_classes_are_made(tmp_path):
    touch(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match=r"list\.txt, line 2 has the label 99999999999, above"):
        load("list", listed(tmp_path / "list.txt", "a.jpg 0", "a.jpg 99999999999"))
