"""Find the images that fit a text best, in a folder or in any data set."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from gh_downstream.data.images import StoredImage
from gh_downstream.data.skipped import listed
from gh_downstream.files import atomic_file, write_atomically
from gh_downstream.retrieval.data import DataConfig
from gh_downstream.retrieval.drawing import contact_sheet
from gh_downstream.retrieval.encoders import DualEncoder
from gh_downstream.retrieval.image_batches import image_batches

logger = logging.getLogger(__name__)

DECIMALS = 6
"""Cosine similarities are rounded to so many decimals: those beyond are noise of single precision."""

_NOISE = 3 * 10.0**-DECIMALS  # between two similarities that may be equal when rounded, in single precision
_FORMAT = "gh_downstream.retrieval.search 1"


class Hit(NamedTuple):
    """An image that a text found, and the cosine similarity of the two, from -1 to 1, rounded to ``DECIMALS``."""

    image: str | StoredImage
    similarity: float


class SearchIndex:
    """The features of images, to be searched by cosine similarity.

    Args:
        features: Features of the images, float32 of shape ``[N, D]`` on the CPU, normalised.
        images: The images, as :func:`~gh_downstream.data.images.open_image` takes them, each once.
        stamps: For each image what changes when its file does.
        encoder: :func:`encoder_fingerprint` of what made the features.
    """

    def __init__(
        self, features: Tensor, images: Sequence[str | StoredImage], stamps: Sequence[str], encoder: str
    ) -> None:
        self.features = features
        self.images = list(images)
        self.stamps = list(stamps)
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self.images)

    @property
    def about(self) -> dict[str, Any]:
        """What the features are of, for JSON."""
        return {"format": _FORMAT, "encoder": self.encoder, "images": [*map(str, self.images)], "stamps": self.stamps}

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        encoder: DualEncoder,
        images: Iterable[str | StoredImage],
        *,
        earlier: SearchIndex | None = None,
        workers: int = 0,
        batch_size: int = 256,
    ) -> SearchIndex:
        """Encode images. Those that cannot be read are left out, counted and named in the log.

        Args:
            encoder: In evaluation mode, on its device.
            images: The images; of equally similar ones the first in this order ranks first.
            earlier: An index whose features are taken over where neither the encoder nor the image has changed.
            workers: Processes that read images.
            batch_size: Images that are encoded at a time.

        Raises:
            ValueError: None of the images can be read, or a feature is not finite.
        """
        fingerprint = encoder_fingerprint(encoder)
        named = {str(image): image for image in images}
        stamps = {name: _stamp(image) for name, image in named.items()}
        features: dict[str, Tensor] = {}
        if earlier is not None and earlier.encoder == fingerprint:
            rows = zip(map(str, earlier.images), earlier.stamps, earlier.features, strict=True)
            features = {image: row for image, stamp, row in rows if stamps.get(image) == stamp}
        elif earlier is not None:
            logger.info("the earlier index is of another encoder: every image is encoded anew")
        taken_over = len(features)
        new = [name for name in named if name not in features]
        faults: list[str] = []
        batches = image_batches(encoder, [named[name] for name in new], workers, batch_size)
        with tqdm(total=len(new), desc="encoding", unit="image", disable=None) as progress:
            for read, pixels, unread in batches:
                if read:
                    names = [new[index] for index in read]
                    features |= zip(names, _encode_images(encoder, names, pixels), strict=True)
                faults += unread.values()
                progress.update(len(read) + len(unread))
        if not features:
            raise ValueError(
                f"none of the {len(stamps)} images can be read:\n{listed(faults)}" if stamps else "no images to index"
            )
        if faults:
            logger.warning(
                "%d of %d images cannot be read and are left out:\n%s", len(faults), len(stamps), listed(faults)
            )
        gone = len(set(map(str, earlier.images)) - features.keys()) if earlier is not None else 0
        counts = len(features), len(features) - taken_over, taken_over, gone
        logger.info("index of %d images: %d encoded now, %d taken over, %d gone", *counts)
        kept = [name for name in named if name in features]
        matrix = torch.stack([features[name] for name in kept])
        return cls(matrix, [named[name] for name in kept], [stamps[name] for name in kept], fingerprint)

    def save(self, path: str | Path) -> None:
        """Write the index atomically, in NumPy's ``npz``."""
        about = np.frombuffer(json.dumps(self.about).encode(), np.uint8)
        with atomic_file(Path(path)) as file:
            np.savez(file, features=self.features.numpy(), about=about)

    @classmethod
    def load(cls, path: str | Path) -> SearchIndex:
        """Read what :meth:`save` wrote, without unpickling; of the images only their names.

        Raises:
            OSError: There is no such file, or it cannot be read.
            ValueError: It is damaged, or is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                about = json.loads(content["about"].tobytes())
                features = torch.from_numpy(content["features"])
            if about["format"] != _FORMAT or len(features) != len(about["images"]):
                raise ValueError("of another format")
            return cls(features, about["images"], about["stamps"], about["encoder"])
        except OSError:
            raise
        except Exception as error:  # A damaged file raises whatever its bytes happen to lead to.
            raise ValueError(
                f"{path} is damaged or not an index of images; name another file, or delete it to have it built anew"
            ) from error

    def search(self, text_features: Tensor, k: int) -> list[list[Hit]]:
        """Return the images that are most similar to texts.

        Inner products with all images, by faiss where it is installed, else by torch: the results are the same.
        Similarities that are equal to ``DECIMALS`` decimals rank in the order of the images.

        Args:
            text_features: Features of the texts, ``[M, D]``; normalised here. See :func:`encode_texts`.
            k: Number of images for each text; all of them where there are fewer.

        Returns:
            For each text its hits, best first.

        Raises:
            ValueError: ``k`` is not positive, or the features are of another shape or not finite.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        width = self.features.shape[1]
        if text_features.ndim != 2 or text_features.shape[1] != width or not text_features.isfinite().all():
            raise ValueError(
                f"text features must be finite and [M, {width}] as those of the images, got "
                f"{list(text_features.shape)}; encode texts with the encoder that made the index"
            )
        queries = normalize(text_features.detach().float(), dim=1).cpu()
        return [hits for chunk in queries.split(1024) for hits in self._search(chunk, k)]

    def _search(self, queries: Tensor, k: int) -> list[list[Hit]]:
        # Single precision finds those that may be among the best, with all that may be tied with the last of them;
        # double precision orders these few.
        count = min(2 * k, len(self))
        similarities, candidates = _most_similar(queries, self.features, count)
        while count < len(self) and (similarities[:, k - 1] - similarities[:, -1] < _NOISE).any():
            count = min(2 * count, len(self))
            similarities, candidates = _most_similar(queries, self.features, count)
        results = []
        for query, rows in zip(queries, candidates.sort(dim=1).values, strict=True):
            exact = (self.features[rows].double() @ query.double()).round(decimals=DECIMALS)
            best, order = exact.sort(descending=True, stable=True)
            pairs = zip(rows[order[:k]].tolist(), best[:k].tolist(), strict=True)
            results.append([Hit(self.images[row], similarity) for row, similarity in pairs])
        return results


def _most_similar(queries: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest inner products of each query, in falling order, and the rows of the features that they are with."""
    # It tells of each build of itself that it looks for, missing ones as if they were errors.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    try:
        import faiss
    except ImportError:
        return _most_similar_without_faiss(queries, features, count)
    found = faiss.knn(queries.numpy(), features.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
    similarities, rows = map(torch.from_numpy, found)
    return similarities, rows


def _most_similar_without_faiss(queries: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    similarities = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64)
    for start, chunk in zip(range(0, len(features), 2**14), features.split(2**14), strict=True):
        here = torch.arange(start, start + len(chunk)).expand(len(queries), -1)
        similarities = torch.cat([similarities, queries @ chunk.T], dim=1)
        similarities, best = similarities.topk(min(count, similarities.shape[1]), dim=1)
        rows = torch.cat([rows, here], dim=1).gather(1, best)
    return similarities, rows


def _stamp(image: str | StoredImage) -> str:
    try:
        status = os.stat(image if isinstance(image, str) else image.file)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _encode_images(encoder: DualEncoder, images: Sequence[str], pixels: Tensor) -> Tensor:
    features = encoder.encode_image(pixels.to(encoder.logit_scale.device))
    features = normalize(features.float(), dim=1).cpu()
    for image, finite in zip(images, features.isfinite().all(dim=1), strict=True):
        if not finite:
            raise ValueError(f"{image}: its features are not finite; the encoder has diverged")
    return features


@torch.no_grad()
def encode_texts(encoder: DualEncoder, texts: Sequence[str]) -> Tensor:
    """Return the features ``[M, D]`` of texts, not normalised, by an encoder in evaluation mode on its device.

    Raises:
        ValueError: A text is empty.
    """
    if empty := [number for number, text in enumerate(texts, start=1) if not text.strip()]:
        raise ValueError(f"text {empty[0]} of {len(texts)} is empty: describe the image to be found")
    device = encoder.logit_scale.device
    chunks = (texts[start : start + 256] for start in range(0, len(texts), 256))
    return torch.cat([encoder.encode_text(encoder.tokenize(chunk).to(device)) for chunk in chunks])


def encoder_fingerprint(encoder: DualEncoder) -> str:
    """Return 16 hexadecimal digits that name the architecture, the weights and the preprocessing of an encoder."""
    # Two encoders may have the same weights and differ in an activation, which their description shows.
    digest = hashlib.sha256(repr(encoder).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    probe = Image.radial_gradient("L").crop((0, 0, 256, 160)).convert("RGB")
    digest.update(encoder.preprocess(probe, False).numpy().tobytes())
    return digest.hexdigest()[:16]


def image_data(path: str, options: Sequence[str] = ()) -> DataConfig:
    """Return how to read the images of a data set.

    Args:
        path: As in :class:`~gh_downstream.retrieval.data.DataConfig`.
        options: ``KEY=VALUE`` with its other keys.

    Raises:
        ValueError: An option is not of this form, or unknown.
    """
    known = [field.name for field in dataclasses.fields(DataConfig) if field.name not in ("path", "side")]
    values = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in known or not value:
            raise ValueError(f"option {option!r}: expected KEY=VALUE, with a key of {', '.join(known)}")
        values[key] = value
    return DataConfig(path, side="images", **values)


def default_index(folder: str | Path, data: DataConfig) -> Path:
    """Return a file in a folder for the index of the images of a data set, another for each way to read it."""
    path = Path(data.path).resolve()
    content = json.dumps(dataclasses.asdict(dataclasses.replace(data, path=str(path))), sort_keys=True)
    return Path(folder) / f"{path.name}-{hashlib.sha256(content.encode()).hexdigest()[:6]}.npz"


def update_index(
    encoder: DualEncoder, images: Iterable[str | StoredImage], path: str | Path, *, workers: int = 0
) -> SearchIndex:
    """Return the index of images that is kept in a file, after encoding what is new in them.

    Args:
        encoder: In evaluation mode, on its device. An index that another encoder made is built anew.
        images: The images that are to be in the index.
        path: File of the index; written where it is missing or anything has changed.
        workers: Processes that read images.

    Raises:
        OSError: The file cannot be read or written.
        ValueError: The file is damaged or not an index, none of the images can be read, or a feature is not finite.
    """
    path = Path(path)
    earlier = SearchIndex.load(path) if path.exists() else None
    index = SearchIndex.build(encoder, images, earlier=earlier, workers=workers)
    if earlier is None or index.about != earlier.about:
        index.save(path)
        logger.info("%s: written", path)
    return index


def show_hits(query: str, hits: Sequence[Hit], folder: str | Path) -> None:
    """Print what a query found, and draw it into a PNG that is named after the query.

    Args:
        query: The text.
        hits: What it found, best first.
        folder: Folder of the picture.
    """
    print(query)
    for rank, hit in enumerate(hits, start=1):
        print(f"{rank:4d}  {hit.similarity:7.4f}  {hit.image}")
    words = re.sub(r"[\W_]+", "-", query.casefold())[:40].strip("-")
    # Texts that differ in what a name of a file leaves out have pictures of their own.
    path = Path(folder) / f"{words}-{hashlib.sha256(query.encode()).hexdigest()[:6]}.png"
    picture = io.BytesIO()
    contact_sheet([query], [hits]).save(picture, format="PNG")
    write_atomically(path, picture.getvalue())
    print(f"picture: {path}")
