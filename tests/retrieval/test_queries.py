"""What is said of each query; tests/retrieval/test_zero_shot.py has the file that an evaluation writes."""

import json

import pytest
import torch

from gh_downstream.retrieval import queries
from gh_downstream.retrieval.evaluation import evaluate_retrieval, evaluate_zero_shot


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(11, 4, generator=generator), torch.randn(25, 4, generator=generator)


def lines(result, images, texts):
    names = [f"{k}.png" for k in range(len(images))], [f"text {k}" for k in range(len(texts))]
    return [*map(json.loads, queries.rank_lines(result, (names[0], images), (names[1], texts)))]


def test_the_top_answer_is_the_most_similar_of_all(features):
    images, texts = features
    found = lines(evaluate_retrieval(images, 5 * texts, [*range(11), *range(11), 0, 1, 2], "a"), images, 5 * texts)
    cosines = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
    assert [line["top"] for line in found[:11]] == [f"text {k}" for k in cosines.argmax(1).tolist()]
    assert [line["top"] for line in found[11:]] == [f"{k}.png" for k in cosines.argmax(0).tolist()]
    assert [line["query"] for line in found] == [*(f"{k}.png" for k in range(11)), *(f"text {k}" for k in range(25))]
    assert {line["data"] for line in found} == {"a"}


def test_of_classes_images_alone_are_queries(features):
    images, classes = features
    found = lines(evaluate_zero_shot(images, classes, torch.arange(11), "b"), images, classes)
    assert [line["direction"] for line in found] == ["zero_shot"] * 11
    assert all((line["rank"] == 1) == (line["top"] == f"text {k}") for k, line in enumerate(found))


def test_the_size_of_the_pieces_changes_nothing(features):
    images, texts = features
    whole = [*queries._most_similar(images, texts)]
    for chunk in (1, 3, 11, 25):
        assert [*queries._most_similar(images, texts, chunk)] == whole
