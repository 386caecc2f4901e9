import logging

import pytest

from gh_downstream.detection.data.classes import common_classes, parse_classes


@pytest.mark.parametrize(
    ("value", "classes"),
    [
        (["car", "person"], {"car": (), "person": ()}),
        (("car",), {"car": ()}),
        (["person", {"car": ["vehicle", "automobile"]}], {"person": (), "car": ("vehicle", "automobile")}),
        ({"car": ["vehicle"], "person": None, "bus": []}, {"car": ("vehicle",), "person": (), "bus": ()}),
        ([{"car": "vehicle"}], {"car": ("vehicle",)}),
    ],
)
def test_classes_are_names_in_their_order_with_aliases(value, classes):
    assert parse_classes(value, "classes") == classes
    assert list(parse_classes(value, "classes")) == list(classes)


@pytest.mark.parametrize(
    "value", ["car", 5, [], {}, [5], [None], [[]], [""], [{"car": 5}], [{"car": [["a"]]}], [{5: []}]]
)
def test_what_is_no_classes_is_shown(value):
    with pytest.raises(ValueError, match=r"^KEY takes names, or names with aliases, .*; got"):
        parse_classes(value, "KEY")


@pytest.mark.parametrize(
    "value", [["car", "car"], ["car", {"bus": ["car"]}], [{"car": ["a"]}, {"bus": ["a"]}], [{"car": ["car"]}]]
)
def test_a_name_is_of_one_class(value):
    with pytest.raises(ValueError, match=r"^KEY has (car|a) twice$"):
        parse_classes(value, "KEY")


def test_what_data_sets_have_in_common_is_in_the_order_of_the_first_and_what_is_not_is_logged(caplog):
    categories = {"source": ("bus", "car", "person"), "target": (), "validation.a": ("person", "bus", "dog")}
    assert list(common_classes(categories, "KEY")) == ["bus", "person"]
    assert "bus, person (source has bus, car, person; validation.a has person, bus, dog); KEY" in caplog.text
    caplog.clear()
    assert list(common_classes({"a": ("bus", "car"), "b": ("car", "bus")}, "KEY")) == ["bus", "car"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_nothing_in_common_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"no class in common \(a has car; b has vehicle\): KEY, such as"):
        common_classes({"a": ("car",), "b": ("vehicle",)}, "KEY")
