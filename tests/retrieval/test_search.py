"""Search in an index of images, its file, its contact sheets, and tools/search.py on a trained encoder."""

import io
import json
import logging
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import search
import torch
import webdataset
from accelerate.state import AcceleratorState
from PIL import Image
from torch.nn.functional import normalize

from gh_downstream.data.images import open_image
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.data import DataConfig, load_dataset
from gh_downstream.retrieval.encoders import build_encoder
from gh_downstream.retrieval.engine import build_trainer, load_encoder
from gh_downstream.retrieval.search import (
    Hit,
    SearchIndex,
    contact_sheet,
    default_index,
    encode_texts,
    encoder_fingerprint,
    show_hits,
    update_index,
)
from gh_downstream.training import load_config

CONFIG = """
output: {root}/out
encoder: tiny
init: random
encoder_options: {{width: 32, image_size: 32}}
source: {{path: {root}/pairs.csv, image_column: file}}
batch_size: 8
optimizer: {{name: adamw, lr: 0.001, schedule: cosine}}
training: {{steps: 40, workers: 0}}
"""
COLORS = ("red", "green", "blue", "yellow", "purple", "black", "white", "cyan")
GREEN = (0, 158, 115)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)


@pytest.fixture(params=["faiss", "torch"])
def backend(request, monkeypatch):
    if request.param == "faiss":
        pytest.importorskip("faiss")
    else:
        monkeypatch.setitem(sys.modules, "faiss", None)


@pytest.fixture(scope="session")
def training(tmp_path_factory):
    """The output folder of a training that knows the colours of images, and their data."""
    root = tmp_path_factory.mktemp("colors")
    rows = ["file,caption"]
    (root / "images").mkdir()
    for color in COLORS:
        Image.new("RGB", (40, 24), color).save(root / "images" / f"{color}.png")
        rows.append(f"images/{color}.png,a {color} picture")
    (root / "pairs.csv").write_text("\n".join(rows))
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)
    (root / "config.yaml").write_text(CONFIG.format(root=root))
    build_trainer(load_config(RetrievalConfig, root / "config.yaml")).run()
    return root


@pytest.fixture(scope="session")
def encoder(training):
    config = load_config(RetrievalConfig, training / "out" / "config.yaml")
    return load_encoder(config, training / "out" / "last.pt")


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
    return SearchIndex(normalize(features, dim=1), names, [""] * len(names), "someone")


def random_features(rows, width=8, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def encoded_images(encoder):
    """How many images an encoder encodes from now on, in a list that grows."""
    counts = []
    encoder.image.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    return counts


def fresh_encoder(seed=0):
    torch.manual_seed(seed)
    return build_encoder("tiny", init="random", width=32, image_size=32).eval()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("rows", "k"), [(40, 1), (40, 7), (40, 40), (20_000, 30)])
def test_search_finds_what_a_full_sort_finds(rows, k):
    images, texts = random_features(rows), 5 * random_features(9, seed=1)
    similarity = normalize(texts.double(), dim=1) @ normalize(images.double(), dim=1).T
    found = index_of(images).search(texts, k)
    assert [len(hits) for hits in found] == [k] * 9
    for hits, row in zip(found, similarity, strict=True):
        best = row.argsort(descending=True)[:k].tolist()
        assert [hit.image for hit in hits] == [f"{number:05d}.png" for number in best]
        assert [hit.similarity for hit in hits] == pytest.approx(row[best].tolist(), abs=1e-6)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("k", [10, 100])
def test_equal_images_rank_in_their_order(k):
    features = random_features(300)
    copies = torch.randperm(300, generator=torch.Generator().manual_seed(2))[:120].sort().values
    # Batches of other sizes round otherwise: copies differ in the last digits.
    features[copies] = features[copies[0]] * (1 + 1e-7 * random_features(120, width=8, seed=3))
    (hits,) = index_of(features).search(features[copies[:1]], k)
    assert [hit.image for hit in hits] == [f"{number:05d}.png" for number in copies[:k].tolist()]


@pytest.mark.usefixtures("backend")
def test_more_hits_than_images_are_all_images():
    (hits,) = index_of(random_features(3)).search(random_features(1), 10)
    assert sorted(hit.image for hit in hits) == ["00000.png", "00001.png", "00002.png"]


@pytest.mark.parametrize(
    ("texts", "k", "expected"),
    [
        (random_features(1), 0, "k must be at least 1"),
        (random_features(1, width=9), 5, r"\[M, 8\].*\[1, 9\]"),
        (random_features(1)[0], 5, r"\[M, 8\].*\[8\]"),
        (random_features(1) * torch.nan, 5, "finite"),
    ],
)
def test_unusable_queries_are_refused(texts, k, expected):
    with pytest.raises(ValueError, match=expected):
        index_of(random_features(3)).search(texts, k)


def test_a_saved_index_finds_the_same(encoder, folder, tmp_path):
    index = SearchIndex.build(encoder, files(folder))
    path = tmp_path / "new" / "index.npz"
    index.save(path)
    loaded = SearchIndex.load(path)
    assert torch.equal(loaded.features, index.features)
    assert loaded.about == index.about
    texts = encode_texts(encoder, ["red", "blue"])
    assert loaded.search(texts, 6) == index.search(texts, 6)
    assert [file.name for file in path.parent.iterdir()] == ["index.npz"]


def test_another_file_is_not_taken_for_an_index(encoder, folder, tmp_path):
    path = tmp_path / "index.npz"
    SearchIndex.build(encoder, files(folder)).save(path)
    whole = path.read_bytes()
    other = io.BytesIO()
    np.savez(other, features=np.zeros((2, 2)))
    pickled = io.BytesIO()
    np.savez(pickled, features=np.zeros((2, 2)), about=np.array([{"format": "?"}], dtype=object))
    for content in (b"", b"no index", whole[: len(whole) // 2], other.getvalue(), pickled.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"index\.npz is damaged or not an index"):
            update_index(encoder, files(folder), path)
        assert path.read_bytes() == content


def test_only_what_changed_is_encoded(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    encoder, path, generator = fresh_encoder(), tmp_path / "index.npz", np.random.default_rng(1)
    counts = encoded_images(encoder)
    update_index(encoder, files(folder), path)
    assert sum(counts) == 6
    written = path.stat().st_mtime_ns
    update_index(encoder, files(folder), path)
    assert sum(counts) == 6
    assert path.stat().st_mtime_ns == written

    (folder / "b.png").unlink()
    write_image(folder / "c.png", generator)
    write_image(folder / "g.png", generator)
    index = update_index(encoder, files(folder), path)
    assert sum(counts) == 8
    assert "index of 6 images: 2 encoded now, 4 taken over, 1 gone" in caplog.messages
    anew = SearchIndex.build(encoder, files(folder))
    assert index.about == anew.about == SearchIndex.load(path).about
    torch.testing.assert_close(index.features, anew.features)


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
def test_images_in_other_files_are_found_too(folder, tmp_path, capsys, write, name):
    encoder, path = fresh_encoder(), tmp_path / "index.npz"
    counts = encoded_images(encoder)
    data = DataConfig(str(write(folder, tmp_path / name)), side="images")
    index = update_index(encoder, load_dataset(data).images, path)
    texts = encode_texts(encoder, ["red"])
    ((best, *_),) = index.search(texts, 6)
    ((expected, *_),) = SearchIndex.build(fresh_encoder(), files(folder)).search(texts, 6)
    assert best.similarity == expected.similarity
    assert open_image(best.image).tobytes() == open_image(expected.image).tobytes()
    show_hits("red", [best], tmp_path)
    assert str(best.image) in capsys.readouterr().out
    assert update_index(encoder, load_dataset(data).images, path).search(texts, 6) == index.search(texts, 6)
    assert sum(counts) == 6

    write_image(folder / "a.png", np.random.default_rng(1))
    write(folder, tmp_path / name)
    update_index(encoder, load_dataset(data).images, path)
    assert sum(counts) == 12


def test_another_encoder_builds_anew(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "index.npz"
    update_index(fresh_encoder(0), files(folder), path)
    index = update_index(fresh_encoder(1), files(folder), path)
    assert "the earlier index is of another encoder: every image is encoded anew" in caplog.messages
    assert torch.equal(index.features, SearchIndex.build(fresh_encoder(1), files(folder)).features)
    assert SearchIndex.load(path).encoder == encoder_fingerprint(fresh_encoder(1))


def test_the_fingerprint_tells_encoders_apart(tmp_path):
    encoder = fresh_encoder()
    found = {encoder_fingerprint(encoder), encoder_fingerprint(fresh_encoder(1))}
    encoder.export(tmp_path)
    assert encoder_fingerprint(build_encoder(f"tiny:{tmp_path}")) in found
    preprocess = encoder.preprocess
    encoder.preprocess = lambda image, train: preprocess(image, train) / 2
    found.add(encoder_fingerprint(encoder))
    del encoder.preprocess
    encoder.image.blocks[0].activation = torch.nn.ReLU()
    found.add(encoder_fingerprint(encoder))
    assert len(found) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_and_named(folder, caplog, workers):
    (folder / "a.png").write_bytes(b"not an image")
    (folder / "d.png").write_bytes((folder / "d.png").read_bytes()[:200])
    images = [*files(folder), str(folder / "missing.png")]
    index = SearchIndex.build(fresh_encoder(), images, workers=workers, batch_size=2)
    assert [Path(image).name for image in index.images] == ["b.png", "c.png", "e.png", "f.png"]
    torch.testing.assert_close(index.features, SearchIndex.build(fresh_encoder(), index.images).features)
    (message,) = caplog.messages
    assert message.startswith("3 of 7 images cannot be read and are left out:")
    assert all(name in message for name in ("a.png", "d.png", "missing.png"))


def test_features_that_are_not_finite_stop_with_the_image(folder):
    encoder = fresh_encoder()
    encoder.image.projection.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"a\.png: its features are not finite"):
        SearchIndex.build(encoder, files(folder))


def test_an_index_needs_images():
    with pytest.raises(ValueError, match="no images"):
        SearchIndex.build(fresh_encoder(), [])


def test_each_way_to_read_a_data_set_has_an_index_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ways = [DataConfig("data/pairs.csv"), DataConfig("data/other.csv"), DataConfig("data/pairs.csv", split="test")]
    assert len({default_index("out", way) for way in ways}) == 3
    assert default_index("out", ways[0]) == default_index("out", DataConfig(str(tmp_path / "data" / "pairs.csv")))
    assert default_index("out", ways[0]).name.startswith("pairs.csv-")


def test_a_sheet_shows_each_image_whole_and_frames_right_ones(tmp_path):
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "small.png")
    Image.new("RGB", (1600, 800), "red").save(tmp_path / "photo.png")
    Image.new("RGB", (3000, 1), "red").save(tmp_path / "line.png")
    small, photo, line = (str(tmp_path / f"{name}.png") for name in ("small", "photo", "line"))
    hits = [[Hit(small, 0.9), Hit(photo, 0.8)], [Hit(photo, 0.7), Hit(line, 0.6)]]
    sheet = contact_sheet(["first", "second"], hits, [{photo}, {small}], size=100)
    pixels = np.asarray(sheet)

    def extent(color):
        rows, columns = np.nonzero((pixels == color).all(axis=-1))
        return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1

    top, left, bottom, right = extent((0, 0, 255))
    assert (bottom - top, right - left) == (100, 100)
    # The photo is on the right in the first row and on the left in the second, half as high as wide.
    red = (pixels == (255, 0, 0)).all(axis=-1)
    first = red[top:bottom]
    assert first[:, right:].sum() == 100 * 50
    assert first[:, :right].sum() == 0
    assert red[bottom:, left:right].sum() == 100 * 50
    assert red[bottom:, right:].sum() == 100
    frame_top, frame_left, _, frame_right = extent(GREEN)
    assert right < frame_left
    assert frame_right - frame_left == 100 + 2 * (top - frame_top)


def test_a_sheet_without_answers_has_no_frame_and_wraps(tmp_path):
    path = str(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "blue").save(path)

    def sheet(count, text="a"):
        return contact_sheet([text], [[Hit(path, 0.5)] * count], columns=3)

    assert not (np.asarray(sheet(4)) == GREEN).all(axis=-1).any()
    assert sheet(3).width == sheet(4).width > sheet(2).width > sheet(1).width
    assert sheet(3).height == sheet(1).height < sheet(4).height == sheet(6).height
    for text in ("word " * 60, "w" * 200):
        wrapped = sheet(2, text)
        assert wrapped.width == sheet(2).width
        assert wrapped.height > sheet(2).height
        # Nothing is cut off at the right.
        assert (np.asarray(wrapped)[:, -8:] == 255).all()


def test_a_sheet_needs_hits_for_each_query():
    with pytest.raises(ValueError, match="0 queries"):
        contact_sheet([], [])
    with pytest.raises(ValueError, match="2 queries, 1 lists of hits"):
        contact_sheet(["a", "b"], [[]])
    with pytest.raises(ValueError, match="1 of answers"):
        contact_sheet(["a", "b"], [[], []], [set()])


def printed_hits(output):
    """Names of the images by the query that they were printed under."""
    found, query = {}, ""
    for line in output.splitlines():
        if line.startswith("picture: "):
            assert Path(line.removeprefix("picture: ")).is_file()
        elif line.startswith(" "):
            rank, similarity, name = line.split()
            found[query].append(Path(name).stem)
            assert int(rank) == len(found[query])
            assert -1 <= float(similarity) <= 1
        else:
            query = line
            found[query] = []
    return found


def test_a_trained_encoder_finds_the_images_of_texts(training, encoder, tmp_path, capsys):
    queries = [f"a {color} picture" for color in COLORS]
    trained = ["--config", str(training / "out" / "config.yaml"), "--checkpoint", str(training / "out" / "last.pt")]
    where = ["--images", str(training / "images"), "--output", str(tmp_path), "--top", "3"]
    assert search.main([*trained, *where, *(part for query in queries for part in ("--query", query))]) == 0
    found = printed_hits(capsys.readouterr().out)
    assert [names[0] for names in found.values()] == list(COLORS)
    assert list(found) == queries
    assert all(len(names) == 3 for names in found.values())
    assert len(list(tmp_path.glob("*.png"))) == len(COLORS)
    with Image.open(next(tmp_path.glob("a-red-picture-*.png"))) as picture:
        assert (np.asarray(picture.convert("RGB")) == (255, 0, 0)).all(axis=-1).any()

    encoder.export(tmp_path / "encoder")
    table = ["--images", str(training / "pairs.csv"), "image_column=file", "--output", str(tmp_path), "--top", "3"]
    exported = ["--encoder", f"tiny:{tmp_path / 'encoder'}"]
    assert search.main([*exported, *table, "--query", queries[0]]) == 0
    assert printed_hits(capsys.readouterr().out) == {queries[0]: found[queries[0]]}


def test_queries_are_read_from_the_standard_input(training, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a red picture\n\n  a blue picture  \n"))
    arguments = ["--config", str(training / "out" / "config.yaml"), "--checkpoint", str(training / "out" / "last.pt")]
    arguments += ["--images", str(training / "images"), "--output", str(tmp_path), "--top", "99"]
    assert search.main(arguments) == 0
    found = printed_hits(capsys.readouterr().out)
    assert {query: names[0] for query, names in found.items()} == {"a red picture": "red", "a blue picture": "blue"}
    assert all(len(names) == len(COLORS) for names in found.values())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"--images": "nowhere"}, "nowhere does not exist"),
        ({"--images": "empty"}, "empty has no images"),
        ({"--images": "broken"}, "none of the 2 images can be read"),
        ({"--images": "captions.txt"}, "captions.txt has no images"),
        ({"--checkpoint": "nowhere.pt"}, "no such checkpoint: nowhere.pt"),
        ({"--checkpoint": "captions.txt"}, "captions.txt is damaged or not a checkpoint"),
        ({"--checkpoint": None}, "--config and --checkpoint belong together"),
        ({"--config": None}, "--config"),
        ({"--config": None, "--checkpoint": None, "--encoder": "word2vec"}, "unknown encoder 'word2vec'"),
        ({"--config": None, "--checkpoint": None, "--encoder": "tiny:nowhere"}, "no tiny_config.json in"),
        ({"--config": None, "--checkpoint": None, "--encoder": "tiny"}, "--encoder tiny is random"),
        ({"--index": "captions.txt"}, "captions.txt is damaged or not an index"),
        ({"--query": " "}, "--query: is empty"),
        ({"--query": None}, "no query"),
        ({"--top": "0"}, "--top: must be a whole number of at least 1, got '0'"),
        ({"--images": "pairs.csv"}, "no column 'image'"),
        ({"": "colum=image"}, "option 'colum=image'"),
        ({"": "side=texts"}, "option 'side=texts'"),
    ],
)
def test_a_mistake_is_named(training, tmp_path, capsys, monkeypatch, change, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for name in ("empty", "broken"):
        Path(name).mkdir()
    for name in ("a.png", "b.jpg"):
        (Path("broken") / name).write_bytes(b"not an image")
    Path("captions.txt").write_text("a red picture\n")
    Path("pairs.csv").write_text("file,caption\na.png,a red picture\n")
    arguments = {
        "--config": str(training / "out" / "config.yaml"),
        "--checkpoint": str(training / "out" / "last.pt"),
        "--images": str(training / "images"),
        "--query": "a red picture",
    }
    given = [part for pair in (arguments | change).items() if pair[1] is not None for part in pair if part]
    try:
        code = search.main(given)
    except SystemExit as error:
        code = error.code
    assert code == 2
    message = capsys.readouterr().err
    assert "error: " in message
    assert expected in message[message.index("error: ") :]
    assert not list(tmp_path.rglob("*.npz"))


def test_the_index_file_holds_plain_arrays(encoder, folder, tmp_path):
    SearchIndex.build(encoder, files(folder)).save(tmp_path / "index.npz")
    with np.load(tmp_path / "index.npz", allow_pickle=False) as content:
        assert content["features"].dtype == np.float32
        assert json.loads(content["about"].tobytes())["images"] == files(folder)
        np.testing.assert_allclose(np.linalg.norm(content["features"], axis=1), 1, rtol=1e-6)
