"""Checkpoints: damaged ones, foreign ones, and weights for another stage."""

import pickle
from contextlib import suppress

import pytest
import torch
from torch import nn

from gh_downstream.files import atomic_file
from gh_downstream.training import (
    CheckpointError,
    ExperimentConfig,
    TrainingConfig,
    load_all_weights,
    load_checkpoint,
    load_weights,
)
from gh_downstream.training.checkpoint import CheckpointWriter, load_last, save_checkpoint


def network(width=3):
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 3, "model": network().state_dict()})
    return path


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    for content in (b"old", b"new"):
        with atomic_file(path) as file:
            file.write(content)
        assert path.read_bytes() == content

    def interrupted():
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"new"


def test_truncated_anywhere_is_said_to_be_damaged(saved):
    content = saved.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"last\.pt is damaged or not a checkpoint: give last\.pt, best"):
            load_checkpoint(saved)
        with pytest.raises(
            CheckpointError, match=r"not a checkpoint: restore it, or delete it, and a training goes on"
        ):
            load_last(ExperimentConfig(output=str(saved.parent), training=TrainingConfig(steps=1)))


def test_foreign_files_are_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / "foreign.pt"
    for content in (pickle.dumps(Evil(), protocol=2), b"text", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"foreign\.pt"):
            load_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    torch.save(network().state_dict(), path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this version"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*nowhere\.pt; there are foreign\.pt"):
        load_checkpoint(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("bare", [False, True])
def test_weights_of_another_stage(saved, bare):
    source = network()
    state = source.state_dict()
    torch.save(state, saved) if bare else save_checkpoint(saved, {"model": state})
    model = network()
    assert load_weights(model, saved) == []
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_the_file_lacks_keeps_its_values_and_is_named(saved, caplog):
    model = nn.Sequential(*network(), nn.Linear(1, 5))
    before = model[3].weight.clone()
    assert load_weights(model, saved) == ["3.weight", "3.bias"]
    assert torch.equal(model[3].weight, before)
    assert "lacks 3.weight, 3.bias" in caplog.text


def test_weights_of_something_else_are_refused(saved):
    with pytest.raises(
        CheckpointError,
        match=r"last\.pt lacks 7 of the 8 tensors .*: 0\.weight \(\[3, 2\] there, \[4, 2\] here\), .* and 2 more",
    ):
        load_weights(network(width=4), saved)
    torch.save([1, 2], saved)
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a state dict"):
        load_weights(network(), saved)


def test_of_a_trained_model_nothing_may_be_missing_or_left_over(saved):
    for other, message in (
        (
            nn.Sequential(*network(), nn.Linear(1, 5)),
            r"lacks 3\.weight, 3\.bias of the model, or has other shapes: it bel",
        ),
        (network()[:2], r"has 2\.weight, 2\.bias, which the model lacks: it belongs to another configuration"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_all_weights(other, saved)
    load_all_weights(nn.Sequential(*network(), nn.Linear(1, 5)), saved, "0.")
    load_all_weights(network(), saved)


def test_what_is_written_in_the_background_is_what_it_was_when_it_was_given(tmp_path):
    model = network()
    tied = nn.ModuleList([model, model[0]])
    expected = []
    with CheckpointWriter() as writer:
        for step in range(3):
            expected.append({name: value.clone() for name, value in tied.state_dict().items()})
            state = {"step": step, "model": tied.state_dict(), "note": [1.5, {"a": None}]}
            writer.save(tmp_path / "last.pt", state, tmp_path / "previous.pt")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1)
            state["note"][1]["a"] = "changed"
    for name, step in (("last.pt", 2), ("previous.pt", 1)):
        found = load_checkpoint(tmp_path / name)
        assert (found["step"], found["note"]) == (step, [1.5, {"a": None}])
        assert found["model"].keys() == expected[step].keys()
        assert all(torch.equal(value, expected[step][key]) for key, value in found["model"].items())
    # Weights that are one in memory are one in the file, and a module reads its own version of the state.
    assert found["model"]["0.0.weight"].data_ptr() == found["model"]["1.weight"].data_ptr()
    assert found["model"]._metadata == tied.state_dict()._metadata


def test_what_could_not_be_written_is_raised_by_the_next_call_or_logged_behind_another_error(tmp_path, caplog):
    (tmp_path / "file").touch()
    nowhere = tmp_path / "file" / "last.pt"
    with CheckpointWriter() as writer:
        writer.save(nowhere, {"step": 1})
        with pytest.raises(FileExistsError):
            writer.wait()
        writer.save(nowhere, {"step": 2})
        with pytest.raises(FileExistsError):
            writer.save(tmp_path / "last.pt", {"step": 3})
        writer.save(tmp_path / "last.pt", {"step": 4})
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4
    with pytest.raises(FileExistsError), CheckpointWriter() as writer:
        writer.save(nowhere, {"step": 5})
    with suppress(ZeroDivisionError), CheckpointWriter() as writer:
        writer.save(nowhere, {"step": 6})
        writer.save(nowhere, {"step": 1 // 0})
    assert "a checkpoint could not be written" in caplog.text
