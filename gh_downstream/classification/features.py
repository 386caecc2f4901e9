"""What a frozen backbone makes of images, kept in files: a training on it takes seconds."""

import hashlib
import json
import logging
import shlex
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from gh_downstream.classification.backbones import build_backbone, check_images
from gh_downstream.classification.batches import evaluation_batches
from gh_downstream.classification.config import ClassificationConfig
from gh_downstream.classification.data import ClassificationDataset, DataConfig, load_dataset
from gh_downstream.classification.data.transforms import CROP, RESIZED
from gh_downstream.files import atomic_file
from gh_downstream.installed import PREFIX, installed_file
from gh_downstream.training import process_state

logger = logging.getLogger(__name__)


@torch.no_grad()
def cache_features(config: ClassificationConfig, renew: bool = True) -> None:
    """Write the features of all images of a configuration into its folder ``features``, where they are not there yet.

    There is a file for each data set that it names, whether as source, as target or for validation.

    Args:
        config: The configuration.
        renew: Whether files that hold other features are written anew.

    Raises:
        ValueError: The configuration has no such folder or no weights, an image cannot be read, or a file holds other
            features and is not to be written anew; the message has the command that does it.
        FileNotFoundError: Data or weights are missing.
    """
    if config.features is None:
        raise ValueError("where to? give features=FOLDER")
    made_by = _made_by(config)
    wanted = defaultdict(list)
    for data, labels in _data_of(config):
        wanted[_file(config, data)].append(load_dataset(data, labels))
    stale = {}
    for path, datasets in wanted.items():
        looked_up = [_look_up(path, made_by, dataset) for dataset in datasets]
        reasons = [reason for reason in looked_up if isinstance(reason, str)]
        if reasons and path.exists() and not renew:
            raise ValueError(f"{path} {reasons[0]}: {_command(config)}")
        if reasons:
            stale[path] = datasets
    logger.info("%d of %d files of features are there already", len(wanted) - len(stale), len(wanted))
    trunk = frozen_trunk(config) if stale else nn.Identity()
    for path, datasets in stale.items():
        found: dict[str, np.ndarray] = {}
        for dataset in datasets:
            new = [k for k in range(len(dataset)) if dataset.file_name(k) not in found]
            for indices, images in evaluation_batches(config, dataset, new):
                rows = trunk(images.to(process_state().device)).cpu().numpy()
                found |= {dataset.file_name(k): row for k, row in zip(indices, rows, strict=True)}
        sizes = {name: size for dataset in datasets for name, size in _images(dataset).items()}
        features, about = np.stack([found[name] for name in sizes]), {"made_by": made_by, "images": sizes}
        with atomic_file(path) as file:
            np.savez(file, features=features, about=np.array(json.dumps(about)))
        logger.info("%s: %d features of each of %d images", path, features.shape[1], len(features))


def with_features(
    config: ClassificationConfig, data: DataConfig, dataset: ClassificationDataset
) -> ClassificationDataset:
    """Return a data set with the features of its images, where the configuration has a folder of them.

    Raises:
        ValueError: They are not there, cannot be read, or are not those of the images and the backbone; the message has
            the command that makes them.
    """
    if config.features is None:
        return dataset
    path = _file(config, data)
    found = _look_up(path, _made_by(config), dataset)
    if isinstance(found, str):
        raise ValueError(f"{path} {found}: {_command(config)}")
    return replace(dataset, features=found)


def frozen_trunk(config: ClassificationConfig) -> nn.Module:
    """Return the backbone that a configuration takes features of, without its bottleneck, on its device.

    Raises:
        ValueError, FileNotFoundError, ImportError: As :func:`~gh_downstream.classification.backbones.build_backbone`.
    """
    backbone = build_backbone(config.backbone, config.weights)
    check_images(config.backbone, config.weights, config.transform)
    return backbone.trunk.to(process_state().device).eval().requires_grad_(False)


def _data_of(config: ClassificationConfig) -> Iterator[tuple[DataConfig, bool]]:
    """The data of a configuration, and whether they need labels."""
    yield config.source, True
    if config.target is not None:
        yield config.target, False
    for data in config.validation.values():
        yield data, True


def _file(config: ClassificationConfig, data: DataConfig) -> Path:
    """The file that the features of a data set belong in, whatever they were made of."""
    assert config.features is not None
    which = [asdict(replace(data, benchmark=None)), config.backbone, config.weights, config.transform]
    digits = hashlib.sha256(json.dumps(which).encode()).hexdigest()[:8]
    return Path(config.features) / f"{Path(data.path or data.format).name}-{config.backbone}-{digits}.npz"


def _made_by(config: ClassificationConfig) -> dict[str, Any]:
    """Everything beside the images that the features depend on."""
    if config.weights is None:
        raise ValueError("features of a frozen backbone with random weights say nothing: give weights")
    file = installed_file(config.weights, ".pth", ".pt") if config.weights.startswith(PREFIX) else Path(config.weights)
    content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    return {
        "backbone": config.backbone,
        "weights": config.weights,
        "content of the weights": content,
        "transform": config.transform,
        "pixels": [RESIZED, CROP],
    }


def _images(dataset: ClassificationDataset) -> dict[str, int]:
    """The size of each file, and a checksum of each image in memory, by its name."""
    return {
        dataset.file_name(k): Path(image).stat().st_size if isinstance(image, str) else crc32(image.tobytes())
        for k, image in enumerate(dataset.images)
    }


def _look_up(path: Path, made_by: dict[str, Any], dataset: ClassificationDataset) -> Tensor | str:
    """The features of a data set ``[N, D]``, or why a file does not have them."""
    if not path.exists():
        return "is not there"
    try:
        with np.load(path, allow_pickle=False) as content:
            features, about = content["features"], json.loads(content["about"].item())
        made, images = about["made_by"], about["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        return f"cannot be read ({error})"
    if differing := [key for key, value in made_by.items() if made.get(key) != value]:
        return f"was made with other {' and '.join(differing)}"
    now = _images(dataset)
    if changed := [name for name, size in now.items() if images.get(name) != size]:
        return f"lacks {len(changed)} images of {dataset.name} as they are now, such as {changed[0]}"
    rows = {name: row for row, name in enumerate(images)}
    return torch.from_numpy(features[[rows[dataset.file_name(k)] for k in range(len(dataset))]])


def _command(config: ClassificationConfig) -> str:
    """What caches the features of a configuration, without the file that it came from."""
    keys = ("output", "backbone", "weights", "transform", "features")
    words: dict[str, Any] = {key: getattr(config, key) for key in keys}
    words["training.steps"] = config.training.steps  # which every configuration has
    named = {"source": config.source, "target": config.target}
    named |= {f"validation.{name}": data for name, data in config.validation.items()}
    for name, data in named.items():
        values = {} if data is None else asdict(data)
        words |= {f"{name}.{key}": value for key, value in values.items() if value is not None}
    return shlex.join(["gh-downstream", "data", "features", *(f"{key}={value}" for key, value in words.items())])
