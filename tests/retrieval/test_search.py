"""Search in an index of images."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch.nn.functional import normalize

from gh_downstream.data.images import open_image
from gh_downstream.retrieval.data import DataConfig, load_dataset
from gh_downstream.retrieval.encoders import build_encoder
from gh_downstream.retrieval.search import SearchIndex, encode_texts


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path):
    """Images of different content: a.png to f.png."""
    generator = np.random.default_rng(0)
    for name in "abcdef":
        write_image(tmp_path / "images" / f"{name}.png", generator)
    return tmp_path / "images"


def write_image(path, generator):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)


def files(folder):
    return [str(path) for path in sorted(folder.iterdir())]


def index_of(features):
    names = [f"{number:05d}.png" for number in range(len(features))]
    return SearchIndex(normalize(features, dim=1), names)


def random_features(rows, width=8, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def fresh_encoder(seed=0):
    torch.manual_seed(seed)
    return build_encoder("tiny", init="random", width=32, image_size=32).eval()


@pytest.mark.parametrize(("rows", "top"), [(40, 1), (40, 7), (40, 40), (70_000, 30)])
def test_search_finds_what_a_full_sort_finds(rows, top):
    images, texts = random_features(rows), 5 * random_features(20, seed=1)
    similarity = normalize(texts.double(), dim=1) @ normalize(images.double(), dim=1).T
    found = index_of(images).search(texts, top)
    assert [len(hits) for hits in found] == [top] * 20
    for hits, row in zip(found, similarity, strict=True):
        best = row.argsort(descending=True)[:top].tolist()
        assert [hit.image for hit in hits] == [f"{number:05d}.png" for number in best]
        assert [hit.similarity for hit in hits] == pytest.approx(row[best].tolist(), abs=1e-6)


@pytest.mark.parametrize("top", [10, 100])
def test_equal_images_rank_in_their_order(top):
    features = random_features(300)
    copies = torch.randperm(300, generator=torch.Generator().manual_seed(2))[:120].sort().values
    # Batches of other sizes round otherwise: copies differ in the last digits.
    features[copies] = features[copies[0]] * (1 + 1e-7 * random_features(120, width=8, seed=3))
    (hits,) = index_of(features).search(features[copies[:1]], top)
    assert [hit.image for hit in hits] == [f"{number:05d}.png" for number in copies[:top].tolist()]


def test_more_hits_than_images_are_all_images():
    (hits,) = index_of(random_features(3)).search(random_features(1), 10)
    assert sorted(hit.image for hit in hits) == ["00000.png", "00001.png", "00002.png"]


@pytest.mark.parametrize(
    ("texts", "top", "expected"),
    [
        (random_features(1), 0, "top must be at least 1"),
        (random_features(1, width=9), 5, r"\[M, 8\].*\[1, 9\]"),
        (random_features(1)[0], 5, r"\[M, 8\].*\[8\]"),
        (random_features(1) * torch.nan, 5, "finite"),
    ],
)
def test_unusable_queries_are_refused(texts, top, expected):
    with pytest.raises(ValueError, match=expected):
        index_of(random_features(3)).search(texts, top)


def shards(folder, path):
    with webdataset.TarWriter(str(path)) as writer:
        for image in sorted(folder.iterdir()):
            writer.write({"__key__": image.stem, "png": image.read_bytes()})
    return path


def saved(folder, path):
    columns = {"image": [{"bytes": image.read_bytes(), "path": None} for image in sorted(folder.iterdir())]}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(str(path))
    return path


@pytest.mark.parametrize(("write", "name"), [(shards, "data.tar"), (saved, "data")])
def test_images_in_other_files_are_found_too(folder, tmp_path, write, name):
    encoder = fresh_encoder()
    data = DataConfig(str(write(folder, tmp_path / name)), side="images")
    texts = encode_texts(encoder, ["red"])
    ((best, *_),) = SearchIndex.build(encoder, load_dataset(data).images).search(texts, 6)
    ((expected, *_),) = SearchIndex.build(encoder, files(folder)).search(texts, 6)
    assert best.similarity == expected.similarity
    assert open_image(best.image).tobytes() == open_image(expected.image).tobytes()


def test_an_index_is_kept_in_one_file(folder, tmp_path):
    encoder = fresh_encoder()
    index = SearchIndex.build(encoder, files(folder))
    torch.save((index.features, index.images), tmp_path / "index.pt")
    loaded = SearchIndex(*torch.load(tmp_path / "index.pt", weights_only=True))
    texts = encode_texts(encoder, ["red", "blue"])
    assert loaded.search(texts, 6) == index.search(texts, 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_and_named(folder, caplog, workers):
    (folder / "a.png").write_bytes(b"not an image")
    (folder / "d.png").write_bytes((folder / "d.png").read_bytes()[:200])
    images = [*files(folder), str(folder / "missing.png")]
    index = SearchIndex.build(fresh_encoder(), images, workers=workers, batch_size=2)
    assert [Path(image).name for image in index.images] == ["b.png", "c.png", "e.png", "f.png"]
    torch.testing.assert_close(index.features, SearchIndex.build(fresh_encoder(), index.images).features)
    (message,) = caplog.messages
    assert message.startswith("3 of 7 images cannot be read, left out:")
    assert all(name in message for name in ("a.png", "d.png", "missing.png"))


def test_features_that_are_not_finite_stop_with_the_image(folder):
    encoder = fresh_encoder()
    encoder.image.projection.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"a\.png: its features are not finite"):
        SearchIndex.build(encoder, files(folder))


def test_an_index_needs_images():
    with pytest.raises(ValueError, match="none of the 0 images"):
        SearchIndex.build(fresh_encoder(), [])


def test_none_that_can_be_read_is_an_error_that_says_why(folder):
    for path in folder.iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"none of the 6 images can be read\n.*a\.png is not a readable image"):
        SearchIndex.build(fresh_encoder(), files(folder))


def test_empty_texts_are_refused():
    with pytest.raises(ValueError, match="text 2 of 2 is empty"):
        encode_texts(fresh_encoder(), ["red", " "])
