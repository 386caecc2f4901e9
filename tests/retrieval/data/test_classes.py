"""Folders of classes, their names and the texts for them."""

import pytest
from PIL import Image

from gh_downstream.retrieval.data import DataConfig, load_dataset


@pytest.fixture
def folder(tmp_path):
    for name in ("tabby_cat/a.png", "tabby_cat/more/b.png", "dog/c.jpg", ".hidden/d.png"):
        path = tmp_path / "classes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    (tmp_path / "classes" / "README.txt").write_text("not a class")
    return tmp_path / "classes"


def load(path, **options):
    return load_dataset(DataConfig(str(path), format="classes", **options))


def test_every_image_has_the_name_of_its_class(folder):
    dataset = load(folder)
    assert dataset.images == [str(folder / name) for name in ("dog/c.jpg", "tabby_cat/a.png", "tabby_cat/more/b.png")]
    assert dataset.texts == ["dog", "tabby cat", "tabby cat"]
    assert dataset.image_of_text == [0, 1, 2]
    assert dataset.templates == ["a photo of a {}."]
    less = dataset.without({0})
    assert (less.texts, less.templates) == (["tabby cat"] * 2, dataset.templates)
    assert load_dataset(DataConfig(str(folder))).templates == ()


def test_names_are_those_of_the_file_by_the_order_of_the_folders(folder, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\ufeffHund\n\nKätzchen \n", encoding="utf-8")
    assert load(folder, class_names=str(names)).texts == ["Hund", "Kätzchen", "Kätzchen"]
    names.write_text("Hund\n")
    with pytest.raises(ValueError, match=r"classes has 2 folders of classes, but .*names.txt 1$"):
        load(folder, class_names=str(names))
    with pytest.raises(ValueError, match="but imagenet 1000"):
        load(folder, class_names="imagenet")
    names.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"names.txt is not UTF-8"):
        load(folder, class_names=str(names))
    with pytest.raises(FileNotFoundError, match=r"gone.txt"):
        load(folder, class_names=str(tmp_path / "gone.txt"))


def test_lists_of_open_clip_go_by_name(folder):
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    found = load(folder, templates=["openai", "{}, {}!", "simple"]).templates
    theirs = [*metadata.OPENAI_IMAGENET_TEMPLATES, lambda c: f"{c}, {c}!", *metadata.SIMPLE_IMAGENET_TEMPLATES]
    assert [template.replace("{}", "dog") for template in found] == [fill("dog") for fill in theirs]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"format": "folder", "templates": ["a {}."]}, "templates is for format=classes"),
        ({"class_names": "names.txt"}, "class_names is for format=classes"),
        ({"format": "classes", "templates": []}, "templates is empty"),
        ({"format": "classes", "templates": ["a {}.", "a photo"]}, r"'a photo' has no \{\} for .* openai, simple"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, expected):
    with pytest.raises(ValueError, match=expected):
        DataConfig("x", **options)


def test_folders_that_are_not_of_classes_are_refused(folder, tmp_path):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no images"):
        load(folder)
    with pytest.raises(ValueError, match=r"tabby_cat has fewer than two folders"):
        load(folder / "tabby_cat")
    with pytest.raises(ValueError, match="is a file, not what format=classes reads"):
        load(folder / "README.txt")
    with pytest.raises(ValueError, match="split=test"):
        load(folder, split="test")
