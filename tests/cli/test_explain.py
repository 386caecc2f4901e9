"""Every key of every engine has a text."""

import pytest

from gh_downstream.cli.explain import explain, keys_of
from gh_downstream.comparison.engines import LOOP_ENGINES


@pytest.mark.parametrize("engine", LOOP_ENGINES, ids=lambda engine: engine.name)
def test_every_key_is_documented(engine):
    keys = list(keys_of(engine.schema))
    assert len(keys) > 40
    assert [key.name for key in keys if not key.text] == []
    assert len({key.name for key in keys}) == len(keys)


def test_names_of_the_user_s_stand_for_any():
    by_name = {key.name: engines for key, engines in explain("validation.city.path")}
    assert by_name.keys() == {"validation.NAME.path"}
    ((key, engines),) = explain("DA.STRONG_WEAK.GAMMA")
    assert (key.name, engines) == ("DA.STRONG_WEAK.GAMMA", ["detectron2"])


def test_a_text_is_that_of_the_docstring():
    ((key, _),) = explain("optimizer.clip_norm")
    assert key.type == "float | None"
    assert key.default == "null"
    assert key.text.startswith("Largest norm of the gradient")


def test_a_key_of_detectron2_s_has_the_text_of_its_table():
    config = pytest.importorskip("gh_downstream.detection.detectron2.config")
    ((key, engines),) = explain("DA.METHOD")
    assert (key.type, key.default, engines) == ("str", "image_instance", ["detectron2"])
    assert key.text in " ".join(config.add_adaptation_config.__doc__.split())
    assert "labels" in explain("TEACHER.ENABLED")[0][0].text


def test_a_key_of_detectron2_s_own_is_said_to_be_one():
    pytest.importorskip("detectron2")
    ((key, engines),) = explain("SOLVER.MAX_ITER")
    assert (key.type, key.default, engines) == ("int", "40000", ["detectron2"])
    assert "A key of Detectron2's own: https://" in key.text
    with pytest.raises(ValueError, match=r"did you mean SOLVER\.MAX_ITER"):
        explain("SOLVER.MAX_ITERS")
