"""Recall against an exact oracle on ties, open_clip's metrics, and what must hold of any recall."""

import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from gh_downstream.retrieval.evaluation import (
    METRICS,
    RetrievalResult,
    evaluate_retrieval,
    recall_table,
    results_table,
)

RECALL_NAMES = [name for name in METRICS if "R@" in name]


@st.composite
def tied_features(draw):
    """Small integer features, of which many are tied, with one or several captions of each image."""
    images, texts, width = draw(st.integers(1, 6)), draw(st.integers(0, 8)), draw(st.integers(1, 3))
    feature = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    image_of_text = draw(st.permutations([*range(images), *(draw(st.integers(0, images - 1)) for _ in range(texts))]))
    image_features, text_features = (
        draw(st.lists(feature, min_size=n, max_size=n)) for n in (images, len(image_of_text))
    )
    return image_features, text_features, list(image_of_text)


def random_features(seed, images=23, texts=61, width=5, dtype=torch.float32):
    """Features of captions near those of their images."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.cat([torch.arange(images), torch.randint(images, (texts - images,), generator=generator)])
    owner = owner[torch.randperm(texts, generator=generator)]
    image_features = torch.randn(images, width, generator=generator)
    text_features = image_features[owner] + torch.randn(texts, width, generator=generator)
    return image_features.to(dtype), text_features.to(dtype), owner


def cosine_key(a, b):
    """Grows with the cosine of two integer vectors, and is exact: its square with its sign."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    norms = sum(x * x for x in a) * sum(x * x for x in b)
    return Fraction(dot * abs(dot), norms) if norms else Fraction(0)


def oracle(images, texts, image_of_text, caption_ids=None):
    """Sort the whole matrix, the right answer after the wrong ones that it ties with."""
    caption_ids = caption_ids or range(len(texts))
    owners = {(caption_ids[text], image) for text, image in enumerate(image_of_text)}
    texts = [texts[caption] for caption in caption_ids]
    matrix = [[cosine_key(image, text) for text in texts] for image in images]

    def metrics(direction, keys, right):
        positions = []
        for query, row in enumerate(keys):
            order = sorted(range(len(row)), key=lambda i: (-row[i], right(query, i)))
            positions.append(next(position for position, i in enumerate(order) if right(query, i)))
        middle = sorted(positions)
        median = (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) // 2 + 1
        recalls = {f"{direction}_R@{k}": 100 * sum(p < k for p in positions) / len(positions) for k in (1, 5, 10)}
        return {**recalls, f"{direction}_median_rank": median}

    result = metrics("image_to_text", matrix, lambda image, text: (caption_ids[text], image) in owners)
    transposed = list(zip(*matrix, strict=True))
    result |= metrics("text_to_image", transposed, lambda text, image: (caption_ids[text], image) in owners)
    result["mean_recall"] = sum(result[name] for name in RECALL_NAMES) / 6
    return result


@given(tied_features(), st.integers(1, 20))
def test_agrees_with_an_exact_sort_of_the_whole_matrix(features, chunk):
    images, texts, image_of_text = features
    result = evaluate_retrieval(torch.tensor(images) * 1.0, torch.tensor(texts) * 1.0, image_of_text, "a", chunk=chunk)
    assert result.metrics == pytest.approx(oracle(*features), rel=1e-12)
    assert (result.name, result.num_images, result.num_texts) == ("a", len(images), len(texts))


@given(tied_features(), st.integers(1, 20), st.data())
def test_a_caption_of_several_images_is_right_for_each_of_them(features, chunk, data):
    images, texts, image_of_text = features
    said = data.draw(st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)))
    ids = [said.index(caption) for caption in said]
    result = evaluate_retrieval(
        torch.tensor(images) * 1.0, torch.tensor(texts) * 1.0, image_of_text, "a", caption_ids=ids, chunk=chunk
    )
    assert result.metrics == pytest.approx(oracle(*features, ids), rel=1e-12)


def test_equal_captions_of_a_perfect_model_recall_everything():
    metrics = evaluate_retrieval(torch.eye(3), torch.eye(3)[[0, 0, 2]], [0, 1, 2], "a", caption_ids=[0, 0, 2]).metrics
    # The second image has the caption of the first; its own features say nothing of it.
    assert metrics["text_to_image_R@1"] == 100
    assert metrics["image_to_text_R@1"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("ids", [[0, 1, 2], [0, 1, 3, 3], [0, 1, 1, 2], [0, -1, 2, 2]])
def test_ids_that_name_no_first_caption_are_refused(ids):
    with pytest.raises(ValueError, match="'a': caption_ids must be the index of the first equal caption"):
        evaluate_retrieval(IMAGES, TEXTS, [0, 1, 2, 2], "a", caption_ids=ids)


@pytest.mark.parametrize("seed", range(5))
def test_one_caption_for_each_image_is_as_in_open_clip(seed):
    get_clip_metrics = pytest.importorskip("open_clip_train.train").get_clip_metrics
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(40 + seed, 8, generator=generator)
    texts = images + 1.5 * torch.randn(images.shape, generator=generator)
    theirs = get_clip_metrics(*(torch.nn.functional.normalize(x.double(), dim=1) for x in (images, texts)), 100.0)
    ours = evaluate_retrieval(images, texts, torch.arange(len(images)), "pairs").metrics
    for name in set(METRICS) - {"mean_recall"}:
        assert ours[name] == pytest.approx(theirs[name] * (100 if "R@" in name else 1), rel=1e-12), name
    assert 0 < ours["image_to_text_R@1"] < 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_neither_order_nor_scale_nor_chunk_matters(seed, dtype):
    images, texts, owner = random_features(seed, dtype=dtype)
    images, texts = (torch.cat([x, x[:7]]) for x in (images, texts))  # Duplicates tie, in whatever chunk they are.
    owner = torch.cat([owner, torch.arange(23, 30)])
    expected = evaluate_retrieval(images, texts, owner, "a")
    generator = torch.Generator().manual_seed(seed)
    image_order, text_order = (torch.randperm(len(x), generator=generator) for x in (images, texts))
    permuted = images[image_order], texts[text_order], image_order.argsort()[owner][text_order]
    for chunk in (1, 2, 7, 30, 68, 1000):
        assert evaluate_retrieval(images, texts, owner, "a", chunk=chunk) == expected
        assert evaluate_retrieval(*permuted, "a", chunk=chunk) == expected
    powers = 2.0 ** torch.randint(-3, 4, (len(texts), 1), generator=generator).to(dtype)
    assert evaluate_retrieval(8 * images, powers * texts, owner, "a") == expected
    assert 0 < expected.metrics["mean_recall"] < 100


@pytest.mark.parametrize("seed", range(5))
def test_reversed_roles_swap_the_directions(seed):
    images, texts, owner = random_features(seed, images=23, texts=23)
    forward = evaluate_retrieval(images, texts, owner, "a").metrics
    backward = evaluate_retrieval(texts, images, owner.argsort(), "a").metrics
    for metric in ("R@1", "R@5", "R@10", "median_rank"):
        assert forward[f"image_to_text_{metric}"] == backward[f"text_to_image_{metric}"]
        assert forward[f"text_to_image_{metric}"] == backward[f"image_to_text_{metric}"]
    assert backward["mean_recall"] == pytest.approx(forward["mean_recall"])


@pytest.mark.parametrize("seed", range(5))
def test_bounds(seed):
    metrics = evaluate_retrieval(*random_features(seed), "a").metrics
    assert list(metrics) == list(METRICS)
    for direction, candidates in (("image_to_text", 61), ("text_to_image", 23)):
        at_1, at_5, at_10 = (metrics[f"{direction}_R@{k}"] for k in (1, 5, 10))
        assert 0 <= at_1 <= at_5 <= at_10 <= 100
        assert 1 <= metrics[f"{direction}_median_rank"] <= candidates
    recalls = [metrics[name] for name in RECALL_NAMES]
    assert min(recalls) <= metrics["mean_recall"] <= max(recalls)


def test_perfect_features_with_five_captions_recall_everything():
    images = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    owner = torch.arange(200).repeat(5)
    metrics = evaluate_retrieval(images, images[owner], owner, "a").metrics
    assert all(value == (1 if "rank" in name else 100) for name, value in metrics.items())


def test_a_collapsed_model_recalls_nothing():
    metrics = evaluate_retrieval(torch.full((20, 3), 0.1), torch.full((40, 3), 0.7), [*range(20)] * 2, "a").metrics
    assert metrics["mean_recall"] == 0
    assert metrics["image_to_text_median_rank"] == 39  # After the 38 captions of other images.
    assert metrics["text_to_image_median_rank"] == 20


def test_any_caption_of_an_image_hits():
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])  # The second of the first image lies on the other one.
    metrics = evaluate_retrieval(images, texts, [0, 0, 1], "a").metrics
    assert metrics["image_to_text_R@1"] == 50  # The wrong caption is nearer to the second image than its own.
    assert metrics["text_to_image_R@1"] == pytest.approx(200 / 3)


def test_no_tensor_grows_with_images_times_captions():
    sizes = []

    class Sizes(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (result if isinstance(result, tuple) else [result]) if torch.is_tensor(x))
            return result

    images, texts, owner = random_features(0, images=300, texts=700)
    with Sizes():
        evaluate_retrieval(images, texts, owner, "a", caption_ids=torch.zeros(700, dtype=torch.long), chunk=32)
    assert max(sizes) <= texts.numel()


IMAGES, TEXTS = torch.eye(3), torch.eye(3)[[0, 1, 2, 2]]
FAULTS = {
    "image without caption": ((IMAGES, TEXTS, [0, 0, 2, 2]), r"'a': 1 of 3 images have no caption, first image 1"),
    "caption without image": ((IMAGES, TEXTS, [0, 1, 2, 3]), r"'a': 1 captions have no image: caption 3 names image 3"),
    "negative index": ((IMAGES, TEXTS, [0, 1, -1, 2]), r"caption 2 names image -1, there are images 0 to 2"),
    "too few indices": ((IMAGES, TEXTS, [0, 1, 2]), r"one integer for each of the 4 captions, got shape \[3\]"),
    "real indices": ((IMAGES, TEXTS, [0.0, 1.0, 2.0, 2.0]), r"one integer for each of the 4 captions"),
    "no captions": ((IMAGES, TEXTS[:0], []), r"needs images and captions, got 3 and 0"),
    "other widths": ((IMAGES, TEXTS[:, :2], [0, 1, 2, 2]), r"same D, got \[3, 3\] and \[4, 2\]"),
    "one axis": ((IMAGES[0], TEXTS, [0, 1, 2, 2]), r"must be \[N, D\] and \[M, D\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_arguments_are_refused(fault):
    arguments, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(*arguments, "a")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["image", "caption"])
def test_features_that_are_not_finite_are_refused(kind, value):
    features = {"image": IMAGES.clone(), "caption": TEXTS.clone()}
    features[kind][2, 1] = value
    with pytest.raises(ValueError, match=rf"features of 1 of . {kind}s are not finite, first of {kind} 2"):
        evaluate_retrieval(*features.values(), [0, 1, 2, 2], "a")


def test_large_half_precision_features_are_finite():
    large = torch.full((2, 4), 60000.0, dtype=torch.float16) * torch.tensor([[1], [-1]], dtype=torch.float16)
    assert evaluate_retrieval(large, large, [0, 1], "a").metrics["mean_recall"] == 100


def test_chunk_and_processes_are_checked():
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        evaluate_retrieval(IMAGES, TEXTS, [0, 1, 2, 2], "a", chunk=0)
    with pytest.raises(RuntimeError, match="init_process_group"):
        evaluate_retrieval(IMAGES, TEXTS, [0, 1, 2, 2], "a", distributed=True)


SHARED = [min(caption % 40, caption) for caption in range(61)]


def evaluate_in_rank(rank):
    """The results of one of two processes, and the error about features of its own."""
    results = [
        evaluate_retrieval(*random_features(0), "a", caption_ids=SHARED, chunk=chunk, distributed=True).as_dict()
        for chunk in (4, 7, 100)
    ]
    try:
        evaluate_retrieval(*random_features(rank), "a", distributed=True)
        error = None
    except ValueError as refused:
        error = str(refused)
    return results, error


def test_two_processes_share_the_work(ranks):
    expected = evaluate_retrieval(*random_features(0), "a", caption_ids=SHARED).as_dict()
    for results, error in ranks(evaluate_in_rank):
        assert results == [expected] * 3
        assert "the processes have different features" in error


def make_result(value=30.0, name="test", texts=500):
    return RetrievalResult(name, 100, texts, {metric: value + i for i, metric in enumerate(METRICS)})


def test_result_survives_json():
    result = evaluate_retrieval(*random_features(0), "a")
    assert RetrievalResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result
    values = result.as_dict()
    with pytest.raises(ValueError, match=r"unknown keys \['num_texts'\]"):
        RetrievalResult.from_dict({key: value for key, value in values.items() if key != "num_texts"})
    metrics = {("R@1" if key == "mean_recall" else key): value for key, value in values["metrics"].items()}
    with pytest.raises(ValueError, match=r"unknown metrics \['R@1', 'mean_recall'\]"):
        RetrievalResult.from_dict({**values, "metrics": metrics})


def test_table_names_what_was_measured():
    table = recall_table({"source-only": make_result(), "aligned": make_result(40)}, config_hash="3f2a91c0")
    assert table.columns[0] == "model"
    assert len(table.columns) == 1 + len(METRICS)
    assert table.rows[1] == ["aligned", *(40.0 + i for i in range(len(METRICS)))]
    text = table.to_text()
    for part in ("test, 100 images, 500 captions", "3f2a91c0", "i2t R@1", "t2i rank", "mR"):
        assert part in text
    assert "±" not in text


def test_table_columns_hold_their_metric():
    metrics = dict.fromkeys(METRICS, 0.0) | {"text_to_image_R@5": 1.0, "image_to_text_median_rank": 2.0}
    table = recall_table({"a": RetrievalResult("test", 1, 1, metrics)}, config_hash="")
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert {column for column, cell in row.items() if cell == 1.0} == {"t2i R@5"}
    assert {column for column, cell in row.items() if cell == 2.0} == {"i2t rank"}


def test_one_table_has_a_row_for_each_data_set():
    results = [make_result(20, "source"), make_result(10, "target", texts=300), make_result(5, "zero-shot", texts=100)]
    table = results_table("gh++", {result.name: result for result in results}, "3f2a91c0")
    assert [row[0] for row in table.rows] == ["source", "target", "zero-shot"]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert rows[1]["i2t R@1"] == results[1].metrics["image_to_text_R@1"]
    assert rows[1]["t2i rank"] == results[1].metrics["text_to_image_median_rank"]
    assert (rows[1]["mR"], rows[1]["images"], rows[1]["captions"]) == (results[1].metrics["mean_recall"], 100, 300)
    text = table.to_text()
    for part in ("Recall of gh++", "3f2a91c0", "ties count against the model"):
        assert part in text


def test_table_shows_the_spread_over_seeds():
    seeds = [make_result(20), make_result(23), make_result(26)]
    table = recall_table({"aligned": seeds, "oracle": make_result(50.0)}, config_hash="3f2a91c0")
    assert table.columns[:2] == ["model", "runs"]
    assert [row[1] for row in table.rows] == [3, 1]
    assert table.format_cell(table.rows[0][2]) == "23.0 ± 3.0"
    assert table.format_cell(table.rows[1][2]) == "50.0"
    assert "sample standard deviation" in table.to_text()


def test_table_refuses_what_cannot_be_compared():
    for other in (make_result(name="other"), make_result(texts=499)):
        with pytest.raises(ValueError, match="different data sets cannot share a table: 'a' is on test, 100 images"):
            recall_table({"a": make_result(), "b": [make_result(), other]}, config_hash="")
    with pytest.raises(ValueError, match="no result for 'b'"):
        recall_table({"a": make_result(), "b": []}, config_hash="")
    with pytest.raises(ValueError, match="no rows"):
        recall_table({}, config_hash="")
