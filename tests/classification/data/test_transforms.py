import numpy as np
import pytest
import torch
from PIL import Image

from gh_downstream.classification.data import ClassificationDataset, build_transform


def dataset(labels=(0, 1)):
    images = [np.zeros((4, 4), np.uint8), np.full((4, 4, 3), [1, 2, 3], np.uint8)]
    return ClassificationDataset("toy", images, labels, ("no", "yes"))


def photo(height=300, width=200):
    pixels = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height))


# ---- data sets


def test_arrays_become_rgb_images():
    assert [dataset().image(k).mode for k in range(2)] == ["RGB", "RGB"]
    assert dataset().image(1).getpixel((0, 0)) == (1, 2, 3)
    assert (len(dataset()), dataset().file_name(1)) == (2, "toy[1]")


def test_labels_are_stripped_and_nothing_else():
    bare = dataset().unlabelled()
    assert bare.labels is None
    assert (bare.name, bare.classes, len(bare)) == ("toy", ("no", "yes"), 2)
    assert bare.images is not None
    assert dataset().labels == (0, 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((0,), "toy: 2 images, but 1 labels"),
        ((0, 2), r"toy\[1\] has the label 2, outside 0 to 1"),
        ((-1, 0), "label -1"),
    ],
)
def test_labels_that_do_not_fit_are_errors(labels, message):
    with pytest.raises(ValueError, match=message):
        dataset(labels)


# ---- transforms


@pytest.mark.parametrize("train", [False, True])
def test_digits_are_grey_and_in_minus_one_to_one(train):
    ramp = np.arange(28 * 28).reshape(28, 28) // 4
    x = build_transform("digits")(Image.fromarray(ramp.astype(np.uint8)).convert("RGB"), train)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor(ramp / 255 * 2 - 1, dtype=torch.float32)[None])
    assert build_transform("digits")(photo(32, 32), train).shape == (1, 28, 28)


def test_photos_are_cropped_in_the_middle_and_normalized_in_evaluation():
    transform, image = build_transform("photos"), photo()
    resized = image.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    pixels = torch.tensor(np.asarray(resized)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(transform(image, False), (pixels - mean) / std)


def test_photos_are_augmented_by_the_given_generator_alone():
    transform, image = build_transform("photos"), photo()
    state = torch.get_rng_state()
    views = [transform(image, True, torch.Generator().manual_seed(seed)) for seed in (0, 0, *range(1, 9))]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(views[0], views[1])
    assert all(not torch.equal(views[0], view) for view in views[2:])


def test_a_view_of_training_is_a_crop_that_is_flipped_half_of_the_time():
    transform = build_transform("photos")
    across, down = np.meshgrid(np.arange(256), np.arange(256))
    image = Image.fromarray(np.stack([across, down, down], axis=-1).astype(np.uint8))
    places, flips = set(), 0
    for seed in range(60):
        view = (
            transform(image, True, torch.Generator().manual_seed(seed))
            * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        )
        view = ((view + torch.tensor([0.485, 0.456, 0.406])[:, None, None]) * 255).round()
        flipped = bool(view[0, 0, 0] > view[0, 0, -1])
        row = view[0, 0].flip(0) if flipped else view[0, 0]
        assert torch.equal(row - row[0], torch.arange(224.0))
        assert torch.equal(view[1, :, 0] - view[1, 0, 0], torch.arange(224.0))
        places.add((int(row[0]), int(view[1, 0, 0])))
        flips += flipped
    left, top = zip(*places, strict=True)
    assert 15 <= flips <= 45
    assert min(left) <= 4 < 28 <= max(left) <= 32
    assert min(top) <= 4 < 28 <= max(top) <= 32


def test_a_resized_crop_has_another_size_and_is_drawn_by_the_given_generator_alone():
    transform, image = build_transform("photos", "resized"), photo()
    state = torch.get_rng_state()
    views = [transform(image, True, torch.Generator().manual_seed(seed)) for seed in (0, 0, *range(1, 9))]
    assert torch.equal(torch.get_rng_state(), state)
    assert {view.shape for view in views} == {(3, 224, 224)}
    assert torch.equal(views[0], views[1])
    assert all(not torch.equal(views[0], view) for view in views[2:])
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB")
    spans = set()
    for seed in range(30):
        row = transform(ramp, True, torch.Generator().manual_seed(seed))[0, 0]
        spans.add(round(float((row.max() - row.min()) * 0.229 * 255)))
    assert min(spans) < 150 < 200 < max(spans) <= 255


def test_a_central_crop_is_flipped_alone():
    transform, image = build_transform("photos", "center"), photo()
    whole = transform(image, False)
    views = [transform(image, True, torch.Generator().manual_seed(seed)) for seed in range(12)]
    kinds = {torch.equal(view, whole) for view in views}
    assert kinds == {True, False}
    assert all(torch.equal(view, whole) or torch.equal(view.flip(2), whole) for view in views)


def test_crops_that_there_are_not():
    with pytest.raises(ValueError, match="crop is one of random, resized, center, got 'big'"):
        build_transform("photos", "big")
    with pytest.raises(ValueError, match="transform=digits crops nothing: leave crop=center out"):
        build_transform("digits", "center")


def test_photos_are_not_augmented_without_a_generator():
    with pytest.raises(ValueError, match="give it a generator"):
        build_transform("photos")(photo(), True)


def test_photos_of_inception_go_from_minus_one_to_one():
    image = Image.new("RGB", (300, 300), (255, 0, 255))
    red, green, blue = build_transform("photos-inception")(image, train=False)
    assert (red.unique().tolist(), green.unique().tolist(), blue.unique().tolist()) == ([1.0], [-1.0], [1.0])


def test_an_unknown_transform_lists_those_there_are():
    with pytest.raises(ValueError, match="transform is one of digits, photos, photos-inception, got 'photo'"):
        build_transform("photo")
