"""gh-downstream search, on an encoder that knows the colours of images."""

from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from accelerate.state import AcceleratorState
from PIL import Image
from typer.testing import CliRunner

from gh_downstream.cli.search import search
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.engine import build_trainer, export_encoder
from gh_downstream.training import load_config

CONFIG = """
output: {root}/out
encoder: tiny
init: random
encoder_options: {{width: 32, image_size: 32}}
source: {{path: {root}/pairs.csv}}
batch_size: 8
optimizer: {{name: adamw, lr: 0.001, schedule: cosine}}
training: {{steps: 40, workers: 0}}
"""
COLORS = ("red", "green", "blue", "yellow", "purple", "black", "white", "cyan")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Folder of the images, the table, the configuration, the training's output and the exported encoder."""
    root = tmp_path_factory.mktemp("colors")
    rows = ["image,caption"]
    (root / "images").mkdir()
    for color in COLORS:
        Image.new("RGB", (40, 24), color).save(root / "images" / f"{color}.png")
        rows.append(f"images/{color}.png,a {color} picture")
    (root / "pairs.csv").write_text("\n".join(rows))
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)
    (root / "config.yaml").write_text(CONFIG.format(root=root))
    config = load_config(RetrievalConfig, root / "config.yaml")
    build_trainer(config).run()
    export_encoder(config, root / "out" / "last.pt", root / "encoder")
    return root


def run(options, stdin=""):
    """Call the command with options by name; None leaves one out, a list gives it several times."""
    app = typer.Typer()
    app.command()(search)
    arguments = []
    for name, values in options.items():
        for value in values if isinstance(values, list) else [values]:
            arguments += [] if value is None else [f"--{name}", str(value)]
    return CliRunner().invoke(app, arguments, input=stdin)


def options(training, output):
    return {
        "config": training / "out" / "config.yaml",
        "checkpoint": training / "out" / "last.pt",
        "images": training / "images",
        "output": output,
    }


def printed_hits(output):
    """Names of the images by the query that they were printed under."""
    found, query = {}, ""
    *lines, last = output.splitlines()
    assert Path(last.removeprefix("picture: ")).is_file()
    for line in lines:
        if line.startswith(" "):
            rank, similarity, name = line.split()
            found[query].append(Path(name).stem)
            assert int(rank) == len(found[query])
            assert -1 <= float(similarity) <= 1
        else:
            query = line
            found[query] = []
    return found


def test_a_trained_encoder_finds_the_images_of_texts(training, tmp_path):
    queries = [f"a {color} picture" for color in COLORS]
    result = run(options(training, tmp_path) | {"top": 3, "query": queries})
    assert result.exit_code == 0
    found = printed_hits(result.stdout)
    assert [names[0] for names in found.values()] == list(COLORS)
    assert list(found) == queries
    assert all(len(names) == 3 for names in found.values())
    assert [path.name for path in tmp_path.iterdir()] == ["hits.png"]
    with Image.open(tmp_path / "hits.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert all((pixels == color).all(axis=-1).any() for color in ((255, 0, 0), (0, 0, 255), (0, 255, 255)))

    exported = {"config": None, "checkpoint": None, "encoder": f"tiny:{training / 'encoder'}"}
    table = {"images": training / "pairs.csv", "top": 3, "query": queries[0]}
    result = run(options(training, tmp_path) | exported | table)
    assert printed_hits(result.stdout) == {queries[0]: found[queries[0]]}


def test_queries_are_read_from_the_standard_input(training, tmp_path):
    result = run(options(training, tmp_path) | {"top": 99}, "a red picture\n\n  a blue picture  \n")
    found = printed_hits(result.stdout)
    assert {query: names[0] for query, names in found.items()} == {"a red picture": "red", "a blue picture": "blue"}
    assert all(len(names) == len(COLORS) for names in found.values())


def test_names_of_files_do_not_command_the_terminal(training, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 24), "red").save(tmp_path / "images" / "a\x1b[2J\n.png")
    result = run(options(training, tmp_path) | {"images": tmp_path / "images", "query": "a\x1b[2Jred picture"})
    assert r"a\x1b[2J\n.png" in result.stdout
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": "nowhere"}, "nowhere does not exist"),
        ({"images": "empty"}, "empty has no images"),
        ({"images": "broken"}, "none of the 2 images can be read"),
        ({"images": "captions.txt"}, "captions.txt has no images"),
        ({"images": "pairs.csv"}, "no column 'image'"),
        ({"config": "retrieval/mini", "checkpoint": "nowhere.pt"}, "no such checkpoint: nowhere.pt"),
        ({"config": "retrieval/nothing"}, "retrieval/nothing"),
        ({"checkpoint": "nowhere.pt"}, "no such checkpoint: nowhere.pt"),
        ({"checkpoint": "captions.txt"}, "captions.txt is damaged or not a checkpoint"),
        ({"checkpoint": None}, "--config and --checkpoint"),
        ({"config": None}, "--config and --checkpoint"),
        ({"config": None, "checkpoint": None}, "--encoder"),
        ({"encoder": "tiny:nowhere"}, "--encoder alone"),
        ({"config": None, "checkpoint": None, "encoder": "word2vec"}, "unknown encoder 'word2vec'"),
        ({"config": None, "checkpoint": None, "encoder": "tiny:nowhere"}, "no tiny_config.json in"),
        ({"config": None, "checkpoint": None, "encoder": "tiny"}, "'tiny' has no pretrained weights"),
        ({"query": " "}, "text 1 of 1 is empty"),
        ({"query": None}, "no query"),
    ],
)
def test_a_mistake_is_named(training, tmp_path, monkeypatch, change, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken"):
        Path(name).mkdir()
    for name in ("a.png", "b.jpg"):
        (Path("broken") / name).write_bytes(b"not an image")
    Path("captions.txt").write_text("a red picture\n")
    Path("pairs.csv").write_text("file,caption\na.png,a red picture\n")
    error = run(options(training, "out") | {"query": "a red picture"} | change).exception
    assert isinstance(error, (OSError, ValueError))
    assert expected in str(error)
    assert not Path("out").exists()


def test_at_least_one_image_is_asked_for(training, tmp_path):
    result = run(options(training, tmp_path) | {"query": "a red picture", "top": 0})
    assert result.exit_code == 2
    assert "--top" in result.output
