"""Zero-shot accuracy and the ranks of queries, at the command line and against open_clip."""

import json
import shutil
import statistics
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import normalize

from gh_downstream.cli.main import run
from gh_downstream.retrieval.data import DataConfig, load_dataset
from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes
from gh_downstream.retrieval.encoders import build_encoder
from gh_downstream.retrieval.encoding import evaluate_model
from gh_downstream.retrieval.evaluation import evaluate_zero_shot
from gh_downstream.training import read_metrics
from tests.retrieval.encoders.tiny_models import open_clip_folder

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "brown")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Mini-scenes, and in ``colours`` folders of classes with three images each, nearly of one colour."""
    root = tmp_path_factory.mktemp("zero_shot")
    make_mini_scenes(root / "scenes", train=40, target=8, val=8, test=20, seed=1)
    generator = torch.Generator().manual_seed(0)
    for colour in COLOURS:
        (root / "colours" / f"{colour}_thing").mkdir(parents=True)
        for number in range(3):
            image = Image.new("RGB", (16, 16), colour)
            image.putpixel((3, 3), tuple(torch.randint(256, (3,), generator=generator).tolist()))
            image.save(root / "colours" / f"{colour}_thing" / f"{number}.png")
    return root


def words(data, output):
    templates = "['a {}.', 'a photo of a {}.']"
    return [
        *(f"source.path={data / 'scenes' / 'source' / 'train.csv'}", "alignment.mmd.weight=0"),
        *(f"validation.{name}.path={data / 'scenes' / 'source' / 'test.csv'}" for name in ("source", "target")),
        f"validation.colours={{path: {data / 'colours'}, format: classes, templates: {templates}}}",
        *(f"output={output}", "batch_size=8", "encoder_options={width: 32, layers: 1, embed_dim: 16}"),
        *("harmonization.weighting=none", "training.steps=2", "optimizer.warmup_steps=0"),
    ]


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 8), st.integers(1, 9))
def test_ranks_are_those_of_a_sort_with_the_class_behind_what_it_ties_with(seed, images, classes, chunk):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(-1, 2, (n, 2), generator=generator).float() for n in (images, classes))
    labels = torch.randint(classes, (images,), generator=generator)
    result = evaluate_zero_shot(x, y, labels, "a", chunk=chunk)
    similarities = (normalize(x.double()) @ normalize(y.double()).T).round(decimals=9)
    expected = [
        1 + sum(value >= row[own] for k, value in enumerate(row) if k != own)
        for row, own in zip(similarities.tolist(), labels.tolist(), strict=True)
    ]
    assert result.ranks == {"zero_shot": expected}
    assert (result.num_images, result.num_texts) == (images, classes)
    for k in (1, 5):
        assert result.metrics[f"zero_shot_top{k}"] == pytest.approx(100 * sum(r <= k for r in expected) / images)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="data set 'a': the features of 1 of 2 texts are not finite"):
        evaluate_zero_shot(torch.ones(3, 2), torch.tensor([[1, torch.nan], [1, 1]]), torch.zeros(3).long(), "a")


@pytest.mark.parametrize("templates", [None, ["simple", "my {}"]])
def test_accuracy_is_that_of_open_clip_s_classifier(data, tmp_path, templates):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    encoder = build_encoder(f"openclip:local-dir:{open_clip_folder(tmp_path / 'model')}", init="random").eval()
    dataset = load_dataset(DataConfig(str(data / "colours"), format="classes", templates=templates))
    ours = evaluate_model(encoder, {"colours": dataset}, batch_size=7)["colours"].metrics
    encoder.export(tmp_path / "export")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'export'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'export'}")
    names = [f"{colour} thing" for colour in sorted(COLOURS)]
    chosen = ["a photo of a {}."]
    if templates:
        chosen = [fill("{}") for fill in open_clip.SIMPLE_IMAGENET_TEMPLATES] + ["my {}"]
    classifier = open_clip.build_zero_shot_classifier(model.eval(), tokenizer, names, chosen)
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(image)) for image in dataset.images])
        order = (model.encode_image(pixels, normalize=True) @ classifier).argsort(1, descending=True)
    labels = torch.arange(len(names)).repeat_interleave(3)[:, None]
    theirs = {f"zero_shot_top{k}": 100 * (order[:, :k] == labels).any(1).float().mean().item() for k in (1, 5)}
    assert ours == pytest.approx(theirs)
    assert 0 < ours["zero_shot_top5"] < 100


def test_classes_of_one_name_are_one(data, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(["thing", "Thing", *COLOURS[2:]]))
    dataset = load_dataset(DataConfig(str(data / "colours"), format="classes", class_names=str(tmp_path / "names.txt")))
    torch.manual_seed(0)
    encoder = build_encoder("tiny", init="random", width=32, layers=1, embed_dim=16).eval()
    assert evaluate_model(encoder, {"a": dataset})["a"].num_texts == 7


def test_a_class_whose_images_cannot_be_read_is_a_wrong_answer_still(data, tmp_path):
    shutil.copytree(data / "colours", tmp_path / "colours")
    for path in (tmp_path / "colours" / "blue_thing").iterdir():
        path.write_bytes(b"no image")
    torch.manual_seed(0)
    encoder = build_encoder("tiny", init="random", width=32, layers=1, embed_dim=16).eval()
    whole, damaged = (
        evaluate_model(encoder, {"a": load_dataset(DataConfig(str(root), format="classes"))}, max_skipped=0.2)["a"]
        for root in (data / "colours", tmp_path / "colours")
    )
    assert (damaged.num_images, damaged.num_texts) == (21, 8)
    ranks = whole.ranks["zero_shot"]
    assert damaged.ranks["zero_shot"] == [r for k, r in enumerate(ranks) if k // 3 != 1]


def test_training_and_evaluation_report_accuracy_beside_recall(data, tmp_path, capsys):
    options = words(data, tmp_path / "out")
    best = "training.best_metric=colours/zero_shot_top1"
    assert run(["train", "--config", "retrieval/mini", *options, best]) == 0
    printed = capsys.readouterr().out
    assert "Recall of out" in printed
    assert "Zero-shot accuracy of out" in printed
    text = (tmp_path / "out" / "results.md").read_text()
    assert text.count("Recall of out") == text.count("Zero-shot accuracy of out") == 1
    logged = [line for line in read_metrics(tmp_path / "out" / "metrics.jsonl") if "source/mean_recall" in line][-1]
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert results["colours"].keys() == {"name", "num_images", "num_texts", "metrics"}
    assert (results["colours"]["num_images"], results["colours"]["num_texts"]) == (24, 8)
    for k in (1, 5):
        name = f"zero_shot_top{k}"
        assert logged[f"colours/{name}"] == results["colours"]["metrics"][name]
    assert (tmp_path / "out" / "best.pt").exists()


def lines_of(path):
    found = defaultdict(list)
    for line in map(json.loads, path.read_text().splitlines()):
        found[line["data"], line["direction"]].append(line)
    return found


def test_the_metrics_are_those_of_the_file_of_ranks(data, tmp_path):
    options = words(data, tmp_path / "out")
    ranks = tmp_path / "new" / "ranks.jsonl"
    assert run(["evaluate", "--config", "retrieval/mini", "--ranks", str(ranks), *options]) == 0
    results = json.loads((tmp_path / "out" / "evaluation" / "results.json").read_text())["results"]
    found = lines_of(ranks)
    directions = ("image_to_text", "text_to_image")
    assert found.keys() == {
        ("colours", "zero_shot"),
        *((name, direction) for name in ("source", "target") for direction in directions),
    }
    for (name, direction), lines in found.items():
        metrics, positions = results[name]["metrics"], [line["rank"] for line in lines]

        def share(k, positions=positions):
            return pytest.approx(100 * sum(position <= k for position in positions) / len(positions))

        if direction == "zero_shot":
            assert all(metrics[f"zero_shot_top{k}"] == share(k) for k in (1, 5))
        else:
            assert all(metrics[f"{direction}_R@{k}"] == share(k) for k in (1, 5, 10))
            assert metrics[f"{direction}_median_rank"] == int(statistics.median(positions))
            assert len(lines) == results[name]["num_images" if direction == "image_to_text" else "num_texts"]
    dataset = load_dataset(DataConfig(str(data / "scenes" / "source" / "test.csv")))
    texts_of = defaultdict(set)
    for k, text in zip(dataset.image_of_text, dataset.texts, strict=True):
        texts_of[dataset.images[k]].add(text)
    for line in found["source", "image_to_text"]:
        assert (line["rank"] == 1) == (line["top"] in texts_of[line["query"]])
    for line in found["source", "text_to_image"]:
        assert (line["rank"] == 1) == (line["query"] in texts_of[line["top"]])
    for line in found["colours", "zero_shot"]:
        assert (line["rank"] == 1) == (line["top"].replace(" ", "_") in line["query"])


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--ranks", "."], ". is a folder"),
        (["source.format=classes"], "source: format=classes is for validation"),
        (["validation.colours.templates=[a photo]"], "validation.colours: templates: 'a photo' has no {}"),
        (["validation.colours.class_names=gone.txt"], "gone.txt"),
        (["validation.colours={path: ., format: folder, templates: null}"], "give format=classes"),
        (["training.best_metric=colours/mean_recall"], "colours/zero_shot_top1, colours/zero_shot_top5"),
    ],
)
def test_a_mistake_is_one_line(data, tmp_path, capsys, monkeypatch, more, named):
    options = words(data, tmp_path / "out")
    monkeypatch.chdir(data)
    assert run(["evaluate", "--config", "retrieval/mini", *options, *more]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_ranks_are_of_retrieval(capsys):
    assert run(["evaluate", "--config", "classification/digits", "--checkpoint", "x.pt", "--ranks", "y.jsonl"]) == 2
    assert "--ranks is for retrieval" in capsys.readouterr().err
