"""Contact sheets of what queries found."""

import numpy as np
import pytest
from PIL import Image

from gh_downstream.retrieval.drawing import contact_sheet
from gh_downstream.retrieval.search import Hit

GREEN = (0, 158, 115)


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
