"""Images in batches, with those that cannot be read told apart."""

import pytest
import torch
from PIL import Image

from gh_downstream.retrieval.encoders import build_encoder
from gh_downstream.retrieval.encoding import image_batches


@pytest.fixture
def encoder():
    return build_encoder("tiny", init="random", width=32, image_size=32)


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_and_faults_go_by_index(tmp_path, encoder, workers):
    colors = ["red", "green", "blue", "white", "black"]
    images = [str(tmp_path / f"{color}.png") for color in colors]
    for color, path in zip(colors, images, strict=True):
        Image.new("RGB", (8, 8), color).save(path)
    (tmp_path / "green.png").write_bytes(b"not an image")
    (tmp_path / "white.png").unlink()
    (tmp_path / "black.png").unlink()
    first, second, third = image_batches(encoder, images, workers, batch_size=2)
    assert [batch[0] for batch in (first, second, third)] == [[0], [2], []]
    for read, pixels, _ in (first, second):  # one tensor: each that comes from a worker takes an open file
        expected = encoder.preprocess(Image.open(images[read[0]]), False)
        assert torch.equal(pixels, expected[None])
    assert len(third[1]) == 0
    faults = first[2] | second[2] | third[2]
    assert list(faults) == [1, 3, 4]
    assert all(images[index] in fault for index, fault in faults.items())
