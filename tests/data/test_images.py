import io
import pickle
from dataclasses import dataclass

import pytest
from PIL import Image

from gh_downstream.data.images import open_image, opened_image, unreadable_images


@dataclass(frozen=True)
class Part:
    """An image that is a part of a file."""

    file: str
    first: int
    size: int

    def open(self):
        with open(self.file, "rb") as file:
            file.seek(self.first)
            return io.BytesIO(file.read(self.size))

    def __str__(self):
        return f"{self.file}, from {self.first}"


@pytest.fixture
def paths(tmp_path):
    """A good image, one that was cut off, a text and a file that is missing."""
    good, cut, text, missing = (tmp_path / f"{name}.png" for name in ("good", "cut", "text", "missing"))
    Image.effect_noise((40, 40), 50).save(good)
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    text.write_text("no image")
    return good, cut, text, missing


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_an_image_is_rgb_whatever_its_mode(tmp_path, mode):
    path = str(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    Image.new(mode, (5, 3)).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_an_image_that_cannot_be_read_is_named_with_the_remedy(tmp_path, paths):
    _, cut, text, missing = paths
    for path in (cut, text, tmp_path):
        with pytest.raises(ValueError, match="not a readable image") as error:
            open_image(str(path))
        assert str(path) in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"missing.png does not exist$"):
        open_image(missing)
    with (
        pytest.raises(FileNotFoundError, match=r"missing.png does not exist; unpack it$"),
        opened_image(missing, "unpack it"),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"text.png is not a readable image \(.*\); unpack it$"),
        opened_image(text, "unpack it"),
    ):
        pass


def test_a_fault_that_the_reader_finds_is_one_of_the_image(paths):
    with pytest.raises(ValueError, match=r"good.png is not a readable image \(too small\)"), opened_image(paths[0]):
        raise ValueError("too small")


def test_an_image_may_be_larger_than_pillow_takes(paths, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"good.png is not a readable image \(Image size \(1600 pixels\)"):
        open_image(paths[0])


def test_a_stored_image_is_read_where_it_is_and_named_by_its_place(tmp_path, paths):
    good = paths[0].read_bytes()
    store = tmp_path / "store"
    store.write_bytes(b"before" + good + b"after")
    image = Part(str(store), 6, len(good))
    assert open_image(pickle.loads(pickle.dumps(image))).tobytes() == open_image(paths[0]).tobytes()
    with pytest.raises(ValueError, match=r"store, from 7 is not a readable image \(of no known format\)$"):
        open_image(Part(str(store), 7, len(good)))
    with pytest.raises(FileNotFoundError, match=r"nowhere, from 6 does not exist"):
        open_image(Part("nowhere", 6, len(good)))


def test_those_that_cannot_be_read_are_found_in_their_order(paths):
    good, cut, text, missing = paths
    faults = unreadable_images([good, cut, missing, good, text])
    assert len(faults) == 3
    for fault, path in zip(faults, (cut, missing, text), strict=True):
        assert fault.startswith(str(path))
    assert unreadable_images([good]) == unreadable_images([]) == []
