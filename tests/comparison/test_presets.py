"""The presets: their configurations, their sizes and their data."""

import itertools
from pathlib import Path

import pytest

from gh_downstream.comparison.presets import PRESETS, find_preset, find_presets, preset_of_config
from gh_downstream.comparison.runs import Comparison


def runs_of(preset, folder, **settings):
    return Comparison([preset], ["sum", "gh++:adaptive"], folder / "out", folder, oracle=True, **settings).runs()


def settings_of(run):
    return run.preset.engine.content(run.preset.engine.load(run.config, run.overrides))


# One of each group: the pairs of domains differ in their data alone.
@pytest.fixture(params=sorted({preset.group or preset.name: preset.name for preset in PRESETS.values()}.values()))
def preset(request, monkeypatch):
    if "detectron2" in request.param:
        pytest.importorskip("detectron2.engine", reason="needs Detectron2", exc_type=ImportError)
        monkeypatch.setenv("DETECTRON2_DATASETS", "")  # so that what a preset sets is taken back
    return PRESETS[request.param]


@pytest.mark.parametrize("small", [False, True], ids=["full", "small"])
def test_the_configurations_can_be_used(preset, small, tmp_path):
    for run in runs_of(preset.in_small() if small else preset, tmp_path):
        run.check()
        if run.burn_in is not None:
            run.burn_in.check()


@pytest.mark.parametrize("name", ["detection", "retrieval"])
def test_only_the_runs_with_a_weighting_are_harmonized(name, tmp_path):
    for run in runs_of(find_preset(name), tmp_path, seeds=1):
        harmonization = settings_of(run)["harmonization"]
        expected = run.weighting if run.scope else "none"
        assert harmonization["weighting"] == expected


def test_the_oracle_sees_the_labels_of_the_target_and_source_only_none_of_its_images(tmp_path):
    runs = {run.weighting: settings_of(run) for run in runs_of(find_preset("detection"), tmp_path)}
    adapted, oracle = runs["sum"], runs["oracle"]
    assert oracle["target"] is runs["source-only"]["target"] is None
    assert {key: oracle["source"][key] for key in ("fog_density", "cities", "root")} == {
        key: adapted["target"][key] for key in ("fog_density", "cities", "root")
    }
    assert runs["source-only"]["source"] == adapted["source"]


def test_the_smaller_size_has_fewer_steps_everywhere_and_one_seed(tmp_path):
    preset = find_preset("detection")
    full, small = (runs_of(p, tmp_path) for p in (preset, preset.in_small()))
    for before, after in zip(full, small, strict=True):
        assert settings_of(after)["training"]["steps"] < settings_of(before)["training"]["steps"]
        steps = [settings_of(run.burn_in)["training"]["steps"] for run in (before, after)]
        assert steps[1] < steps[0]
    assert {run.seed for run in runs_of(find_preset("retrieval").in_small(), tmp_path)} == {0}
    assert {run.seed for run in runs_of(find_preset("retrieval"), tmp_path)} == {0, 1, 2}


def test_a_method_has_what_its_runs_need(tmp_path):
    runs = runs_of(find_preset("mnist-usps"), tmp_path, methods=["cdan", "mcd"], seeds=1)
    steps = {(run.method, settings_of(run)["training"]["steps"]) for run in runs}
    assert steps == {("", 200), ("cdan", 200), ("mcd", 120)}


@pytest.mark.parametrize(
    "preset", [preset for preset in PRESETS.values() if preset.data], ids=lambda preset: preset.name
)
def test_data_of_something_else_are_left_alone(preset, tmp_path):
    folder = tmp_path / preset.data.folder
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(ValueError, match=f"{preset.data.folder} holds something else"):
        preset.data.make(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_group_of_tasks_has_every_ordered_pair_of_domains(tmp_path):
    pairs = set()
    for preset in find_presets("office-caltech"):
        run = runs_of(preset, tmp_path, seeds=1)[-1]
        settings = settings_of(run)
        domains = [settings[side]["benchmark"].removeprefix("office-caltech/") for side in ("source", "target")]
        assert [Path(settings[side]["path"]).name for side in ("source", "target")] == domains
        assert settings["validation"]["target"] == settings["target"]
        assert preset.name == f"office-caltech-{domains[0]}-{domains[1]}"
        assert find_presets(preset.name) == [preset]
        pairs.add(tuple(domains))
    assert pairs == set(itertools.permutations(("amazon", "webcam", "dslr"), 2))


def test_an_unknown_task_is_an_error():
    with pytest.raises(ValueError, match="no task 'letters': there are digits"):
        find_preset("letters")


def test_any_configuration_makes_a_preset(tmp_path):
    (tmp_path / "mine.yaml").touch()
    preset = preset_of_config(tmp_path / "mine.yaml", "retrieval")
    assert (preset.name, preset.metric) == ("mine", "target/image_to_text_R@1")
    (run, *_) = runs_of(preset, tmp_path, seeds=1)
    assert run.config == (tmp_path / "mine.yaml").resolve()
    assert run.folder.relative_to(tmp_path) == Path("out/mine/sum/shared/seed0")
    with pytest.raises(FileNotFoundError, match="retrieval/mini"):
        preset_of_config("retrieval/minni", "retrieval")
