"""Checkpoints: fit, finiteness, damage, and pickles that would run code; files as the model zoo has them."""

import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from gh_downstream.detection.detectron2.checkpoint import WholeCheckpointer
from gh_downstream.training.checkpoint import CheckpointError
from tests.detection.detectron2.adaptive_models import model_of, plain_of
from tests.integrations.detectron2.toy_detectors import ToyDetector, toy_trainer


def pickled(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return str(path)


def of_python_2(array):
    """An array as NumPy for Python 2 pickled it, whose bytes are a string; pickle of Python 3 does not write that."""
    assert array.dtype == np.float32
    content = array.tobytes()
    shape = b"(" + b"".join(b"K" + bytes([size]) for size in array.shape) + b"t"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01" + shape
        + b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"I00\nT" + struct.pack("<I", len(content)) + content + b"tb"
    )  # fmt: skip


def zoo_of_python_2(path, arrays):
    entries = b"".join(b"U" + bytes([len(k)]) + k.encode() + of_python_2(v) for k, v in arrays.items())
    path.write_bytes(b"\x80\x02}(U\x05blobs}(" + entries + b"uu.")
    return str(path)


def arrays_of(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_the_model_zoo_are_read(tmp_path, protocol):
    expected, model = ToyDetector(seed=1), ToyDetector()
    content = OrderedDict(model=arrays_of(expected), __author__="Detectron2 Model Zoo", epoch=np.float64(3))
    WholeCheckpointer(model).load(pickled(tmp_path / "zoo.pkl", content, protocol))
    assert all(
        torch.equal(found, wanted) for found, wanted in zip(model.parameters(), expected.parameters(), strict=True)
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_arrays_of_every_kind_are_read_as_numpy_reads_them(tmp_path, order, layout):
    kinds = ["f2", "f4", "f8", "i1", "i8", "u1", "?"]
    arrays = {kind: np.arange(6).reshape(2, 3).astype(order + kind, order=layout) for kind in kinds}
    arrays |= {"empty": np.zeros((0, 4), "f4"), "scalar": np.array(2.5)}
    for protocol in (2, 4, 5):
        found = WholeCheckpointer(ToyDetector())._load_file(
            pickled(tmp_path / "a.pkl", {"model": arrays, "__author__": ""}, protocol)
        )
        for name, wanted in arrays.items():
            np.testing.assert_array_equal(found["model"][name], wanted)
            assert found["model"][name].dtype.kind == wanted.dtype.kind


def test_a_file_of_caffe2_and_python_2_is_converted(tmp_path):
    """The ImageNet weights of the model zoo: other names, momenta, and no heads."""
    model = plain_of("fpn")
    width = model.backbone.bottom_up.stem.conv1.weight.shape
    values = np.random.default_rng(0).normal(size=width).astype("f4")
    blobs = {"conv1_w": values, "conv1_w_momentum": values}
    path = zoo_of_python_2(tmp_path / "R-50.pkl", blobs)
    content = WholeCheckpointer(model)._load_file(path)
    assert content["matching_heuristics"] is True
    assert list(content["model"]) == ["conv1_w"]
    np.testing.assert_array_equal(content["model"]["conv1_w"], values)
    with open(path, "rb") as file:
        np.testing.assert_array_equal(pickle.load(file, encoding="latin1")["blobs"]["conv1_w"], values)


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["x.pkl", "x.pth", "x.pyth"])
@pytest.mark.parametrize("place", ["file", "weights", "array"])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path, name, place):
    evil = Runs(str(tmp_path / "ran"))
    array = np.empty(1, dtype=object)
    array[0] = evil
    content = {"file": evil, "weights": {"model": {"x": evil}, "__author__": ""}, "array": {"model": {"x": array}}}[
        place
    ]
    path = tmp_path / name
    if name == "x.pkl":
        pickled(path, content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"{name}.*(may run code|is not read)"):
        WholeCheckpointer(ToyDetector()).load(str(path))
    assert not (tmp_path / "ran").exists()
    (tmp_path / "last_checkpoint").write_text(name)
    with pytest.raises(CheckpointError, match=name):
        WholeCheckpointer(ToyDetector(), str(tmp_path)).resume_or_load("")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["O", "V8", "U3", "M8[s]"])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, kind):
    """The bytes of an array of objects are addresses."""
    evil = pickle.dumps({"model": {"x": np.zeros(2, "f8")}}, protocol=2).replace(
        b"f8", kind.encode()[:2].ljust(2, b"1")
    )
    (tmp_path / "x.pkl").write_bytes(evil)
    with pytest.raises(CheckpointError, match=r"x\.pkl"):
        WholeCheckpointer(ToyDetector()).load(str(tmp_path / "x.pkl"))


@pytest.mark.parametrize("name", ["x.pkl", "x.pth", "x.pyth"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\x80\x02}."], ids=["empty", "garbage", "a dictionary of nothing"]
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        WholeCheckpointer(ToyDetector()).load(str(tmp_path / name))


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {"model": {"x": "y"}}, torch.zeros(2)], ids=str)
def test_what_holds_no_weights_is_named(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth holds no weights"):
        WholeCheckpointer(ToyDetector()).load(str(tmp_path / "x.pth"))


def test_inverted_bytes_are_noticed(tmp_path):
    trainer = toy_trainer()
    checkpointer = WholeCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
    checkpointer.save("first", iteration=0)
    checkpointer.save("second", iteration=1)
    weights = trainer.model.backbone[2].weight.detach().numpy().tobytes()
    content = (tmp_path / "second.pth").read_bytes()
    place = content.index(weights)
    flipped = bytes(255 - byte for byte in content[place : place + 64])
    (tmp_path / "second.pth").write_bytes(content[:place] + flipped + content[place + 64 :])
    torch.load(tmp_path / "second.pth", weights_only=True)  # goes unnoticed there
    with pytest.raises(CheckpointError, match=r"second\.pth is damaged.* another one \(first\.pth\).* last_checkpoint"):
        checkpointer.resume_or_load("")


def test_last_checkpoint_may_name_what_is_not_there_or_no_training(tmp_path):
    trainer = toy_trainer()
    checkpointer = WholeCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
    for name in ("gone.pth", ""):
        checkpointer.tag_last_checkpoint(name)
        with pytest.raises(CheckpointError, match=r"last_checkpoint names .* which is not there"):
            checkpointer.resume_or_load("")
    torch.save({"model": trainer.model.state_dict()}, tmp_path / "weights.pth")
    checkpointer.tag_last_checkpoint("weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth holds weights, but no training to resume"):
        checkpointer.resume_or_load("")


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    model = ToyDetector()
    checkpointer = WholeCheckpointer(model, str(tmp_path))
    checkpointer.save("good")
    before = (tmp_path / "good.pth").read_bytes()
    model.head.weight.data[0, 0] = float("nan")
    for name in ("bad", "good"):
        with pytest.raises(ValueError, match=r"head\.weight is not finite.* SOLVER\.BASE_LR"):
            checkpointer.save(name)
    assert sorted(os.listdir(tmp_path)) == ["good.pth", "last_checkpoint"]
    assert (tmp_path / "good.pth").read_bytes() == before
    assert (tmp_path / "last_checkpoint").read_text() == "good.pth"


def without(model, *prefixes):
    return {name: value for name, value in model.state_dict().items() if not name.startswith(prefixes)}


def load(model, state, tmp_path, **options):
    torch.save(state, tmp_path / "weights.pth")
    WholeCheckpointer(model, **options).load(str(tmp_path / "weights.pth"))


def test_a_training_begins_with_at_least_half_of_the_backbone(tmp_path):
    model = model_of("fpn")
    load(model, model.state_dict(), tmp_path)
    load(model, without(plain_of("fpn"), "roi_heads", "proposal_generator", "backbone.fpn"), tmp_path)  # of ImageNet
    wider = {name: torch.zeros(*value.shape, 2) for name, value in model.state_dict().items()}
    for state in (without(model, "backbone"), model_of("vgg").state_dict(), wider):
        with pytest.raises(CheckpointError, match=r"weights\.pth lacks .* tensors of the backbone, such as backbone\."):
            load(model, state, tmp_path)


def test_an_evaluation_takes_all_of_the_detector(tmp_path):
    model = model_of("fpn")
    load(model, plain_of("fpn").state_dict(), tmp_path, evaluates=True)  # discriminators are of no use then
    load(plain_of("fpn"), model.state_dict(), tmp_path, evaluates=True)
    for lacking in ("roi_heads.box_predictor.cls_score.bias", "backbone.bottom_up.stem"):
        with pytest.raises(CheckpointError, match=rf"lacks . of the .* tensors of the model, such as {lacking}"):
            load(model, without(model, lacking), tmp_path, evaluates=True)
    retinanet = model_of("retinanet")
    load(retinanet, plain_of("retinanet").state_dict(), tmp_path, evaluates=True)


def test_a_training_is_resumed_as_a_whole(tmp_path):
    torch.save({"model": without(ToyDetector(), "head"), "trainer": {}, "iteration": 3}, tmp_path / "model.pth")
    (tmp_path / "last_checkpoint").write_text("model.pth")
    with pytest.raises(
        CheckpointError, match=r"model\.pth lacks 2 of the 8 tensors of the model, such as head\.weight"
    ):
        WholeCheckpointer(ToyDetector(), str(tmp_path)).resume_or_load("")


def test_what_it_writes_is_read_by_detectron2s_own(tmp_path):
    trainer, other = toy_trainer(ToyDetector(seed=1)), toy_trainer()
    WholeCheckpointer(trainer.model, str(tmp_path), trainer=trainer).save("model", iteration=7)
    rest = DetectionCheckpointer(other.model, str(tmp_path), trainer=other).resume_or_load("")
    assert rest["iteration"] == 7
    assert all(torch.equal(a, b) for a, b in zip(other.model.parameters(), trainer.model.parameters(), strict=True))
