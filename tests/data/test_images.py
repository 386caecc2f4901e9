import io
import os
import pickle
import socket
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageOps

from gh_downstream.data.images import (
    check_readable,
    image_size,
    list_images,
    open_image,
    opened_image,
    unreadable_images,
)

RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(4, 16)
GREY = np.rint(RAMP / 257).astype(np.uint8)
"""The same in 8 bits."""


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
    assert len(unreadable_images([good, cut, missing, good, text], pixels=False)) == 3  # a PNG has an end
    assert unreadable_images([good]) == unreadable_images([]) == []
    assert check_readable([good, good]) == 1
    with pytest.raises(ValueError, match="3 of 4 images cannot be read") as error:
        check_readable([good, cut, missing, good, text])
    assert all(str(path) in str(error.value) for path in (cut, missing, text))


def pixels(path):
    image = open_image(path)
    assert image_size(path) == (image.height, image.width)
    return np.asarray(image)


def tiff(path, values, bits, kind=1, photometric=1, order="<", packed=None):
    """An uncompressed TIFF of one channel: bits of a value, its sample format (3 is float), what 0 is (0: white)."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes() if packed is None else packed
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    tags[339] = kind
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
    return path


# ---- what is in the file, and what is read


@pytest.mark.parametrize("suffix", ["png", "tif", "jp2", "pgm"])
def test_grey_of_16_bits_is_scaled_by_its_depth(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":  # Pillow reads 16 bits of it since long, and writes them since 10.4.
        path.write_bytes(b"P5 16 4 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        Image.fromarray(RAMP).save(path, **({"irreversible": False} if suffix == "jp2" else {}))
    assert (pixels(path) == GREY[..., None]).all()


@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_of_a_tiff_is_scaled_by_its_bits_and_by_what_zero_is(tmp_path, order):
    assert (pixels(tiff(tmp_path / "a.tif", RAMP, 16, order=order)) == GREY[..., None]).all()
    if order == "<":  # Pillow reads no others
        assert (pixels(tiff(tmp_path / "b.tif", RAMP, 16, photometric=0)) == 255 - GREY[..., None]).all()
        twelve = RAMP >> 4
        pairs = twelve.reshape(-1, 2).astype(np.uint32)
        joined = pairs[:, 0] << 12 | pairs[:, 1]
        packed = b"".join(int(value).to_bytes(3, "big") for value in joined)
        found = pixels(tiff(tmp_path / "c.tif", twelve, 12, packed=packed))
        assert (found == np.rint(twelve / 4095 * 255)[..., None]).all()
        assert found.max() == 255


@pytest.mark.parametrize(
    ("values", "bits", "kind", "message"),
    [
        (RAMP.astype(np.float32), 32, 3, "floating-point numbers"),
        (RAMP.astype(np.uint32), 32, 1, "integers of 32 bits"),
        (RAMP.astype(np.int32), 32, 2, "signed integers of 32 bits"),
        ((RAMP >> 1).astype(np.int16), 16, 2, "signed integers of 16 bits"),
    ],
)
def test_values_of_no_known_range_are_refused_by_name(tmp_path, values, bits, kind, message):
    path = tiff(tmp_path / "deep.tif", values, bits, kind)
    for read in (open_image, image_size):
        with pytest.raises(ValueError, match=rf"deep.tif is not a readable image \(its values are {message}"):
            read(path)
    assert len(unreadable_images([path], pixels=False)) == 1


def test_colours_of_16_bits_keep_their_brightness(tmp_path):
    rows = b"".join(b"\0" + np.stack([row] * 3, -1).astype(">u2").tobytes() for row in RAMP)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 16, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    )
    assert np.abs(pixels(tmp_path / "a.png").astype(int) - GREY[..., None]).max() <= 1


def saved(path, image, **options):
    image.save(path, **options)
    return pixels(path)


def test_transparent_pixels_show_white_by_their_opacity(tmp_path):
    half = Image.new("RGBA", (2, 2), (200, 100, 0, 128))
    half.putpixel((0, 0), (9, 9, 9, 0))
    half.putpixel((1, 0), (9, 9, 9, 255))
    expected = [[[255] * 3, [9] * 3], [[227, 177, 127]] * 2]
    for suffix in ("png", "tif"):
        assert np.abs(saved(tmp_path / f"a.{suffix}", half) - np.array(expected)).max() <= 1
    assert np.abs(saved(tmp_path / "a.webp", half, lossless=True) - np.array(expected)).max() <= 1
    grey = saved(tmp_path / "la.png", half.convert("LA"))
    assert grey[0].tolist() == [[255] * 3, [9] * 3]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([1, 2, 3, 40, 50, 60])
    palette.putpixel((0, 0), 0)
    for suffix in ("png", "gif"):
        assert saved(tmp_path / f"p.{suffix}", palette, transparency=0).tolist() == [[[255] * 3, [40, 50, 60]]]
    assert saved(tmp_path / "opaque.png", palette).tolist() == [[[1, 2, 3], [40, 50, 60]]]
    for name, image, clear in (
        ("rgb", Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), (1, 2, 3)),
        ("l", Image.fromarray(np.array([[1, 4]], np.uint8)), 1),
        ("deep", Image.fromarray(np.array([[257, 1028]], np.uint16)), 257),
    ):
        found = saved(tmp_path / f"{name}.png", image, transparency=clear)
        assert found[0, 0].tolist() == [255] * 3
        assert found[0, 1, 0] == 4


def test_an_opacity_that_is_0_all_over_says_nothing(tmp_path):
    assert (saved(tmp_path / "a.png", Image.new("RGBA", (2, 2), (200, 100, 0, 0))) == (200, 100, 0)).all()


def test_black_and_white_and_cmyk_keep_their_colours(tmp_path):
    checks = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    for suffix in ("png", "tif", "bmp"):
        assert saved(tmp_path / f"a.{suffix}", checks)[..., 0].tolist() == [[0, 255], [255, 0]]
    colour = Image.new("RGB", (16, 16), (200, 40, 40))
    for suffix in ("jpg", "tif"):
        assert np.abs(saved(tmp_path / f"c.{suffix}", colour.convert("CMYK")).astype(int) - (200, 40, 40)).max() <= 3


def test_the_first_image_of_several_is_read(tmp_path):
    first, second = (Image.new("RGB", (6, 4), colour) for colour in ("red", "blue"))
    for suffix in ("gif", "tif", "png", "webp"):
        path = tmp_path / f"a.{suffix}"
        first.save(path, save_all=True, append_images=[second], **({"lossless": True} if suffix == "webp" else {}))
        assert (pixels(path) == (255, 0, 0)).all(), suffix


# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_the_orientation_is_applied_to_pixels_and_size(tmp_path, suffix, orientation):
    upright = Image.fromarray(np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = saved(tmp_path / f"a.{suffix}", upright.convert("RGB"), exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert (found == expected).all()
    assert found.shape[:2] == ((48, 32) if orientation > 4 else (32, 48))


def test_an_orientation_after_the_pixels_of_a_png_and_in_xmp_counts(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.new("RGB", (5, 3)).save(path)
    whole = path.read_bytes()
    for late in (
        chunk(b"eXIf", exif.tobytes()[6:]),
        chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta tiff:Orientation="6"/>'),
    ):
        path.write_bytes(whole[:-12] + late + whole[-12:])
        assert pixels(path).shape == (5, 3, 3)


def test_exif_that_cannot_be_read_counts_as_none(tmp_path):
    Image.new("RGB", (5, 3)).save(tmp_path / "a.jpg", exif=b"Exif\0\0nothing of the kind")
    assert pixels(tmp_path / "a.jpg").shape == (3, 5, 3)


# ---- what is no image


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        paths = [tmp_path / f"{name}.png" for name in ("pipe", "folder", "socket")]
        for read in (open_image, image_size):
            for path in (*paths, "/dev/zero"):
                with pytest.raises(ValueError, match="not a regular file"):
                    read(path)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty.png is not a readable image \(the file is empty"):
        open_image(tmp_path / "empty.png")


def test_the_name_of_a_file_does_not_command_the_terminal(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\\n\\x1b\[2J.png does not exist") as error:
        open_image(tmp_path / "a\n\x1b[2J.png")
    assert "\x1b" not in str(error.value)


def test_links_in_a_folder_are_followed_once_and_what_leads_nowhere_is_found(tmp_path):
    stored, folder = tmp_path / "stored", tmp_path / "folder"
    for place in (stored / ".hidden", folder / "own"):
        place.mkdir(parents=True)
    for path in (stored / "b.png", stored / ".hidden/x.png", folder / "own/a.PPM", folder / "own/.x.png"):
        Image.fromarray(GREY).save(path)
    (folder / "linked").symlink_to(stored)
    (folder / "own/back").symlink_to(folder)
    (folder / "own/gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    found = list_images(folder)
    assert found == [str(folder / name) for name in ("linked/b.png", "own/a.PPM", "own/gone.jpg")]
    with pytest.raises(ValueError, match=r"1 of 3 images cannot be read.*\n.*own/gone\.jpg does not exist"):
        check_readable(found, pixels=False)
