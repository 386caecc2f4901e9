"""Files of every format, changed at random: they are read, or refused in one line that names them."""

import json
import random
import shutil
from pathlib import Path

import datasets
import pytest

from gh_downstream.retrieval.data import DataConfig, load_dataset
from tests.retrieval.data.test_load import FLICKR, TOKENS, coco, karpathy, table_of
from tests.retrieval.data.test_webdataset import numbered, shard

VALUES = [None, True, -1, 1e308, float("nan"), float("inf"), 10**400, "", " ", "\ud800", "\0", "../x", [], {}, [[]]]
VALUES += ["[", "['a' 'b']", '{"a": 1}', "https://a.b/c.png", "a" * 200_000, {"raw": 7}, [None, "a", 3]]


def tables(folder):
    """A small file of each text format, and how it is read."""
    files = {f"t{suffix}": table_of(folder / f"t{suffix}", "split") for suffix in (".csv", ".jsonl", ".json")}
    for name, content in {
        "karpathy.json": karpathy(),
        "coco.json": coco(),
        "captions.txt": FLICKR,
        "f.token": TOKENS,
        "plain.txt": "one\ntwo\n",
    }.items():
        (folder / name).write_text(content)
        files[name] = folder / name
    return {Path(path): "train" if name[0] in "tk" else None for name, path in files.items()}


def check(path, **options):
    """Read a file that may be damaged, under both limits of what may be left out."""
    for max_skipped in (0.0, 0.9):
        try:
            dataset = load_dataset(DataConfig(str(path), **options), max_skipped)
        except (ValueError, FileNotFoundError) as error:
            message = str(error)
            assert str(path).split("{")[0] in message
            assert "\n" not in message
            assert len(message) < 3000
        else:
            assert all(isinstance(text, str) and text.strip() and text.encode() for text in dataset.texts)
            assert len(dataset.image_of_text) in (0, len(dataset.texts))


def damaged(content, rng):
    """Bytes with a few of them changed, left out, doubled or cut off."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            content[at : at + 1] = bytes([rng.choice([*b'"[]{},:\\\0\n\t;|#', rng.randrange(256)])])
        elif kind == 1:
            del content[at : at + rng.randint(1, 20)]
        elif kind == 2:
            content[at:at] = content[max(0, at - rng.randint(1, 30)) : at]
        else:
            del content[len(content) - rng.randint(0, 10) :]
    return bytes(content)


def changed(value, rng):
    """A JSON value with one of its parts replaced, or taken out."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(list(keys))
        copy = dict(value) if isinstance(value, dict) else list(value)
        if rng.random() < 0.1:
            del copy[key]
        else:
            copy[key] = changed(copy[key], rng)
        return copy
    return rng.choice(VALUES)


@pytest.mark.parametrize("side", ["both", "images", "texts"])
def test_any_bytes_of_a_text_file_are_read_or_refused_in_one_line(tmp_path, side):
    rng = random.Random(side)
    for path, split in tables(tmp_path).items():
        whole = path.read_bytes()
        for _ in range(60):
            path.write_bytes(damaged(whole, rng))
            check(path, side=side, split=split)


@pytest.mark.parametrize("name", ["t.csv", "t.txt"])
@pytest.mark.parametrize("header", ["a" * 200_000, "image,caption\0"], ids=["long", "nul"])
def test_a_header_that_csv_cannot_read_is_read_or_refused_in_one_line(tmp_path, name, header):
    (tmp_path / name).write_text(f"{header}\nx.png,a dog\n")
    check(tmp_path / name)


@pytest.mark.parametrize("side", ["both", "images", "texts"])
def test_any_value_in_a_json_is_read_or_refused_in_one_line(tmp_path, side):
    rng = random.Random(side)
    for content, split in ((karpathy(), "train"), (coco(), None), ('[{"image": "x", "caption": ["a", "b"]}]', None)):
        for _ in range(150):
            (tmp_path / "t.json").write_text(json.dumps(changed(json.loads(content), rng)))
            check(tmp_path / "t.json", side=side, split=split)
            row = changed({"image": "x", "caption": ["a", "b"]}, rng)
            (tmp_path / "t.jsonl").write_text(json.dumps(row) + '\n{"image": "y", "caption": "c"}\n')
            check(tmp_path / "t.jsonl", side=side)


@pytest.mark.parametrize("depth", [10**5])
def test_deep_nesting_is_refused_in_one_line(tmp_path, depth):
    for name, content in {
        "t.json": "[" * depth,
        "u.json": '{"images": ' + "[" * depth + "]" * depth + "}",
        "t.jsonl": '{"a":' * depth,
        "v.jsonl": json.dumps({"image": "x", "caption": "[" * depth + "]" * depth}),
        "w.jsonl": json.dumps({"image": "x", "caption": "['a'," + "(" * depth + ")" * depth + "]"}),
    }.items():
        (tmp_path / name).write_text(content)
        check(tmp_path / name)


def test_any_bytes_of_a_shard_are_read_or_refused_in_one_line(tmp_path):
    rng = random.Random(0)
    samples = numbered(0, 2) | {"0002": {"json": {"caption": ["a", "b"]}, "jpg": b"1"}}
    path = shard(tmp_path / "a.tar", samples)
    whole = path.read_bytes()
    headers = [at + offset for at in range(0, len(whole), 512) for offset in range(0, 512, 3)]
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.choice(headers)] = rng.randrange(256)
        path.write_bytes(bytes(content) if rng.random() < 0.8 else damaged(whole, rng))
        check(path, side=rng.choice(["both", "images", "texts"]))


def test_any_bytes_of_a_saved_table_are_read_or_refused_in_one_line(tmp_path):
    datasets.disable_progress_bars()
    rng = random.Random(0)
    data = datasets.Dataset.from_dict({"image": ["a.png", "b.png"], "caption": [["one", "two"], ["three"]]})
    data.save_to_disk(str(tmp_path / "whole"))
    data.to_parquet(str(tmp_path / "t.parquet"))
    whole = (tmp_path / "t.parquet").read_bytes()
    files = ["state.json", "dataset_info.json"]
    for number in range(30):
        folder = tmp_path / f"d{number}"
        shutil.copytree(tmp_path / "whole", folder)
        file = folder / rng.choice(files)
        file.write_bytes(damaged(file.read_bytes(), rng))
        check(folder, format="hf")
        (tmp_path / f"t{number}.parquet").write_bytes(damaged(whole, rng))
        check(tmp_path / f"t{number}.parquet")
