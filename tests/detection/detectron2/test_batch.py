"""A batch of both domains, divided, and what is wrong with one."""

import pytest
import torch

from gh_downstream.detection.detectron2.batch import by_domain, pseudo_labels
from tests.detection.detectron2.adaptive_models import source, target


def test_the_domains_are_told_apart_in_any_order():
    first, second = source(2), target(3)
    assert by_domain([second[0], *first, *second[1:]]) == (first, second)
    assert by_domain([first[0] | {"domain": "source"}])[1] == []


def test_pseudo_labels_are_those_of_all_images_or_of_none():
    device = torch.device("cpu")
    assert pseudo_labels(target(2), device) is None
    assert pseudo_labels([], device) is None
    assert [len(found) for found in pseudo_labels(target(2, pseudo=True), device)] == [2, 2]
    with pytest.raises(ValueError, match='1 of 2 images of target have "pseudo_instances"'):
        pseudo_labels(target(1) + target(1, pseudo=True), device)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (target(2), "needs images of source"),
        ([{"image": torch.zeros(3, 64, 128), "file_name": "a.png"}], r'a.png: no "instances" .* "domain": "target"'),
        ([source(1)[0] | {"domain": "Target"}], r'"domain" is source or target, got \'Target\''),
    ],
    ids=["no source", "no labels", "domain"],
)
def test_what_cannot_be_divided(batch, message):
    with pytest.raises(ValueError, match=message):
        by_domain(batch)
