"""Real processes, really killed: methods of several updates, or whose weights come back, resume bit for bit."""

import signal

import pytest
import torch
from accelerate.state import AcceleratorState

from gh_downstream.training import load_checkpoint, read_metrics
from tests.classification import tiny_domains as tiny
from tests.ranks import CONTEXT

pytestmark = pytest.mark.slow


def flat(state):
    if isinstance(state, dict):
        return {f"{key}/{path}": value for key, child in state.items() for path, value in flat(child).items()}
    return flat(dict(enumerate(state))) if isinstance(state, (list, tuple)) else {"": state}


@pytest.mark.parametrize("baseline", tiny.RESUMED)
def test_a_killed_training_ends_with_the_same_bits(baseline, tmp_path):
    # Killed after the checkpoints at 6 and 9: before and after weights come back at step 8.
    for step in (7, 10):
        process = CONTEXT.Process(target=tiny.run_collapsing, args=(baseline, tmp_path / "killed", step))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert load_checkpoint(tmp_path / "killed" / "last.pt")["step"] == step - 1
    AcceleratorState._reset_state(True)
    for name in ("killed", "whole"):
        model = tiny.run_collapsing(baseline, tmp_path / name)
    one, other = (flat(load_checkpoint(tmp_path / name / "last.pt")) for name in ("killed", "whole"))
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        elif not key.startswith("config/output"):
            assert value == other[key], key
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "whole")]
    assert lines[0] == lines[1]
    if baseline == "ssrt":
        assert model.guard.counters.tolist() == [12, 8, 4, 8]  # it did give weights up, once, at step 8


@pytest.mark.parametrize("weighting", ["sum", "gh", "gh++"])
def test_a_training_on_the_four_losses_of_gvb_resumes(weighting, tmp_path):
    tasks = {
        "domain": ["loss_domain"],
        "generator_bridge": ["loss_generator_bridge"],
        "discriminator_bridge": ["loss_discriminator_bridge"],
        "classification": [],
    }
    models = {}
    for name, steps in (("parts", 3), ("parts", 6), ("whole", 6)):
        model, batch = tiny.build("gvb", hidden=7)
        settings = tiny.config(
            tmp_path / name,
            steps=steps,
            harmonization={"weighting": weighting, "tasks": tasks},
            optimizer={"lr": 0.01, "momentum": 0.9, "schedule": "step"},
        )
        models[name] = tiny.train(settings, model, tiny.repeated(batch)).module.state_dict()
    assert all(torch.equal(models["parts"][name], value) for name, value in models["whole"].items())
    for line in read_metrics(tmp_path / "parts" / "metrics.jsonl"):
        assert all(line[f"gh/norm/{task}"] > 0 for task in tasks)
        assert (line["gh/gain"] == pytest.approx(1)) == (weighting == "sum" or not line["gh/conflict"])
