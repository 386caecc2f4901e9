"""Shards as the webdataset library writes and reads them."""

import gzip
import io
import pickle
import tarfile

import pytest
import webdataset
from PIL import Image

from gh_downstream.data.images import open_image
from gh_downstream.retrieval.data import DataConfig, RetrievalDataset, load_dataset
from gh_downstream.training import shared_map


def png(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), (shade, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def shard(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for key, members in samples.items():
            writer.write({"__key__": key, **members})
    return path


def tarred(path, members):
    """A tar of members by name, in their order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def load(path, **options):
    return load_dataset(DataConfig(str(path), **options))


def numbered(first, last):
    return {f"{n:04d}": {"png": png(n), "txt": f"shade {n}"} for n in range(first, last)}


@pytest.fixture
def shards(tmp_path):
    """Ten samples in shards 08, 09 and 10."""
    folder = tmp_path / "shards"
    for number, (first, last) in {8: (0, 4), 9: (4, 8), 10: (8, 10)}.items():
        shard(folder / f"{number:02d}.tar", numbered(first, last))
    return folder


def test_images_and_captions_are_those_that_webdataset_reads(shards):
    dataset = load(shards / "{08..10}.tar")
    paths = [str(shards / f"{number}.tar") for number in ("08", "09", "10")]
    expected = list(webdataset.WebDataset(paths, shardshuffle=False).to_tuple("png", "txt"))
    assert dataset.texts == [text.decode() for _, text in expected]
    assert [image.open().read() for image in dataset.images] == [content for content, _ in expected]
    assert dataset.image_of_text == list(range(10))
    # At any place at any time, in any process.
    assert open_image(pickle.loads(pickle.dumps(dataset.images[7]))).getpixel((0, 0)) == (7, 0, 0)
    assert str(dataset.images[4]) == f"{shards / '09.tar'}, member 0004.png"
    assert len({*dataset.images, *load(shards / "09.tar").images}) == 10


def test_a_tar_a_folder_and_a_pattern_name_shards(shards):
    (shards / "09.json").write_text("{}")
    assert load(shards, format="webdataset").texts == [f"shade {n}" for n in range(10)]
    assert load(shards / "09.tar").texts == [f"shade {n}" for n in range(4, 8)]
    assert load(shards / "{08..9}.tar").texts == [f"shade {n}" for n in range(8)]
    (shards / "09.tar").rename(shards / "9.tar")
    assert load(shards / "{9..10}.tar").texts == [f"shade {n}" for n in range(4, 10)]
    # The numbers are as wide as the shell makes them.
    for missing, first in {"{08..11}.tar": "09", "11.tar": "11", "{00..100}.tar": "000", "{1..10}.tar": "1"}.items():
        with pytest.raises(FileNotFoundError, match=rf"/{first}\.tar does not exist"):
            load(shards / missing)


def test_a_pattern_may_have_several_ranges(tmp_path):
    for name in ("a0-0.tar", "a0-1.tar", "a1-0.tar", "a1-1.tar"):
        shard(tmp_path / name, {"0": {"png": png(1), "txt": name}})
    assert load(tmp_path / "a{0..1}-{0..1}.tar").texts == ["a0-0.tar", "a0-1.tar", "a1-0.tar", "a1-1.tar"]


def test_captions_may_be_in_json(tmp_path):
    path = shard(
        tmp_path / "a.tar",
        {
            "0": {"jpg": b"0", "json": {"title": ["one", " two "], "width": 5}, "txt": "not this"},
            "1": {"jpg": b"1", "json": {"title": "three"}},
            "2": {"jpg": b"2", "json": {"width": 5}, "txt": " four\n"},
        },
    )
    dataset = load(path, text_column="title")
    assert dataset.texts == ["one", "two", "three", "four"]
    assert dataset.image_of_text == [0, 0, 1, 2]
    # By default it is the key that img2dataset writes.
    assert load(shard(tmp_path / "b.tar", {"0": {"jpg": b"0", "json": {"caption": "one"}}})).texts == ["one"]


def test_one_side_needs_only_its_members(tmp_path):
    images = shard(tmp_path / "images.tar", {"0": {"jpg": b"0"}, "1": {"jpg": b"1"}})
    texts = shard(tmp_path / "texts.tar", {"0": {"txt": "one"}, "1": {"json": {"caption": ["two", "three"]}}})
    found = load(images, side="images")
    assert [image.name for image in found.images] == ["0.jpg", "1.jpg"]
    assert (found.texts, found.image_of_text) == ([], [])
    assert load(texts, side="texts") == RetrievalDataset(str(texts), [], ["one", "two", "three"], [])
    with pytest.raises(ValueError, match=r"sample 0: a caption was expected in .txt or .json among its members .jpg"):
        load(images)
    with pytest.raises(ValueError, match=r"sample 0: one image was expected among its members .txt"):
        load(texts)


def test_members_of_a_sample_lie_anywhere_and_others_are_left_alone(tmp_path):
    members = [
        ("README", b"mine"),
        ("a/0.txt", b"one"),
        ("b/0.WEBP", b"2"),
        ("b/0.txt", b"two"),
        ("._0.jpg", b"mac"),
        ("a/.txt", b"hidden"),
        ("a/0.v2.jpg", b"a version that is not the image"),
        ("a/0.jpg", b"1"),
        ("a/0.cls", b"7"),
    ]
    dataset = load(tarred(tmp_path / "a.tar", members))
    assert dataset.texts == ["one", "two"]
    assert [(image.name, image.open().read()) for image in dataset.images] == [("a/0.jpg", b"1"), ("b/0.WEBP", b"2")]


def test_members_with_more_in_their_suffix_are_read_where_there_is_no_other(tmp_path):
    members = [
        ("s1.input.jpg", b"1"),
        ("s1.outputs.txt", b"one"),
        ("s2.input.JPG", b"2"),
        ("s2.meta.json", b'{"caption": ["two", "three"]}'),
        ("s3.jpg", b"3"),
        ("s3.mask.png", b"no"),
        ("s3.txt", b"['four', 'five']"),
    ]
    dataset = load(tarred(tmp_path / "a.tar", members))
    assert dataset.texts == ["one", "two", "three", "four", "five"]
    assert [image.name for image in dataset.images] == ["s1.input.jpg", "s2.input.JPG", "s3.jpg"]
    assert dataset.image_of_text == [0, 1, 1, 2, 2]
    for more in ("s1.output.png", "s1.before.jpg"):
        with pytest.raises(ValueError, match=rf"sample s1: one image was expected .*\.input\.jpg.*{more[2:]}"):
            load(tarred(tmp_path / "a.tar", [*members, (more, b"0")]))


def test_samples_of_neither_images_nor_captions_are_counted_and_named(tmp_path):
    path = tarred(tmp_path / "a.tar", [("0.jpg", b"1"), ("0.txt", b"one"), ("1.avif", b"2"), ("1.cls", b"7")])
    with pytest.raises(ValueError, match=r"1 of 2 captions cannot.*sample 1: neither .* its members .avif, .cls"):
        load(path)
    dataset = load_dataset(DataConfig(str(path)), max_skipped=0.5)
    assert (dataset.texts, len(dataset.skipped)) == (["one"], 1)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"json": {"text": "one"}}, r"no column 'caption'; the columns are 'text', 'width'; .* text_column"),
        ({"json": {"caption": None}}, r"a text was expected in 'caption', got None"),
        ({"json": {"caption": []}}, r"the list 'caption' is empty"),
        ({"json": b"["}, r"not readable JSON"),
        ({"json": b"[]"}, r"a JSON object was expected"),
        ({"txt": " "}, r"a text was expected in '.txt', got ' '"),
        ({"txt": b"caf\xe9"}, r"its .txt is not UTF-8"),
        ({"jpg": b"1", "txt": "one"}, r"one image was expected among its members .jpg, .png, .txt"),
    ],
)
def test_a_faulty_sample_is_an_error_that_names_shard_and_sample(tmp_path, members, message):
    if isinstance(members.get("json"), dict) and "text" in members["json"]:
        members["json"]["width"] = 5
    path = shard(tmp_path / "a.tar", numbered(0, 2) | {"0002": {"png": png(2), **members}})
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert f"{path}, sample 0002" in str(error.value)


def test_names_of_members_cannot_command_a_terminal(tmp_path):
    for members in ([("a\n\x1b[2J.jpg", b"1"), ("a\n\x1b[2J.png", b"1")], [("a.t\x1b[2J\nt", b"1")]):
        with pytest.raises(ValueError, match=r"\\x1b\[2[Jj]") as error:
            load(tarred(tmp_path / "a.tar", members))
        assert str(error.value).isprintable()


def test_two_members_of_one_name_are_an_error(tmp_path):
    members = [("0.jpg", b"1"), ("0.txt", b"one"), ("0.txt", b"two")]
    with pytest.raises(ValueError, match=r"a.tar: two members are named 0.txt"):
        load(tarred(tmp_path / "a.tar", members))


def test_a_compressed_tar_is_refused(tmp_path):
    plain = shard(tmp_path / "a.tar", numbered(0, 2))
    packed = tmp_path / "packed" / "a.tar.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (packed, packed.parent):
        with pytest.raises(ValueError, match=r"a.tar.gz is not a whole and uncompressed tar .* decompress it"):
            load(path, format="webdataset")


def test_a_tar_that_was_cut_off_is_refused_wherever_it_was_cut(tmp_path):
    whole = shard(tmp_path / "a.tar", numbered(0, 3)).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        end = tar.getmembers()[-1].offset_data + 512
    for size in (0, 100, *range(512, end + 1, 256)):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut.tar is not a whole and uncompressed tar"):
            load(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(whole[: end + 512])
    assert len(load(tmp_path / "cut.tar").images) == 3


def test_what_holds_no_shard_says_so(tmp_path):
    for path, options in ((tmp_path, {"format": "webdataset"}), (tmp_path / "{3..2}.tar", {})):
        with pytest.raises(ValueError, match=r"has no .tar, read as webdataset"):
            load(path, **options)
    shard(tmp_path / "a.tar", numbered(0, 1))
    with pytest.raises(ValueError, match=r"has no images or captions, read as folder; .* format=webdataset"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"a.tar has no images or captions, read as webdataset"):
        load(tarred(tmp_path / "a.tar", [("notes", b"mine")]))


def test_an_image_that_is_no_longer_there_is_named(tmp_path):
    path = shard(tmp_path / "a.tar", numbered(0, 2))
    image = load(path).images[1]
    path.write_bytes(path.read_bytes()[: image.offset + 20])
    with pytest.raises(ValueError, match=r"a.tar, member 0001.png is not a readable image"):
        open_image(image)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a.tar, member 0001.png does not exist"):
        open_image(image)


def test_a_pattern_is_a_path_on_the_command_line_too(shards, tmp_path):
    from gh_downstream.training import load_config

    config = tmp_path / "c.yaml"
    config.write_text(f"path: {shards}/{{08..10}}.tar\n")
    assert load_config(DataConfig, config).path == f"{shards}/{{08..10}}.tar"
    override = f"path={shards}/{{09..10}}.tar"
    assert len(load_dataset(load_config(DataConfig, config, [override])).images) == 6


def indexed(rank, folder):
    """The data set, which shards this process has opened, and what is said of one that is cut off."""
    opened, open_tar = [], tarfile.open

    def recorded(path, *arguments, **options):
        opened.append(path.name)
        return open_tar(path, *arguments, **options)

    tarfile.open = recorded
    found = load_dataset(DataConfig(str(folder / "shards"), format="webdataset"), each=shared_map)
    with pytest.raises(ValueError, match="not a whole and uncompressed tar") as error:
        load_dataset(DataConfig(str(folder / "cut"), format="webdataset"), each=shared_map)
    tarfile.open = open_tar
    return [str(image) for image in found.images], found.texts, found.image_of_text, opened, str(error.value)


@pytest.mark.slow
def test_processes_share_the_shards(ranks, tmp_path):
    samples = {f"{k}": {"jpg": png(k), "txt": f"caption {k}"} for k in range(12)}
    for k in range(3):
        part = dict(list(samples.items())[4 * k : 4 * k + 4])
        shard(tmp_path / "shards" / f"{k}.tar", part)
        content = shard(tmp_path / "cut" / f"{k}.tar", part).read_bytes()
        (tmp_path / "cut" / f"{k}.tar").write_bytes(content[:2000] if k else content)
    alone = indexed(0, tmp_path)
    assert alone[1] == [f"caption {k}" for k in range(12)]
    first, second = ranks(indexed, tmp_path, group=False)
    assert first[:3] == second[:3] == alone[:3]
    assert first[4] == second[4] == alone[4]
    assert "1.tar" in alone[4]
    assert (first[3], second[3]) == (["0.tar", "2.tar", "0.tar", "2.tar"], ["1.tar", "1.tar"])
