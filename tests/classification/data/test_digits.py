import bz2
import gzip
import math
import struct
import sys

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from gh_downstream.classification.data import DataConfig, load_dataset

LABELS = {"train": [3, 0, 9, 9, 1], "test": [7, 0, 2]}
IDX = {"train": "train", "test": "t10k"}
SIZES = {"mnist": (28, 28), "usps": (16, 16), "svhn": (32, 32, 3)}


def digits(format, split):
    """Random pixels; every value from 0 to 255 comes."""
    shape = (len(LABELS[split]), *SIZES[format])
    return (
        np.random.default_rng(len(split)).permutation(np.arange(np.prod(shape)) % 256).astype(np.uint8).reshape(shape)
    )


def idx(values, magic=None):
    magic = {3: 2051, 1: 2049}[values.ndim] if magic is None else magic
    return struct.pack(f">{1 + values.ndim}I", magic, *values.shape) + values.astype(np.uint8).tobytes()


def write_mnist(folder, mark="-", compressed=False):
    for split, prefix in IDX.items():
        for kind, values in (("images", digits("mnist", split)), ("labels", np.array(LABELS[split]))):
            path = folder / f"{prefix}-{kind}{mark}idx{values.ndim}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(idx(values)) if compressed else idx(values))
    return folder


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        for split, labels in LABELS.items():
            group = file.create_group(split)
            group["data"] = digits("usps", split).reshape(-1, 256).astype(np.float32) / 255
            group["target"] = np.array(labels)
    return path


def libsvm(split, digit=4):
    """Lines as in LIBSVM's file; values of exactly 0 are left out, as the format allows."""
    lines = []
    for label, image in zip(LABELS[split], digits("usps", split).reshape(-1, 256) / 127.5 - 1, strict=True):
        entries = [f"{k}:{value:.{digit}f}" for k, value in enumerate(image, start=1) if value]
        lines.append(f"{label + 1} {' '.join(entries)} \n")
    return "".join(lines)


def write_libsvm(folder):
    for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        (folder / name).write_bytes(bz2.compress(libsvm(split).encode()))
    return folder


def write_npz(path, format):
    arrays = {f"x_{split}": digits(format, split) for split in LABELS}
    arrays |= {f"y_{split}": np.array(labels) for split, labels in LABELS.items()}
    np.savez(path, **arrays)
    return path


def write_svhn(folder):
    for split, labels in LABELS.items():
        y = np.array([[label or 10] for label in labels], np.uint8)
        savemat(
            folder / f"{split}_32x32.mat", {"X": np.moveaxis(digits("svhn", split), 0, -1), "y": y}, do_compression=True
        )
    return folder


WRITERS = {
    "idx": ("mnist", write_mnist),
    "idx with dots, compressed": ("mnist", lambda folder: write_mnist(folder, ".", compressed=True)),
    "mnist.npz": ("mnist", lambda folder: write_npz(folder / "m.npz", "mnist")),
    "usps.h5": ("usps", lambda folder: write_hdf5(folder / "usps.h5")),
    "usps.bz2": ("usps", write_libsvm),
    "usps.npz": ("usps", lambda folder: write_npz(folder / "u.npz", "usps")),
    "svhn": ("svhn", write_svhn),
}


def load(format, path, split="train"):
    return load_dataset(DataConfig(format, str(path), split=split))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("written", WRITERS)
def test_every_format_gives_the_pixels_and_digits_that_were_written(tmp_path, written, split):
    format, write = WRITERS[written]
    dataset = load(format, write(tmp_path), split)
    assert np.array_equal(np.stack(dataset.images), digits(format, split))
    assert dataset.labels == tuple(LABELS[split])
    assert dataset.classes == tuple("0123456789")
    assert dataset.file_name(1).startswith(str(tmp_path))
    assert dataset.file_name(1).endswith(f" {split}[1]")


def test_a_file_of_one_split_is_read_for_this_split_alone(tmp_path):
    write_libsvm(tmp_path)
    write_svhn(tmp_path)
    for format, name in (("usps", "usps.t.bz2"), ("svhn", "test_32x32.mat")):
        assert load(format, tmp_path / name, "test").labels == tuple(LABELS["test"])
        with pytest.raises(ValueError, match=rf"{name} is the split test, not train; give (usps.bz2|train_32x32.mat)"):
            load(format, tmp_path / name, "train")


def test_an_npz_without_splits_is_divided(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (11, 28, 28), np.uint8), np.arange(11) % 10
    np.savez(tmp_path / "m.npz", x=images, y=labels)
    train, test = load("mnist", tmp_path / "m.npz"), load("mnist", tmp_path / "m.npz", "test")
    assert (len(train), len(test)) == (8, 3)
    assert np.array_equal(np.stack([*train.images, *test.images]), images)
    assert (*train.labels, *test.labels) == tuple(labels)


# ---- errors: one line that names the file


def fails(format, path, split="train", error=ValueError):
    with pytest.raises(error) as found:
        load(format, path, split)
    assert "\n" not in str(found.value)
    assert str(path) in str(found.value)
    return str(found.value)


def test_missing_files_are_named(tmp_path):
    assert "does not exist" in fails("mnist", tmp_path / "m.npz", error=FileNotFoundError)
    assert "train-images-idx3-ubyte" in fails("mnist", tmp_path, error=FileNotFoundError)
    assert "usps.t.bz2" in fails("usps", tmp_path, "test", FileNotFoundError)
    assert "train_32x32.mat" in fails("svhn", tmp_path, error=FileNotFoundError)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_cut_idx_file_is_an_error(tmp_path, compressed):
    write_mnist(tmp_path, compressed=compressed)
    path = next(tmp_path.glob("train-images*"))
    whole = path.read_bytes()
    for length in (0, 3, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "is not a whole idx file" in fails("mnist", tmp_path)


def test_idx_files_that_do_not_belong_together_are_an_error(tmp_path):
    write_mnist(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    correct = labels.read_bytes()
    labels.write_bytes(images.read_bytes())
    assert "its magic number is 2051, not 2049" in fails("mnist", tmp_path)
    labels.write_bytes(idx(np.array([1, 2])))
    assert "5 images, but labels of the shape [2]" in fails("mnist", tmp_path)
    labels.write_bytes(idx(np.array([1, 2, 3, 4, 10])))
    assert "label 10, none of the numbers 0 to 9" in fails("mnist", tmp_path)
    labels.write_bytes(correct)
    images.write_bytes(idx(digits("usps", "train")))
    assert "expected [N, 28, 28] of uint8" in fails("mnist", tmp_path)
    images.write_bytes(idx(np.zeros((0, 28, 28))))
    assert "no images" in fails("mnist", tmp_path)


@pytest.mark.parametrize(
    ("format", "name"), [("mnist", "m.npz"), ("usps", "usps.h5"), ("usps", "usps.bz2"), ("svhn", "train_32x32.mat")]
)
def test_a_damaged_file_is_an_error(tmp_path, format, name):
    write = {
        "m.npz": lambda folder: write_npz(folder / name, format),
        "usps.bz2": write_libsvm,
        "train_32x32.mat": write_svhn,
    }
    write.get(name, lambda folder: write_hdf5(folder / name))(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for content in (b"?", b"not a file of this kind\n" * 20, whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "is not a whole" in fails(format, path)


def test_arrays_and_groups_of_other_names_are_an_error(tmp_path):
    np.savez(tmp_path / "m.npz", images=digits("mnist", "train"))
    assert "has the arrays images; expected x_train and y_train, or x and y" in fails("mnist", tmp_path / "m.npz")
    with h5py.File(write_hdf5(tmp_path / "usps.h5"), "a") as file:
        del file["test"]
    assert "lacks one of test/data and test/target" in fails("usps", tmp_path / "usps.h5", "test")
    savemat(tmp_path / "train_32x32.mat", {"x": 1})
    assert "lacks one of X and y" in fails("svhn", tmp_path / "train_32x32.mat")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("11 1:0.5", "label 11, none of the numbers 1 to 10"),
        ("0 1:0.5", "label 0, none of the numbers 1 to 10"),
        ("1 1:0.5 2", "is not a whole LIBSVM file"),
        ("1 257:0.5", "is not a whole LIBSVM file"),
        ("1 0:0.5", "is not a whole LIBSVM file"),
        ("one 1:0.5", "is not a whole LIBSVM file"),
        ("1 1:1.5", "expected -1 to 1"),
    ],
)
def test_faults_in_a_libsvm_file_are_errors(tmp_path, line, message):
    path = tmp_path / "usps.bz2"
    path.write_bytes(bz2.compress(f"1 1:0.5\n{line}\n".encode()))
    assert message in fails("usps", path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2.5], "label 2.5, none of the numbers 0 to 9"),
        ([0, math.nan], "label nan, none of"),
        (["0", "a"], "labels of the type <U1, expected numbers"),
        ([True, False], "labels of the type bool, expected numbers"),
    ],
)
def test_labels_that_are_no_digits_are_refused(tmp_path, labels, message):
    np.savez(tmp_path / "m.npz", x_train=np.zeros((2, 28, 28), np.uint8), y_train=np.array(labels))
    assert message in fails("mnist", tmp_path / "m.npz")


def test_pixels_that_are_not_bytes_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", x=digits("mnist", "train") / 255, y=LABELS["train"])
    assert "type float64" in fails("mnist", tmp_path / "m.npz")
    with h5py.File(write_hdf5(tmp_path / "usps.h5"), "a") as file:
        file["train/data"][0, 0] = 2
    assert "values from 0.0 to 2.0, expected 0 to 1" in fails("usps", tmp_path / "usps.h5")


def test_svhn_labels_are_checked_before_ten_becomes_zero(tmp_path):
    path = tmp_path / "train_32x32.mat"
    for label in (0, 11):
        savemat(path, {"X": np.moveaxis(digits("svhn", "train"), 0, -1), "y": np.array([[1], [2], [label], [3], [4]])})
        assert f"label {label}, none of the numbers 1 to 10" in fails("svhn", path)


def test_a_file_of_another_kind_says_which_kinds_are_read(tmp_path):
    path = tmp_path / "digits.csv"
    path.write_text("1,2\n")
    assert "idx files or .npz" in fails("mnist", path)
    assert ".h5 or .hdf5 or .bz2 or .npz" in fails("usps", path)


@pytest.mark.parametrize(
    ("module", "config"),
    [
        ("h5py", {"format": "usps", "path": "usps.h5"}),
        ("scipy.io", {"format": "svhn", "path": "train_32x32.mat"}),
        ("sklearn.datasets", {"format": "embedded", "domain": "source"}),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, module, config):
    write_hdf5(tmp_path / "usps.h5")
    write_svhn(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match=r"pip install 'gh_downstream\[classification\]'"):
        load_dataset(DataConfig(**config))
