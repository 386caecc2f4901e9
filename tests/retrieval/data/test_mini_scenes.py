import json
import logging
import random
from collections import Counter

import pytest
from PIL import Image

from gh_downstream.cli.main import run
from gh_downstream.data.images import open_image, unreadable_images
from gh_downstream.retrieval.data import DataConfig, load_dataset, make_mini_scenes
from gh_downstream.retrieval.data.mini_scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    TINT,
    Scene,
    Thing,
    choose_scenes,
    draw_scene,
)

COUNTS = {"train": 40, "target": 20, "val": 12, "test": 10}
TABLES = {
    ("source", "train"): ("source/train.csv", 40),
    ("source", "val"): ("source/val.csv", 12),
    ("source", "test"): ("source/test.csv", 10),
    ("target", "train"): ("target/train.jsonl", 20),
    ("target", "val"): ("target/val.jsonl", 12),
    ("target", "test"): ("target/test.jsonl", 10),
}
ONE = Scene(Thing("large", "red", "circle"), "left of", Thing("small", "blue", "star"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets") / "mini"
    make_mini_scenes(root, **COUNTS, seed=3)
    return root


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def scene_of(caption):
    (relation,) = (relation for relation in RELATIONS if f" {relation} " in caption)
    things = [Thing(*words.split()[1:]) for words in caption.split(f" {relation} ")]
    return Scene(things[0], relation, things[1])


def captions(root):
    return {key: load_dataset(DataConfig(str(root / name))).texts for key, (name, _) in TABLES.items()}


def pixels_near(image, colour):
    """Columns and rows of the pixels of a colour, up to 10 in each channel."""
    return [
        (x, y)
        for x in range(image.width)
        for y in range(image.height)
        if all(abs(a - b) <= 10 for a, b in zip(image.getpixel((x, y)), colour, strict=True))
    ]


def test_every_table_reads_with_the_defaults_and_every_image_opens(root):
    expected = {"manifest.json"} | {name for name, _ in TABLES.values()}
    for (domain, split), (name, count) in TABLES.items():
        dataset = load_dataset(DataConfig(str(root / name)))
        assert len(dataset.images) == len(dataset.texts) == count
        assert dataset.image_of_text == list(range(count))
        assert unreadable_images(dataset.images) == []
        assert {open_image(path).size for path in dataset.images} == {(64, 64)}
        expected |= {f"{domain}/images/{split}/{index:06d}.png" for index in range(count)}
    assert set(files(root)) == expected


def test_training_images_of_the_target_load_without_their_captions(root):
    dataset = load_dataset(DataConfig(str(root / "target/train.jsonl"), side="images"))
    assert len(dataset.images) == 20
    assert not dataset.texts
    assert not dataset.image_of_text


def test_captions_follow_the_grammar(root):
    for texts in captions(root).values():
        for text in texts:
            scene = scene_of(text)
            for thing in (scene.first, scene.second):
                assert thing.size in SIZES
                assert thing.colour in COLOURS
                assert thing.shape in SHAPES
            assert scene.caption == text


@pytest.mark.parametrize("seed", [0, 1])
def test_no_caption_is_given_twice_and_no_scene_is_in_two_splits(seed):
    # Nearly all that there is, so that any overlap that the choice allows would show.
    counts = {"train": 250, "target": 150, "val": 1900, "test": 2000}
    chosen = choose_scenes(**counts, seed=seed)
    assert {key: len(scenes) for key, scenes in chosen.items()} == {
        (domain, split): counts["target" if (domain, split) == ("target", "train") else split]
        for domain, split in TABLES
    }
    captions = [scene.caption for scenes in chosen.values() for scene in scenes]
    assert len(set(captions)) == len(captions)
    scenes = {
        split: [
            min(scene, scene.reversed) for (_, other), scenes in chosen.items() if other == split for scene in scenes
        ]
        for split in ("train", "val", "test")
    }
    held_out = scenes["val"] + scenes["test"]
    assert len(set(held_out)) == len(held_out)
    assert not set(scenes["train"]) & set(held_out)


def test_words_are_used_evenly():
    scenes = choose_scenes(6000, 3000, 500, 500, seed=0)
    for key, chosen in scenes.items():
        words = Counter(word for scene in chosen for word in (scene.relation, *scene.first, *scene.second))
        for names, things in ((SIZES, 2), (COLOURS, 2), (SHAPES, 2), (RELATIONS, 1)):
            expected = things * len(chosen) / len(names)
            # Five standard deviations of as many independent draws.
            assert all(abs(words[name] - expected) < 5 * expected**0.5 for name in names), key


def test_more_than_there_is_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"take 8000 of 8192 scenes and leave 384 captions, of which .* take 400"):
        make_mini_scenes(tmp_path / "new", train=300, target=100, val=2000, test=2000)
    with pytest.raises(ValueError, match="ask for fewer"):
        make_mini_scenes(tmp_path / "new", val=3000, test=2000)
    assert not (tmp_path / "new").exists()


# ---- drawings


@pytest.mark.parametrize("domain", ["source", "target"])
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_a_drawing_shows_what_the_caption_says(domain, relation, size):
    scene = Scene(Thing(size, "red", "square"), relation, Thing("large", "blue", "circle"))
    for number in range(10):
        image = draw_scene(scene, domain, 64, random.Random(number))
        # The colours as they are through the tint: those at the middle of each shape.
        background = image.getpixel((0, 0))
        tint = 0.0 if domain == "source" else TINT
        centres = {}
        for colour in ("red", "blue"):
            seen = [(1 - tint) * a + tint * b for a, b in zip(COLOURS[colour], background, strict=True)]
            pixels = pixels_near(image, seen)
            centres[colour] = [sum(values) / len(pixels) for values in zip(*pixels, strict=True)]
            if colour == "red":
                width = max(x for x, _ in pixels) - min(x for x, _ in pixels) + 1
                assert (width > 16) == (size == "large")
        along = 0 if relation in ("left of", "right of") else 1
        before = centres["red"][along] < centres["blue"][along] - 20
        assert before == (relation in ("left of", "above"))
        assert abs(centres["red"][1 - along] - centres["blue"][1 - along]) < 10


def test_shapes_of_a_size_and_colour_look_otherwise():
    images = [
        draw_scene(Scene(Thing("small", "red", shape), "above", ONE.second), "source", 64, random.Random(0))
        for shape in SHAPES
    ]
    assert len({image.tobytes() for image in images}) == len(SHAPES)


def test_the_source_is_clear_and_every_target_image_has_a_tint_of_its_own(root):
    corners = {
        domain: [open_image(str(path)).getpixel((0, 0)) for path in sorted((root / domain).rglob("*.png"))]
        for domain in ("source", "target")
    }
    assert set(corners["source"]) == {(255, 255, 255)}
    assert (255, 255, 255) not in corners["target"]
    assert len(set(corners["target"])) > 0.9 * len(corners["target"])


# ---- files


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(root, tmp_path):
    make_mini_scenes(tmp_path / "again", **COUNTS, seed=3)
    assert files(tmp_path / "again") == files(root)
    make_mini_scenes(tmp_path / "other", **COUNTS, seed=4)
    other = files(tmp_path / "other")
    assert other.keys() == files(root).keys()
    assert not any(other[name] == content for name, content in files(root).items())


def test_every_image_is_another_one(root):
    images = [content for name, content in files(root).items() if name.endswith(".png")]
    assert len(set(images)) == len(images)


def test_an_interrupted_tree_is_completed(root, tmp_path, monkeypatch):
    folder = tmp_path / "mini"
    drawn = []

    def fail_later(*arguments):
        if len(drawn) == 50:
            raise KeyboardInterrupt
        drawn.append(arguments)
        return draw_scene(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("gh_downstream.retrieval.data.mini_scenes.draw_scene", fail_later)
        with pytest.raises(KeyboardInterrupt):
            make_mini_scenes(folder, **COUNTS, seed=3)
    partial = files(folder)
    assert 50 <= len(partial) < len(files(root))
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    make_mini_scenes(folder, **COUNTS, seed=3)
    assert files(folder) == files(root)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_a_complete_tree_is_left_as_it_is(tmp_path, caplog):
    make_mini_scenes(tmp_path / "mini", **COUNTS, seed=3)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "mini").rglob("*")}
    with caplog.at_level(logging.INFO):
        make_mini_scenes(tmp_path / "mini", **COUNTS, seed=3)
    assert "there already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mini").rglob("*")} == times


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"notes.txt": "mine"}, "holds something else"),
        ({"manifest.json": "{"}, "manifest.json is not readable JSON"),
        ({"manifest.json": "[]"}, "made with None"),
        (
            {"manifest.json": json.dumps({"name": "mini_scenes", "arguments": {"seed": 9}})},
            r"made with \{'seed': 9\}, not",
        ),
    ],
)
def test_a_folder_of_something_else_is_left_untouched(tmp_path, content, message):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        make_mini_scenes(tmp_path, **COUNTS)
    assert str(tmp_path) in str(error.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize("fault", [{"train": 0}, {"target": 0}, {"val": 0}, {"test": 0}, {"seed": -1}, {"size": 31}])
def test_arguments_out_of_range_are_refused_before_anything_is_written(tmp_path, fault):
    ((name, value),) = fault.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        make_mini_scenes(tmp_path / "new", **{**COUNTS, **fault})
    assert not (tmp_path / "new").exists()


def test_the_tool_writes_the_same_and_says_what_is_wrong_in_one_line(root, tmp_path, capsys):
    arguments = [f"--{name}={count}" for name, count in COUNTS.items()]
    assert run(["data", "make", "scenes", str(tmp_path / "mini"), *arguments, "--seed=3"]) == 0
    assert files(tmp_path / "mini") == files(root)
    assert run(["data", "make", "scenes", str(tmp_path / "mini"), *arguments, "--seed=4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "choose another folder" in error
    assert error.count("\n") == 1


def test_the_size_of_the_images_is_as_asked(tmp_path):
    make_mini_scenes(tmp_path / "mini", 1, 1, 1, 1, size=48)
    assert Image.open(tmp_path / "mini/target/images/val/000000.png").size == (48, 48)
