"""Digits in the files that they are published in: MNIST, USPS and SVHN."""

import gzip
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gh_downstream.classification.data.records import ClassificationDataset

_IDX = "a folder of idx files"
_NPZ_TRAIN = 0.8  # share of an .npz that has no split of its own


def load_digits(format: str, path: Path, split: str) -> ClassificationDataset:
    """Read MNIST, USPS or SVHN, the cropped digits.

    ``mnist``: a folder with the four idx files (``train-images-idx3-ubyte`` and so on, also with a dot for the second
    dash, also with ``.gz``), or ``.npz``. ``usps``: HDF5 with the groups ``train`` and ``test`` of ``data``, in 0 to 1
    and of shape ``[N, 256]``, and ``target`` (usps.h5); LIBSVM's ``usps.bz2`` or ``usps.t.bz2``, of labels 1 to 10 for
    the digits 0 to 9 and values in -1 to 1, or the folder of both; or ``.npz``. ``svhn``: ``train_32x32.mat`` or
    ``test_32x32.mat``, with ``X`` of shape ``[32, 32, 3, N]`` and the labels ``y``, 10 for the digit 0, or the folder
    of both. An ``.npz`` has ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or ``x`` and ``y`` alone: then
    ``train`` is the first 80 % of it and ``test`` the rest.

    The split is ``train`` or ``test``. Images are of the shape ``[28, 28]``, ``[16, 16]`` or ``[32, 32, 3]``.

    Raises:
        FileNotFoundError: A file is missing.
        ImportError: The library that reads the file is not installed.
        ValueError: A file is of the other split, is not what its name says, is cut off, or holds what are not digits.
    """
    known = FORMATS[format]
    if known.files:
        path = _file_of_split(path, split, known.files)
    kind = _IDX if path.is_dir() else path.suffix
    if kind not in known.readers:
        raise ValueError(f"{path}: format={format} reads {' or '.join(known.readers)}")
    images, labels = known.readers[kind](path, split)
    if images.dtype != np.uint8 or images.shape[1:] != known.shape:
        expected = ", ".join(map(str, known.shape))
        raise ValueError(
            f"{path} has images of the shape {list(images.shape)} and type {images.dtype}, "
            f"expected [N, {expected}] of uint8"
        )
    if not len(images):
        raise ValueError(f"{path} has no images of the split {split}")
    if labels.shape != (len(images),):
        raise ValueError(f"{path} has {len(images)} images, but labels of the shape {list(labels.shape)}")
    _check_labels(path, labels, 0, 9)
    return ClassificationDataset(f"{path} {split}", list(images), tuple(labels.astype(int).tolist()), (*"0123456789",))


def _file_of_split(path: Path, split: str, names: Mapping[str, str]) -> Path:
    """The file of the split where ``path`` is a folder; ``path``, unless it is that of the other split."""
    if path.is_dir():
        if not (path / names[split]).is_file():
            raise FileNotFoundError(f"{path} has no {names[split]}, the split {split}")
        return path / names[split]
    for other, name in names.items():
        if path.name == name and other != split:
            raise ValueError(f"{path} is the split {other}, not {split}; give {names[split]} or the folder of both")
    return path


def _check_labels(path: Path, labels: np.ndarray, lowest: int, highest: int) -> None:
    if labels.dtype.kind not in "iuf":
        raise ValueError(f"{path} has labels of the type {labels.dtype}, expected numbers")
    wrong = labels[~np.isin(labels, range(lowest, highest + 1))]
    if len(wrong):
        raise ValueError(f"{path} has the label {wrong[0]:g}, none of the numbers {lowest} to {highest}")


# ---- readers: the images and labels of a split


@contextmanager
def _reading(path: Path, kind: str, parts: str = "") -> Iterator[None]:
    """Name a file of which the body cannot read all, or that lacks one of its parts."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} lacks one of {parts}: {error}") from error
    except (OSError, EOFError, ValueError, TypeError, zlib.error, zipfile.BadZipFile, struct.error) as error:
        raise ValueError(f"{path} is not a whole {kind} file ({error}); download it again") from error


def _read_idx(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    prefix = "train" if split == "train" else "t10k"
    return _idx(folder, f"{prefix}-images", 3), _idx(folder, f"{prefix}-labels", 1)


def _idx(folder: Path, stem: str, dimensions: int) -> np.ndarray:
    names = [f"{stem}{mark}idx{dimensions}-ubyte{suffix}" for mark in "-." for suffix in ("", ".gz")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has none of {', '.join(names)}")
    with _reading(path, "idx"):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
        if magic != 0x0800 + dimensions:  # unsigned bytes, and the number of dimensions
            raise ValueError(f"its magic number is {magic}, not {0x0800 + dimensions}")
        return np.frombuffer(content, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)


def _read_npz(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with _reading(path, ".npz"), np.load(path, allow_pickle=False) as content:
        names = set(content.files)
        if {f"x_{split}", f"y_{split}"} <= names:
            return content[f"x_{split}"], content[f"y_{split}"]
        if {"x", "y"} <= names:
            images, labels = content["x"], content["y"]
            first = int(_NPZ_TRAIN * len(images))
            part = slice(first) if split == "train" else slice(first, None)
            return images[part], labels[part]
    raise ValueError(f"{path} has the arrays {', '.join(sorted(names))}; expected x_{split} and y_{split}, or x and y")


def _read_hdf5(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    import h5py

    with _reading(path, "HDF5", f"{split}/data and {split}/target"), h5py.File(path) as content:
        images, labels = content[split]["data"][()], content[split]["target"][()]
    return _from_floats(path, images, 0.0), labels


def _read_libsvm(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_svmlight_file

    with _reading(path, "LIBSVM"):
        images, labels = load_svmlight_file(str(path), n_features=256, zero_based=False)
    _check_labels(path, labels, 1, 10)
    return _from_floats(path, images.toarray(), -1.0), labels - 1


def _read_mat(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    with _reading(path, ".mat", "X and y"):
        try:
            content = loadmat(path, variable_names=("X", "y"))
        except (MatReadError, NotImplementedError) as error:
            raise ValueError(error) from error
        images, labels = content["X"], content["y"].ravel()
    _check_labels(path, labels, 1, 10)
    return np.moveaxis(images, -1, 0), labels % 10


def _from_floats(path: Path, images: np.ndarray, lowest: float) -> np.ndarray:
    """Brightness from ``lowest`` to 1 as pixels of shape [N, 16, 16]."""
    if images.shape[1:] != (256,):
        raise ValueError(f"{path} has data of the shape {list(images.shape)}, expected [N, 256]")
    if len(images) and not lowest <= images.min() <= images.max() <= 1:
        raise ValueError(f"{path} has values from {images.min()} to {images.max()}, expected {lowest:g} to 1")
    return np.round((images - lowest) * (255 / (1 - lowest))).astype(np.uint8).reshape(-1, 16, 16)


@dataclass(frozen=True)
class _Format:
    """The shape of an image, what reads each kind of file, and the file of each split in a folder."""

    shape: tuple[int, ...]
    readers: Mapping[str, Callable[[Path, str], tuple[np.ndarray, np.ndarray]]]
    files: Mapping[str, str] = field(default_factory=dict)


FORMATS = {
    "mnist": _Format((28, 28), {_IDX: _read_idx, ".npz": _read_npz}),
    "usps": _Format(
        (16, 16),
        {".h5": _read_hdf5, ".hdf5": _read_hdf5, ".bz2": _read_libsvm, ".npz": _read_npz},
        {"train": "usps.bz2", "test": "usps.t.bz2"},
    ),
    "svhn": _Format((32, 32, 3), {".mat": _read_mat}, {"train": "train_32x32.mat", "test": "test_32x32.mat"}),
}
"""How the digits are read, by the name of the format."""
