"""Digits in the files that they are published in: MNIST, USPS and SVHN."""

from __future__ import annotations

import bz2
import gzip
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from gh_downstream.classification.data.records import ClassificationDataset

CLASSES = tuple("0123456789")

_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, struct.error)
_IMAGES, _LABELS = 2051, 2049  # magic numbers of idx files of unsigned bytes, in three dimensions and in one
_NPZ_TRAIN = 0.8  # share of an .npz that has no split of its own


def load_mnist(path: Path, split: str) -> ClassificationDataset:
    """Read MNIST.

    Args:
        path: Folder with the four idx files (``train-images-idx3-ubyte`` and so on, also with a dot for the second
            dash, also with ``.gz``), or an ``.npz`` with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or with
            ``x`` and ``y`` alone: then ``train`` is the first 80 % of it and ``test`` the rest.
        split: ``train`` or ``test``.

    Returns:
        Images of shape ``[28, 28]``.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is not what its name says, is cut off, or holds what are not digits.
    """
    if path.is_dir():
        prefix = "train" if split == "train" else "t10k"
        images = _read_idx(_idx_file(path, f"{prefix}-images", "idx3-ubyte"), _IMAGES)
        labels = _read_idx(_idx_file(path, f"{prefix}-labels", "idx1-ubyte"), _LABELS)
    elif path.suffix == ".npz":
        images, labels = _read_npz(path, split)
    else:
        raise ValueError(f"{path}: format=mnist reads a folder of idx files or an .npz")
    return _dataset(path, split, images, labels, (28, 28))


def load_usps(path: Path, split: str) -> ClassificationDataset:
    """Read USPS.

    Args:
        path: HDF5 file with the groups ``train`` and ``test`` of ``data``, in 0 to 1 and of shape ``[N, 256]``, and
            ``target`` (usps.h5); LIBSVM's ``usps.bz2`` or ``usps.t.bz2``, of labels 1 to 10 for the digits 0 to 9 and
            values in -1 to 1, or the folder of both; or an ``.npz`` as in :func:`load_mnist`.
        split: ``train`` or ``test``.

    Returns:
        Images of shape ``[16, 16]``.

    Raises:
        FileNotFoundError: A file is missing.
        ImportError: The file is HDF5 and h5py is not installed.
        ValueError: A file is of the other split, is not what its name says, is cut off, or holds what are not digits.
    """
    path = _file_of_split(path, split, {"train": "usps.bz2", "test": "usps.t.bz2"})
    if path.suffix == ".bz2":
        images, labels = _read_libsvm(path)
    elif path.suffix in (".h5", ".hdf5"):
        images, labels = _read_hdf5(path, split)
    elif path.suffix == ".npz":
        images, labels = _read_npz(path, split)
    else:
        raise ValueError(f"{path}: format=usps reads .h5, .bz2 (LIBSVM) or .npz")
    return _dataset(path, split, images, labels, (16, 16))


def load_svhn(path: Path, split: str) -> ClassificationDataset:
    """Read SVHN, the cropped digits.

    Args:
        path: ``train_32x32.mat`` or ``test_32x32.mat``, with ``X`` of shape ``[32, 32, 3, N]`` and the labels ``y``,
            10 for the digit 0; or the folder of both.
        split: ``train`` or ``test``.

    Returns:
        Images of shape ``[32, 32, 3]``.

    Raises:
        FileNotFoundError: The file is missing.
        ImportError: SciPy is not installed.
        ValueError: The file is of the other split, is not what its name says, is cut off, or holds what are not digits.
    """
    path = _file_of_split(path, split, {"train": "train_32x32.mat", "test": "test_32x32.mat"})
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise ImportError("format=svhn needs SciPy: pip install 'gh_downstream[classification]'") from error
    try:
        content = loadmat(path, variable_names=("X", "y"))
        images, labels = content["X"], content["y"].ravel()
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; the .mat of SVHN's cropped digits has X and y") from error
    except (*_UNREADABLE, MatReadError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{path} is not a whole .mat file ({error}); download it again") from error
    if images.ndim != 4:
        raise ValueError(f"{path}: X has the shape {list(images.shape)}, expected [32, 32, 3, N]")
    _check_range(path, labels, 1, 10)
    return _dataset(path, split, np.moveaxis(images, -1, 0), labels % 10, (32, 32, 3))


def _idx_file(folder: Path, stem: str, kind: str) -> Path:
    """The idx file in any of its spellings."""
    names = [f"{stem}{mark}{kind}{suffix}" for mark in "-." for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has none of {', '.join(names)}")


def _read_idx(path: Path, magic: int) -> np.ndarray:
    dimensions = 3 if magic == _IMAGES else 1
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
    except _UNREADABLE as error:
        raise ValueError(f"{path} is cut off or damaged ({error}); download it again") from error
    if found != magic:
        what = "images" if magic == _IMAGES else "labels"
        raise ValueError(f"{path} has the magic number {found}, an idx file of {what} has {magic}")
    values = np.frombuffer(content, np.uint8, offset=4 * (1 + dimensions))
    if len(values) != np.prod(shape):
        raise ValueError(
            f"{path} is cut off or damaged: {len(values)} bytes for the shape {shape} that it states; download it again"
        )
    return values.reshape(shape)


def _read_npz(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as content:
            names = set(content.files)
            if {f"x_{split}", f"y_{split}"} <= names:
                return content[f"x_{split}"], content[f"y_{split}"]
            if {"x", "y"} <= names:
                images, labels = content["x"], content["y"]
                first = int(_NPZ_TRAIN * len(images))
                part = slice(first) if split == "train" else slice(first, None)
                return images[part], labels[part]
    except _UNREADABLE as error:
        raise ValueError(f"{path} is not a whole .npz file ({error})") from error
    raise ValueError(f"{path} has the arrays {', '.join(sorted(names))}; expected x_{split} and y_{split}, or x and y")


def _read_hdf5(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("USPS as .h5 needs h5py: pip install 'gh_downstream[classification]'") from error
    try:
        with h5py.File(path) as content:
            images, labels = content[split]["data"][()], content[split]["target"][()]
    except KeyError as error:
        raise ValueError(f"{path} lacks {split}/data or {split}/target, which usps.h5 has ({error})") from error
    except _UNREADABLE as error:
        raise ValueError(f"{path} is not a whole HDF5 file ({error}); download it again") from error
    return _from_floats(path, images, 0.0), labels


def _read_libsvm(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        lines = bz2.decompress(path.read_bytes()).decode().splitlines()
    except _UNREADABLE as error:
        raise ValueError(f"{path} is not a whole bzip2 file ({error}); download it again") from error
    images, labels = np.zeros((len(lines), 256)), np.zeros(len(lines), int)  # what a sparse line leaves out is 0
    for number, line in enumerate(lines):
        try:
            label, *entries = line.replace(":", " ").split()
            pairs = np.array(entries, float).reshape(-1, 2)
            columns = pairs[:, 0].astype(int)
            if not ((columns >= 1) & (columns <= 256)).all():
                raise ValueError("an index outside 1 to 256")
            images[number, columns - 1] = pairs[:, 1]
            labels[number] = int(float(label))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number + 1} is not 'label index:value ...' of 256 values: {error}"
            ) from error
    _check_range(path, labels, 1, 10)
    return _from_floats(path, images, -1.0), labels - 1


def _file_of_split(path: Path, split: str, names: dict[str, str]) -> Path:
    """The file of the split where ``path`` is a folder; ``path``, unless it is that of the other split."""
    if path.is_dir():
        file = path / names[split]
        if not file.is_file():
            raise FileNotFoundError(f"{path} has no {names[split]}, the split {split}")
        return file
    for other, name in names.items():
        if path.name == name and other != split:
            raise ValueError(f"{path} is the split {other}, not {split}; give {names[split]} or the folder of both")
    return path


def _from_floats(path: Path, images: np.ndarray, lowest: float) -> np.ndarray:
    """Brightness from ``lowest`` to 1 as pixels of shape [N, 16, 16]."""
    if images.shape[1:] != (256,):
        raise ValueError(f"{path} has data of the shape {list(images.shape)}, expected [N, 256]")
    if len(images) and not lowest <= images.min() <= images.max() <= 1:
        raise ValueError(f"{path} has values from {images.min()} to {images.max()}, expected {lowest:g} to 1")
    return np.round((images - lowest) * (255 / (1 - lowest))).astype(np.uint8).reshape(-1, 16, 16)


def _check_range(path: Path, labels: np.ndarray, lowest: int, highest: int) -> None:
    outside = labels[(labels < lowest) | (labels > highest)]
    if len(outside):
        raise ValueError(f"{path} has the label {outside[0]}, outside {lowest} to {highest}")


def _dataset(
    path: Path, split: str, images: np.ndarray, labels: np.ndarray, shape: tuple[int, ...]
) -> ClassificationDataset:
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(
            f"{path} has images of the shape {list(images.shape)} and type {images.dtype}, "
            f"expected [N, {expected}] of uint8"
        )
    if not len(images):
        raise ValueError(f"{path} has no images of the split {split}")
    if labels.shape != (len(images),):
        raise ValueError(f"{path} has {len(images)} images, but labels of the shape {list(labels.shape)}")
    _check_range(path, labels, 0, 9)
    return ClassificationDataset(f"{path} {split}", list(images), tuple(labels.astype(int).tolist()), CLASSES)
