import json
import os
from dataclasses import dataclass, field

import pytest

from gh_downstream.retrieval.data import DataConfig, RetrievalDataset, load_dataset
from gh_downstream.training import ConfigError, load_config


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load(path, **options):
    return load_dataset(DataConfig(str(path), **options))


def karpathy(**changes):
    """Two training images (one of them of ``restval``), one of test with two captions."""
    images = [
        {"filename": "a.jpg", "filepath": "train2014", "split": "train", "sentences": [{"raw": "an a"}]},
        {"filename": "b.jpg", "filepath": "val2014", "split": "restval", "sentences": [{"raw": "a b"}]},
        {"filename": "c.jpg", "split": "test", "sentences": [{"raw": "a c "}, {"raw": "sea"}]},
    ]
    images[0] |= changes
    return json.dumps({"dataset": "toy", "images": images})


# ---- tables


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_the_separator_is_found_whatever_the_captions_hold(tmp_path, separator):
    others = "".join(other for other in ",\t;|" if other != separator)
    rows = [["size", "image", "caption"], ["1", "x.png", f"one{others}two{others}three"], ["2", "y.png", "four"]]
    path = written(tmp_path / "t.csv", "".join(separator.join(row) + "\n" for row in rows))
    assert load(path).texts == [f"one{others}two{others}three", "four"]


def test_images_are_relative_to_the_table_or_to_the_folder_given(tmp_path):
    path = written(tmp_path / "t.csv", f"image,caption\nsub/x.png,one\n{tmp_path / 'y.png'},two\n")
    assert load(path).images == [str(tmp_path / "sub/x.png"), str(tmp_path / "y.png")]
    assert load(path, images="/photos").images == ["/photos/sub/x.png", str(tmp_path / "y.png")]


@pytest.mark.parametrize("name", ["../y.png", "/etc/y.png"])
def test_json_may_name_images_elsewhere_where_the_user_says_so_alone(tmp_path, name):
    lines = written(tmp_path / "t.jsonl", json.dumps({"image": name, "caption": "one"}))
    image = {"filename": name, "split": "train", "sentences": [{"raw": "one"}]}
    karpathy = written(tmp_path / "t.json", json.dumps({"images": [image]}))
    for path, options in ((lines, {}), (karpathy, {"split": "train"})):
        with pytest.raises(ValueError, match=rf"{path}.*: the image '{name}' is not in .*outside_root=true"):
            load(path, **options)
        assert load(path, outside_root=True, **options).images == [str(tmp_path / name)]


@pytest.mark.parametrize("name", ["pipe.csv", "pipe.jsonl", "pipe.json", "pipe.txt"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is neither a file nor a folder"):
        load(tmp_path / name)


def test_several_captions_of_an_image_are_grouped_wherever_their_rows_are(tmp_path):
    path = written(tmp_path / "t.csv", 'image,caption\nx.png,one\ny.png,"two, or\nso"\n./x.png,"thr""ee"\nx.png,one\n')
    dataset = load(path)
    assert dataset.images == [str(tmp_path / "x.png"), str(tmp_path / "y.png")]
    assert dataset.texts == ["one", 'thr"ee', "one", "two, or\nso"]
    assert dataset.image_of_text == [0, 0, 0, 1]
    assert dataset.name == path


def test_columns_have_the_names_that_the_user_gives(tmp_path):
    table = written(tmp_path / "t.tsv", "\ufefffilepath\ttitle\nx.png\tone\n")
    lines = written(tmp_path / "t.jsonl", '{"filepath": "x.png", "title": "one"}\n\n')
    for path in (table, lines):
        dataset = load(path, image_column="filepath", text_column="title")
        assert (dataset.images, dataset.texts) == ([str(tmp_path / "x.png")], ["one"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", "filepath\ttitle\nx\ty\n"),
        ("t.csv", "filepath;title\nx;y\n"),
        ("t.jsonl", '{"filepath": 1, "title": 2}'),
    ],
)
def test_a_missing_column_lists_those_found_and_the_keys_that_name_them(tmp_path, name, content):
    path = written(tmp_path / name, content)
    with pytest.raises(ValueError, match="no column") as error:
        load(path, text_column="text")
    for part in (path, "'image' or 'text'", "'filepath', 'title'", "image_column and text_column"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "image,caption\nx,one\ny,two, three\n", r"line 3: 3 fields, the header has 2"),
        ("t.csv", "image,caption\nx,one\ny\n", r"line 3: 1 fields"),
        ("t.csv", "image,caption\nx,one\ny, \n", r"line 3: a text was expected in 'caption', got ' '"),
        ("t.csv", b"image,caption\nx,caf\xe9\n", r"not UTF-8"),
        ("t.csv", "image,caption\n", r"no images or captions"),
        ("t.csv", "", r"t\.csv is empty"),
        ("t.jsonl", '{"image": "x", "caption": "one"}\n{"image"\n', r"line 2: not readable JSON"),
        ("t.jsonl", '["x", "one"]\n', r"line 1: a JSON object"),
        ("t.jsonl", '{"image": "x", "caption": 3}\n', r"line 1: a text was expected in 'caption', got 3"),
        ("t.jsonl", '{"image": "x", "caption": []}\n', r"line 1: the list 'caption' is empty"),
        ("t.jsonl", b'{"image": "caf\xe9", "caption": "a"}\n', r"not UTF-8"),
    ],
)
def test_a_faulty_table_is_an_error_that_names_file_and_line(tmp_path, name, content, message):
    path = written(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert path in str(error.value)


def test_json_lines_may_hold_lists_of_captions(tmp_path):
    path = written(
        tmp_path / "t.jsonl",
        '{"image": "x", "caption": ["one", "two"]}\n{"image": "y", "caption": "three"}\n',
    )
    dataset = load(path)
    assert (dataset.texts, dataset.image_of_text) == (["one", "two", "three"], [0, 0, 1])


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_one_side_needs_only_its_column(tmp_path, name):
    images = {"t.csv": "image\nx\nx\ny\n", "t.jsonl": '{"image": "x"}\n{"image": "x"}\n{"image": "y"}\n'}[name]
    texts = {"t.csv": "caption\none\none\n", "t.jsonl": '{"caption": ["one", "one"]}\n'}[name]
    path = written(tmp_path / name, images)
    expected = RetrievalDataset(path, [str(tmp_path / "x"), str(tmp_path / "y")], [], [])
    assert load(path, side="images") == expected
    with pytest.raises(ValueError, match="'caption'"):
        load(path)
    written(tmp_path / name, texts)
    assert load(path, side="texts") == RetrievalDataset(path, [], ["one", "one"], [])


def test_one_side_of_a_table_with_both_leaves_the_other_unread(tmp_path):
    path = written(tmp_path / "t.csv", "image,caption\nx,\ny,two\n")
    assert load(path, side="images").images == [str(tmp_path / "x"), str(tmp_path / "y")]
    assert load(path, side="images").texts == []


# ---- Karpathy's JSON


def test_a_split_of_karpathy_is_read_alone_or_joined(tmp_path):
    path = written(tmp_path / "dataset.json", karpathy())
    test = load(path, split="test")
    assert (test.images, test.texts, test.image_of_text) == ([str(tmp_path / "c.jpg")], ["a c", "sea"], [0, 0])
    joined = load(path, split="train+restval", images="/coco")
    assert joined.images == ["/coco/train2014/a.jpg", "/coco/val2014/b.jpg"]
    assert joined.texts == ["an a", "a b"]
    assert load(path, split="test", side="images").texts == []
    assert load(path, split="test", side="texts").images == []


@pytest.mark.parametrize("split", [None, "validation", "train+validation"])
def test_a_split_that_karpathy_lacks_lists_those_there_are(tmp_path, split):
    path = written(tmp_path / "dataset.json", karpathy())
    with pytest.raises(ValueError, match=r"train \(1 images\), restval \(1 images\), test \(1 images\)"):
        load(path, split=split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "has no images or captions, read as json"),
        ("7", "not a JSON of Karpathy"),
        ('{"images": [{"filename": "a"}]}', "not a JSON of Karpathy"),
        ('{"image": "a"}\n{"image": "b"}\n', "format=jsonl"),
        (karpathy(sentences=[{"tokens": ["a"]}]), r"images\[0\] has no filename and raw sentences"),
    ],
)
def test_another_json_is_no_karpathy(tmp_path, content, message):
    path = written(tmp_path / "dataset.json", content)
    with pytest.raises(ValueError, match=message) as error:
        load(path, split="train")
    assert path in str(error.value)


# ---- unpaired


def test_a_folder_gives_its_images_sorted_and_nothing_else(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.webp", ".hidden.png", ".cache/x.png", "notes.txt"):
        written(tmp_path / name, b"")
    expected = [str(tmp_path / name) for name in ("a.webp", "b/1.png", "b/2.JPG")]
    assert load(tmp_path) == RetrievalDataset(str(tmp_path), expected, [], [])
    with pytest.raises(ValueError, match="has no captions, read as folder"):
        load(tmp_path, side="texts")


def test_a_text_file_gives_its_lines(tmp_path):
    path = written(tmp_path / "t.txt", "one, two\r\n\n  three\u2028four \n")
    assert load(path) == RetrievalDataset(path, [], ["one, two", "three\u2028four"], [])
    with pytest.raises(ValueError, match="has no images, read as captions"):
        load(path, side="images")


def test_a_format_overrules_the_suffix(tmp_path):
    path = written(tmp_path / "t.txt", "image,caption\nx,one\n")
    assert load(path, format="csv").texts == ["one"]
    assert load(path, text_column="text").texts == ["image,caption", "x,one"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("t.dat", {}, "does not tell the format; give format=csv"),
        ("t.txt", {"format": "folder"}, "is a file"),
        (".", {"format": "csv"}, "is a folder"),
        (".", {}, "has no images or captions"),
        ("t.txt", {"split": "train"}, "split=train is for Karpathy"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_path(tmp_path, name, options, message):
    folder = tmp_path / "data"
    for file in ("t.dat", "t.txt"):
        written(folder / file, "one\n")
    with pytest.raises(ValueError, match=message) as error:
        load(folder / name, **options)
    assert str(folder / name) in str(error.value)


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.csv does not exist"):
        load(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("options", [{"format": "tsv"}, {"side": "image"}, {"separator": "\\t"}])
def test_a_value_that_is_no_choice_is_refused_by_its_name(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} must be"):
        DataConfig("x", **options)


@dataclass
class Sections:
    source: DataConfig
    target: DataConfig | None = None
    validation: dict[str, DataConfig] = field(default_factory=dict)


def test_a_configuration_has_it_as_a_section(tmp_path):
    text = """
source: {path: a.csv, separator: "\\t"}
target: {path: photos, side: images}
validation: {v: {path: v.csv}}
"""
    path = written(tmp_path / "c.yaml", text)
    config = load_config(Sections, path, ["source.text_column=title"])
    assert config.source == DataConfig("a.csv", separator="\t", text_column="title")
    assert config.target == DataConfig("photos", side="images")
    assert config.validation == {"v": DataConfig("v.csv")}
    with pytest.raises(ConfigError, match=r"side must be one of both, images, texts; got 'left'"):
        load_config(Sections, path, ["source.side=left"])
    with pytest.raises(ConfigError, match=r"source.path"):
        load_config(Sections, written(tmp_path / "d.yaml", "source: {format: csv}\n"))


# ---- lists in a cell


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ('["two dogs", "dogs run"]', ["two dogs", "dogs run"]),
        ("['two dogs', 'dogs run']", ["two dogs", "dogs run"]),
        ('["two dogs", \'a dog\\\'s "run"\']', ["two dogs", 'a dog\'s "run"']),
        ("('two dogs', 'dogs run')", ["two dogs", "dogs run"]),
        ('[ "caf\\u00e9, [x]" ]', ["café, [x]"]),
        ("[red] dogs", ["[red] dogs"]),
        ("[untitled]", ["[untitled]"]),
        ('("the end")', ['("the end")']),
        ('dogs [two, "three"]', ['dogs [two, "three"]']),
    ],
)
def test_a_list_in_a_cell_is_several_captions(tmp_path, cell, captions):
    quoted = '"' + cell.replace('"', '""') + '"'
    table = written(tmp_path / "t.csv", f"image,caption\nx,{quoted}\ny,one\n")
    rows = ({"image": "x", "caption": cell}, {"image": "y", "caption": "one"})
    lines = written(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    for path in (table, lines):
        dataset = load(path)
        assert dataset.texts == [*captions, "one"]
        assert dataset.image_of_text == [0] * len(captions) + [1]


@pytest.mark.parametrize(
    "cell", ["['two dogs' 'dogs run']", '["two dogs", "dogs', '["two dogs", "dogs]', "['a', nan]", '["a", null]', "[]"]
)
def test_a_list_that_is_not_whole_is_left_out_and_counted(tmp_path, cell):
    closed = cell if cell.endswith("]") else f"{cell}]"
    path = written(tmp_path / "t.jsonl", "".join(json.dumps({"image": c, "caption": c}) + "\n" for c in (closed, "b")))
    with pytest.raises(ValueError, match=r"t.jsonl: 1 of \d captions cannot be used, .*t.jsonl, line 1"):
        load(path)
    assert len(load_dataset(DataConfig(path), max_skipped=0.5).skipped) == 1


@pytest.mark.parametrize("cell", ['{"raw": "a dog"}', '[{"raw": "a dog"}]', "[1, 2]", "[['a'], 'b']", "{'a', 'b'}"])
def test_what_is_written_as_something_else_is_refused(tmp_path, cell):
    path = written(tmp_path / "t.jsonl", json.dumps({"image": "x", "caption": cell}))
    with pytest.raises(ValueError, match=r"1 of 1 captions cannot be used.*line 1: 'caption' is no list of captions"):
        load(path)
    written(tmp_path / "t.jsonl", json.dumps({"image": "x", "caption": json.loads('{"raw": ["a"]}')}))
    with pytest.raises(ValueError, match="line 1: a text was expected in 'caption', got"):
        load_dataset(DataConfig(path), max_skipped=0.9)


# ---- captions that are left out


NULLS = """{"image": "a", "caption": null}
{"image": "b", "caption": ["", "b", NaN]}
{"image": "c", "caption": "\\ud800"}
"""


def test_captions_without_text_are_left_out_up_to_a_share(tmp_path):
    path = written(tmp_path / "t.jsonl", NULLS + '{"image": "d", "caption": "d"}\n' * 4)
    dataset = load_dataset(DataConfig(path), max_skipped=0.5)
    assert dataset.texts == ["b", *"dddd"]
    assert [image[-1] for image in dataset.images] == ["b", "d"]  # The others had no other caption.
    assert [fault.split(": ")[0] for fault in dataset.skipped] == [f"{path}, line {n}" for n in (1, 2, 2, 3)]
    with pytest.raises(ValueError, match=r"4 of 9 captions cannot be used, more than max_skipped=0.4 allows; .*line 1"):
        load_dataset(DataConfig(path), max_skipped=0.4)
    assert not load(path, side="images").skipped
    assert len(load(path, side="images").images) == 4


@pytest.mark.parametrize("cell", ["None", " nan ", "NaN", "null", "NULL", "<NA>"])
def test_a_value_that_is_not_there_in_the_words_of_a_program_is_no_caption(tmp_path, cell):
    path = written(tmp_path / "t.csv", f"image,caption\nx,{cell}\ny,none of them\nz,a nan bread\n")
    dataset = load_dataset(DataConfig(path), max_skipped=0.5)
    assert dataset.texts == ["none of them", "a nan bread"]
    with pytest.raises(ValueError, match=r"1 of 3 captions cannot be used, .*line 2: a text was expected in 'caption'"):
        load_dataset(DataConfig(path), max_skipped=0.1)


def test_rows_of_another_length_are_left_out_up_to_a_share(tmp_path):
    path = written(tmp_path / "t.csv", "image,caption\nx,one\ny,two, three\nz\nw,four\n")
    dataset = load_dataset(DataConfig(path), max_skipped=0.5)
    assert dataset.texts == ["one", "four"]
    assert [fault.split(";")[0] for fault in dataset.skipped] == [
        f"{path}, line 3: 3 fields, the header has 2",
        f"{path}, line 4: 1 fields, the header has 2",
    ]
    written(tmp_path / "t.csv", 'image,caption\nx,one\n"y,two\nz,three\n' + "w,four\n" * 9)
    with pytest.raises(ValueError, match=r"line 13: 1 fields, the header has 2, over 11 lines; close the"):
        load_dataset(DataConfig(path), max_skipped=0.5)


def test_columns_may_have_spaces_around_and_in_their_names(tmp_path):
    path = written(tmp_path / "results.csv", "image_name| comment number| the comment\nx.jpg| 0| Two dogs .\n")
    dataset = load(path, image_column="image_name", text_column="the comment")
    assert (dataset.images, dataset.texts) == ([str(tmp_path / "x.jpg")], ["Two dogs ."])


@pytest.mark.parametrize("url", ["https://a.b/x.jpg", "s3://bucket/x.jpg", "HTTP://x.jpg"])
def test_an_image_elsewhere_is_refused_by_its_address(tmp_path, url):
    path = written(tmp_path / "t.csv", f"image,caption\n{url},one\n")
    with pytest.raises(ValueError, match=r"t.csv, line 2: .*is a URL; download the images first"):
        load(path)
    assert load(path, side="texts").texts == ["one"]
    for key in ("path", "images"):
        with pytest.raises(ValueError, match=f"^{key}: .* is a URL; download it first"):
            DataConfig(**{"path": "x", key: url})


# ---- splits of tables


ROWS = [("x", "one", "train"), ("y", "two", "val"), ("z", "three", "test"), ("w", "four", "train")]


def table_of(path, column):
    rows = [{"image": image, "caption": caption, column: split} for image, caption, split in ROWS]
    text = {
        ".csv": f"image,caption,{column}\n" + "".join(",".join(row) + "\n" for row in ROWS),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".json": json.dumps(rows),
    }
    return written(path, text[path.suffix])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_a_split_of_a_table_is_read_alone_or_joined(tmp_path, suffix):
    path = table_of(tmp_path / f"t{suffix}", "split")
    assert load(path, split="train").texts == ["one", "four"]
    assert load(path, split="val+test").texts == ["two", "three"]
    assert load(path).texts == ["one", "two", "three", "four"]
    with pytest.raises(ValueError, match=r"split=dev is not in it; give one of train \(2 rows\), val \(1 rows\), test"):
        load(path, split="dev")
    with pytest.raises(ValueError, match=r"no column 'part'; the columns are 'image', 'caption', 'split'"):
        load(path, split="train", split_column="part")
    assert load(table_of(tmp_path / f"u{suffix}", "part"), split="val", split_column="part").texts == ["two"]


# ---- JSON arrays and COCO


def test_a_json_array_is_a_table(tmp_path):
    rows = [{"image": "x", "caption": ["one", "two"]}, {"image": "y", "caption": "three"}]
    path = written(tmp_path / "t.json", json.dumps(rows))
    assert load(path).texts == ["one", "two", "three"]
    written(tmp_path / "t.json", '[{"image": "x", "caption": "one"}, 7]')
    with pytest.raises(ValueError, match=r"t.json, \[1\]: a JSON object was expected"):
        load(path)


def coco(**changes):
    content = {
        "info": {},
        "images": [{"id": 9, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 3, "caption": "one "},
            {"id": 2, "image_id": 9, "caption": "two"},
            {"id": 3, "image_id": 3, "caption": "three"},
        ],
    }
    return json.dumps(content | changes)


def test_the_captions_of_coco_belong_to_their_images(tmp_path):
    path = written(tmp_path / "annotations" / "captions_val2017.json", coco())
    dataset = load(path, images=str(tmp_path / "val2017"))
    assert dataset.images == [str(tmp_path / "val2017" / name) for name in ("a.jpg", "b.jpg")]
    assert (dataset.texts, dataset.image_of_text) == (["two", "one", "three"], [0, 1, 1])
    assert load(path, format="coco", side="texts").images == []
    with pytest.raises(ValueError, match="leave split=val out"):
        load(path, split="val")
    written(tmp_path / "annotations" / "captions_val2017.json", coco(annotations=[]))
    assert len(load(path).images) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"image_id": 4, "caption": "x"}]}, r"is not a JSON of COCO's captions \(KeyError: 4\)"),
        ({"annotations": [{"image_id": 3, "bbox": [1]}]}, r"is not a JSON of COCO's captions \(KeyError: 'caption'\)"),
        ({"annotations": [{"image_id": 3, "caption": 7}]}, r"annotations\[0\]: a text was expected in 'caption'"),
        ({"annotations": [{"image_id": 3, "caption": "x"}]}, r"1 of 2 captions cannot.* image 9 has no caption"),
        ({"images": [{"id": 3, "file_name": "a"}, {"id": 3, "file_name": "b"}]}, r"KeyError: 9"),
        ({"images": [{"id": [], "file_name": "a"}]}, "TypeError"),
        ({"images": [{"id": 9, "file_name": 7}, {"id": 3, "file_name": "b"}]}, r"image 9: a text was expected"),
        ({"images": 7}, "TypeError"),
    ],
)
def test_a_faulty_json_of_coco_says_where(tmp_path, changes, message):
    path = written(tmp_path / "captions.json", coco(**changes))
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert path in str(error.value)


def test_two_images_of_one_id_are_refused(tmp_path):
    path = written(tmp_path / "c.json", coco(images=[{"id": k, "file_name": f"{k}.jpg"} for k in (3, 9, 9)]))
    with pytest.raises(ValueError, match="two images have one id"):
        load(path)


# ---- Flickr8k


TOKENS = "a.jpg#0\ta dog .\na.jpg#1\ttwo, dogs\nb.jpg#0\tthe sea\n"
FLICKR = 'image,caption\na.jpg,a dog .\na.jpg,"two, dogs"\nb.jpg,the sea\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [("captions.txt", FLICKR), ("Flickr8k.token.txt", TOKENS), ("results_20130124.token", TOKENS)],
)
def test_the_tables_of_flickr_in_text_files_are_recognised(tmp_path, name, content):
    path = written(tmp_path / name, content)
    expected = ["a dog .", "two, dogs", "the sea"]
    assert load(path, side="texts") == RetrievalDataset(path, [], expected, [])
    dataset = load(path, format="captions", images="/flickr")
    assert (dataset.images, dataset.texts) == (["/flickr/a.jpg", "/flickr/b.jpg"], expected)
    assert dataset.image_of_text == [0, 0, 1]
    assert load(path, side="images").texts == []


def test_a_table_under_other_names_is_not_taken_for_captions(tmp_path):
    path = written(tmp_path / "captions.txt", FLICKR.replace("image,caption", "file,said"))
    with pytest.raises(ValueError, match=r"no column 'caption'; the columns are 'file', 'said'"):
        load(path, side="texts")
    assert load(path, side="texts", text_column="said").texts[0] == "a dog ."
    written(tmp_path / "captions.txt", TOKENS + "no image\n")
    with pytest.raises(ValueError, match=r"1 of 4 captions cannot be used.*line 4: no image at the beginning"):
        load(path)
