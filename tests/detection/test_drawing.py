from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from gh_downstream.detection.data.records import CITYSCAPES_CLASSES, Annotation, DetectionDataset, Record
from gh_downstream.detection.drawing import CLASS_COLORS, class_color, comparison_grid, draw_detections
from gh_downstream.detection.evaluation import Detection

PERSON, CAR, BUS = 0, 2, 4
GREY = (128, 128, 128)


def annotation(category: int, box: list[float]) -> Annotation:
    return {"bbox": box, "category_id": category, "area": box[2] * box[3], "iscrowd": 0}


def detection(image_id: int, category: int, box: list[float], score: float = 0.9) -> Detection:
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score}


def grey_image(width: int = 256, height: int = 128) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def mask_of(image: Image.Image, category: int) -> np.ndarray:
    """Pixels in the colour of a class, of shape [height, width]."""
    return (np.asarray(image) == ImageColor.getrgb(class_color(category))).all(axis=-1)


def test_class_colours_are_distinct_and_repeat_after_the_last() -> None:
    assert len(set(CLASS_COLORS)) == len(CLASS_COLORS) >= len(CITYSCAPES_CLASSES)
    assert class_color(len(CLASS_COLORS) + 1) == class_color(1)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((256, 128), (768, 384)), ((300, 100), (600, 200)), ((2048, 1024), (768, 384)), ((768, 10), (768, 10))],
)
def test_small_images_grow_by_an_integer_and_large_ones_shrink(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert draw_detections(grey_image(*size), [], CITYSCAPES_CLASSES).size == expected


@pytest.mark.parametrize("size", [(256, 128), (1536, 768)])
def test_a_box_lies_where_its_object_is(size: tuple[int, int]) -> None:
    share = np.array([0.25, 0.5, 0.5, 0.375])
    box = (share * [*size, *size]).tolist()
    drawn = draw_detections(grey_image(*size), [annotation(CAR, box)], CITYSCAPES_CLASSES)
    rows, columns = np.nonzero(mask_of(drawn, CAR))
    assert columns.min() == 192
    assert columns.max() == 576
    assert rows.max() == 336
    # The label is above the box and the inside is free.
    assert 150 < rows.min() < 192
    assert set(np.asarray(drawn)[200:330, 200:570].reshape(-1, 3).ravel()) == {128}


def test_the_image_itself_is_not_drawn_on() -> None:
    image = grey_image()
    draw_detections(image, [annotation(CAR, [10, 10, 30, 30])], CITYSCAPES_CLASSES)
    assert image.getcolors() == [(256 * 128, GREY)]


def test_grey_and_transparent_images_are_drawn_in_colour() -> None:
    for mode in ("L", "RGBA", "P"):
        drawn = draw_detections(grey_image().convert(mode), [annotation(CAR, [10, 40, 30, 30])], CITYSCAPES_CLASSES)
        assert drawn.mode == "RGB"
        assert mask_of(drawn, CAR).any()


def test_a_score_is_part_of_the_label() -> None:
    box = [50.0, 50.0, 100.0, 50.0]
    plain = draw_detections(grey_image(), [annotation(CAR, box)], CITYSCAPES_CLASSES)
    scored = draw_detections(grey_image(), [detection(1, CAR, box)], CITYSCAPES_CLASSES)
    row = 50 * 3 - 2  # Just above the box: through the lower edge of the label.
    assert mask_of(scored, CAR)[row].sum() > mask_of(plain, CAR)[row].sum() > 0


def test_labels_at_the_border_stay_in_the_image() -> None:
    boxes = [annotation(CAR, [250, 0, 30, 20]), annotation(BUS, [-20, 100, 40, 40])]
    drawn = draw_detections(grey_image(), boxes, CITYSCAPES_CLASSES)
    # Below the box at the upper border, flush with the right one; above the box at the lower border.
    assert mask_of(drawn, CAR)[62, 740:].all()
    assert mask_of(drawn, BUS)[295, :2].all()


def test_labels_do_not_cover_each_other() -> None:
    box = [50.0, 40.0, 60.0, 40.0]
    alone = draw_detections(grey_image(), [detection(1, PERSON, box, 0.9)], CITYSCAPES_CLASSES)
    crowd = [detection(1, category, box, 0.8 - 0.1 * category) for category in range(1, 5)]
    together = draw_detections(grey_image(), [*crowd, detection(1, PERSON, box, 0.9)], CITYSCAPES_CLASSES)
    above = slice(0, 40 * 3 - 3)  # The label of the highest score is above the box.
    assert (mask_of(together, PERSON)[above] == mask_of(alone, PERSON)[above]).all()
    labelled = [category for category in range(5) if mask_of(together, category).sum() > 500]
    assert labelled == [0, 1, 2]


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    records: list[Record] = []
    for image_id in range(3):
        path = tmp_path / f"{image_id}.png"
        grey_image(64, 32).save(path)
        records.append(
            {
                "file_name": str(path),
                "image_id": image_id,
                "height": 32,
                "width": 64,
                "annotations": [annotation(PERSON, [10, 14, 8, 12])],
            }
        )
    return DetectionDataset("street_foggy_val", CITYSCAPES_CLASSES, records, fog_density=0.02)


def test_the_grid_shows_ground_truth_first_then_each_model(dataset: DetectionDataset) -> None:
    box = [30.0, 14.0, 12.0, 10.0]
    found = {
        "source-only": [detection(0, CAR, box), detection(0, BUS, box, 0.2), detection(2, BUS, box)],
        "adapted": [detection(0, BUS, box)],
    }
    grid = comparison_grid(dataset, found, [0], width=192)
    thirds = [grid.crop((left, 0, left + 192, 110)) for left in (0, 196, 392)]
    present = [{c for c in range(8) if mask_of(third, c).any()} for third in thirds]
    assert present == [{PERSON}, {CAR}, {BUS}]
    # The legend at the bottom has all classes.
    legend = grid.crop((0, 120, grid.width, grid.height))
    assert all(mask_of(legend, category).any() for category in range(8))


def test_the_grid_grows_with_images_and_models(dataset: DetectionDataset) -> None:
    one = comparison_grid(dataset, {"a": []}, [0], width=192)
    wrapped = comparison_grid(dataset, {"a": [], "b": [], "c": []}, [0], width=192)
    three = comparison_grid(dataset, {"a": []}, [0, 1, 2], width=192)
    assert wrapped.width > one.width
    assert wrapped.height > one.height + 96
    assert three.width == one.width
    assert three.height > one.height + 2 * 96


def test_a_grid_of_images_that_are_not_there_is_an_error(dataset: DetectionDataset) -> None:
    with pytest.raises(ValueError, match=r"'street_foggy_val' has no images \[7\]"):
        comparison_grid(dataset, {}, [0, 7])
    with pytest.raises(ValueError, match="no images to draw"):
        comparison_grid(dataset, {}, [])
    Path(dataset.records[1]["file_name"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        comparison_grid(dataset, {}, [1])
