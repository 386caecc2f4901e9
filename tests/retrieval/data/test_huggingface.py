"""Data sets as Hugging Face's library saves them."""

import io
import json
import pickle
import sys
import types

import datasets
import pytest
from PIL import Image

from gh_downstream.data.images import open_image, unreadable_images
from gh_downstream.retrieval.data import DataConfig, RetrievalDataset, load_dataset

TEXT = datasets.Value("string")


@pytest.fixture(autouse=True)
def no_progress():
    datasets.disable_progress_bars()


def png(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), (shade, 0, 0)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(columns, **features):
    kinds = {"image": datasets.Image(), "caption": TEXT} | features
    return datasets.Dataset.from_dict(columns, features=datasets.Features({name: kinds[name] for name in columns}))


def saved(path, data):
    data.save_to_disk(str(path))
    return path


def load(path, **options):
    return load_dataset(DataConfig(str(path), **options))


def shades(first, last):
    numbers = range(first, last)
    return table({"image": [png(n) for n in numbers], "caption": [f"shade {n}" for n in numbers]})


def test_encoded_images_are_read_row_by_row(tmp_path):
    path = saved(tmp_path / "d", shades(0, 7).shuffle(seed=1).with_format("pandas"))
    dataset = load(path)
    assert dataset.texts == datasets.load_from_disk(str(path)).with_format(None)["caption"][:]
    assert dataset.image_of_text == list(range(7))
    for image, text in zip(dataset.images, dataset.texts, strict=True):
        found = open_image(pickle.loads(pickle.dumps(image)))
        assert f"shade {found.getpixel((0, 0))[0]}" == text
    assert str(dataset.images[3]) == f"{path}, row 3"
    assert len({*dataset.images, *load(path).images}) == 7


def test_an_encoded_image_may_be_of_any_kind_and_is_never_decoded_early(tmp_path):
    images = [Image.new("RGB", (5, 3), (1, 0, 0)), Image.new("L", (4, 4)), {"bytes": b"no image", "path": None}, None]
    path = saved(tmp_path / "d", table({"image": images, "caption": ["a", "b", "c", "d"]}))
    dataset = load(path)
    assert [open_image(image).size for image in dataset.images[:2]] == [(5, 3), (4, 4)]
    damaged, absent = unreadable_images(dataset.images)
    assert damaged.startswith(f"{path}, row 2 is not a readable image")
    assert absent == f"{path}, row 3 is not a readable image (the row has none)"


def test_captions_may_be_lists_under_any_name(tmp_path):
    data = table(
        {"photo": [png(1), png(2)], "said": [["one", " two "], ["three"]]},
        photo=datasets.Image(),
        said=datasets.Sequence(TEXT),
    )
    dataset = load(saved(tmp_path / "d", data.with_format("numpy")), image_column="photo", text_column="said")
    assert (dataset.texts, dataset.image_of_text) == (["one", "two", "three"], [0, 0, 1])


def test_files_are_relative_to_the_folder_or_to_the_one_given(tmp_path):
    columns = {"image": ["a.png", "/photos/b.png", "a.png"], "caption": ["one", "two", "three"]}
    path = saved(tmp_path / "d", table(columns, image=TEXT))
    dataset = load(path)
    assert dataset.images == [str(path / "a.png"), "/photos/b.png"]
    assert (dataset.texts, dataset.image_of_text) == (["one", "three", "two"], [0, 0, 1])
    assert load(path, images="/elsewhere").images == ["/elsewhere/a.png", "/photos/b.png"]


def test_images_that_were_files_are_saved_with_the_data(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(png(9)["bytes"])
    data = table({"image": [str(file)], "caption": ["one"]}, image=TEXT).cast_column("image", datasets.Image())
    path = saved(tmp_path / "d", data)
    file.unlink()
    assert open_image(load(path).images[0]).getpixel((0, 0)) == (9, 0, 0)


def test_a_split_is_read_alone_or_joined(tmp_path):
    data = datasets.DatasetDict(train=shades(0, 3), test=shades(3, 5))
    path = saved(tmp_path / "d", data)
    test = load(path, split="test")
    assert test.texts == ["shade 3", "shade 4"]
    assert open_image(test.images[1]).getpixel((0, 0)) == (4, 0, 0)
    assert str(test.images[1]) == f"{path / 'test'}, row 1"
    assert load(path, split="train+test").texts == [f"shade {n}" for n in range(5)]
    assert load(path / "train").texts == [f"shade {n}" for n in range(3)]
    for split in (None, "validation", "train+validation"):
        with pytest.raises(ValueError, match=rf"{path}: split={'.*'} .* train \(3 rows\), test \(2 rows\)"):
            load(path, split=split)
    with pytest.raises(ValueError, match=r"train has no splits, so that split=train is not in it; leave it out"):
        load(path / "train", split="train")


def test_one_side_needs_only_its_column(tmp_path):
    images = saved(tmp_path / "images", table({"image": [png(1), png(2)]}))
    texts = saved(tmp_path / "texts", table({"caption": ["one", "one"]}))
    found = load(images, side="images")
    assert [image.row for image in found.images] == [0, 1]
    assert (found.texts, found.image_of_text) == ([], [])
    assert load(texts, side="texts") == RetrievalDataset(str(texts), [], ["one", "one"], [])
    for path, missing, there in ((images, "caption", "image"), (texts, "image", "caption")):
        with pytest.raises(ValueError, match=f"no column '{missing}'; the columns are '{there}'; .* text_column"):
            load(path)


@pytest.mark.parametrize(
    ("columns", "features", "message"),
    [
        (
            {"image": [[png(1)]], "caption": ["a"]},
            {"image": datasets.Sequence(datasets.Image())},
            r"'image' is .*Image",
        ),
        ({"image": [b"x"], "caption": ["a"]}, {"image": datasets.Value("binary")}, r"neither images nor their files"),
        ({"image": [" "], "caption": ["a"]}, {"image": TEXT}, r"row 0: a text was expected in 'image'"),
        ({"image": [png(1)] * 2, "caption": ["a", None]}, {}, r"row 1: a text was expected in 'caption', got None"),
        ({"image": [png(1)], "caption": [[]]}, {"caption": datasets.Sequence(TEXT)}, r"row 0: the list 'caption' is"),
        ({"image": [png(1)], "caption": [3]}, {"caption": datasets.Value("int64")}, r"a text was expected .* got 3"),
        ({"image": [], "caption": []}, {}, r"is not what save_to_disk"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_place(tmp_path, columns, features, message):
    path = saved(tmp_path / "d", table(columns, **features))
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_another_folder_or_a_damaged_one_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"is not what save_to_disk of datasets writes"):
        load(tmp_path, format="hf")
    path = saved(tmp_path / "d", shades(0, 2))
    (path / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"d is not what save_to_disk of datasets writes"):
        load(path)
    saved(tmp_path / "e", shades(0, 2))
    state = json.loads((tmp_path / "e" / "state.json").read_text())
    (tmp_path / "e" / state["_data_files"][0]["filename"]).write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"e is not what save_to_disk of datasets writes"):
        load(tmp_path / "e")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load(tmp_path / "nowhere", format="hf")


@pytest.mark.parametrize("found", [None, types.ModuleType("datasets")], ids=["nothing", "a folder of that name"])
def test_without_the_library_one_line_says_how_to_install_it(tmp_path, monkeypatch, found):
    path = saved(tmp_path / "d", shades(0, 2))
    monkeypatch.setitem(sys.modules, "datasets", found)
    with pytest.raises(ImportError, match=r"^format=hf needs the library datasets: pip install datasets$"):
        load(path)


# ---- parquet


def parquet(path, data):
    data.to_parquet(str(path))
    return path


def test_a_file_of_parquet_names_images_or_holds_them(tmp_path):
    rows = {"image": ["a.png", "b.png"], "caption": [["one", "two"], ["three"]], "split": ["train", "val"]}
    path = parquet(tmp_path / "t.parquet", datasets.Dataset.from_dict(rows))
    dataset = load(path, images="/photos")
    assert (dataset.images, dataset.texts) == (["/photos/a.png", "/photos/b.png"], ["one", "two", "three"])
    assert dataset.image_of_text == [0, 0, 1]
    assert load(path, split="val").texts == ["three"]
    assert load(path, side="texts").images == []
    with pytest.raises(ValueError, match=r"split=test is not in it; give one of train \(1 rows\), val \(1 rows\)"):
        load(path, split="test")
    for name, shades in {"featured": table({"image": [png(7), png(8)], "caption": ["a", "b"]}), "plain": None}.items():
        if shades is None:  # as other libraries write it
            shades = datasets.Dataset.from_dict({"image": [png(7), png(8)], "caption": ["a", "b"]})
        stored = load(parquet(tmp_path / f"{name}.parquet", shades))
        assert [open_image(pickle.loads(pickle.dumps(x))).getpixel((0, 0))[0] for x in stored.images] == [7, 8]
        assert stored.images[1].file == str(tmp_path / f"{name}.parquet")


def test_a_list_in_a_cell_of_a_saved_table_is_several_captions(tmp_path):
    path = parquet(tmp_path / "t.parquet", datasets.Dataset.from_dict({"image": ["a"], "caption": ["['one', 'two']"]}))
    assert load(path).texts == ["one", "two"]


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(ValueError, match=r"t.parquet is not a readable file of parquet \(.+\)$"):
        load(tmp_path / "t.parquet")


def test_a_saved_table_may_have_its_splits_in_a_column(tmp_path):
    data = table({"image": [png(1), png(2)], "caption": ["a", "b"], "part": ["x", "y"]}, part=TEXT)
    path = saved(tmp_path / "d", data)
    found = load(path, split="y", split_column="part")
    assert found.texts == ["b"]
    assert open_image(found.images[0]).getpixel((0, 0)) == (2, 0, 0)
