"""The loss in the real ``open_clip_train.main``: a step by hand, the plain training, the log, refusals."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

pytest.importorskip("open_clip_train.main")

import open_clip
from open_clip.loss import ClipLoss, CoCaLoss, SigLipLoss
from open_clip_train import main as library

from gh_downstream import GH, Sum
from gh_downstream.adaptation import mmd
from gh_downstream.integrations.open_clip_train import HarmonizedClipLoss, train
from gh_downstream.integrations.report_log import ReportLog

MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CAPTIONS = ["a red circle", "two dogs", "the sea at night", "a map", "an old car", "snow", "a green door", "one bird"]
RATE = 0.1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with eight pairs, a model's configuration, and its first weights."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny-test.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(folder / "configs")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-test").state_dict(), folder / "first.pt")
    random = np.random.default_rng(0)
    lines = ["filepath\ttitle"]
    for k, caption in enumerate(CAPTIONS):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{k}.png")
        lines.append(f"{folder / f'{k}.png'}\t{caption}")
    (folder / "pairs.tsv").write_text("\n".join(lines))
    return folder


def command(data, logs, **changes):
    settings = {"model": "tiny-test", "pretrained": data / "first.pt", "train-data": data / "pairs.tsv"}
    settings |= {
        "dataset-type": "csv",
        "batch-size": 8,
        "epochs": 1,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
    }
    settings |= {"opt": "timm/momentum", "momentum": 0, "lr": RATE, "wd": 0, "lr-scheduler": "const", "warmup": 0}
    settings |= {"logs": logs, "name": "run", "log-every-n-steps": 1, "report-to": "tensorboard"}
    flags = [text for key, value in (settings | changes).items() for text in (f"--{key}", str(value))]
    # Each image whole: what is left of chance is the order in the batch.
    return [*flags, "--aug-cfg", "scale=(1.0,1.0)"]


def last(logs):
    return torch.load(logs / "run" / "checkpoints" / "epoch_1.pt", weights_only=True)["state_dict"]


def alignment(images, texts):
    """A discrepancy that also unlearns which text an image has."""
    return 0.1 * mmd(images, texts) - 3 * cross_entropy(5 * images @ texts.T, torch.arange(len(images)))


def image_alignment(images):
    return -3 * torch.pdist(images).square().mean()


def by_hand(data, on):
    """The weights after one step with GH at the features written out."""
    model, _, preprocess = open_clip.create_model_and_transforms(
        "tiny-test", pretrained=str(data / "first.pt"), output_dict=True
    )
    images = torch.stack([preprocess(Image.open(data / f"{k}.png")) for k in range(len(CAPTIONS))])
    out = model.train()(images, open_clip.get_tokenizer("tiny-test")(CAPTIONS))
    features = [out["image_features"], out["text_features"]]
    logits = out["logit_scale"] * features[0] @ features[1].T
    belongs = torch.arange(len(CAPTIONS))
    task = (cross_entropy(logits, belongs) + cross_entropy(logits.T, belongs)) / 2
    of_task = torch.autograd.grad(task, features, retain_graph=True)
    second = alignment(*features) if on == "both" else image_alignment(features[0])
    shared = 2 if on == "both" else 1
    of_second = torch.autograd.grad(second, features[:shared], retain_graph=True)
    g1, g2 = (torch.cat([g.flatten() for g in gradients[:shared]]) for gradients in (of_second, of_task))
    assert g1 @ g2 < 0  # They are in conflict, or there would be nothing to get wrong.
    tau = [1 - (g1 @ g2) / g1.square().sum(), 1 - (g1 @ g2) / g2.square().sum()]
    arriving = [tau[0] * a + tau[1] * b for a, b in zip(of_second, of_task[:shared], strict=True)] + list(
        of_task[shared:]
    )
    scale = model.logit_scale
    (of_scale,) = torch.autograd.grad(task, [scale], retain_graph=True)
    torch.autograd.backward(features, arriving)
    scale.grad = of_scale
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= RATE * parameter.grad
    return model.state_dict()


def assert_equal_weights(found, expected, skip=()):
    assert found.keys() == expected.keys()
    for name in set(found) - set(skip):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("on", ["both", "image"])
def test_a_step_equals_a_step_by_hand(data, tmp_path, on):
    second = alignment if on == "both" else image_alignment
    train(command(data, tmp_path), alignment=second, weighting="gh", on=on)
    assert_equal_weights(last(tmp_path), by_hand(data, on))


def test_accumulation_has_the_gradient_of_the_whole_batch(data, tmp_path):
    flags = command(data, tmp_path, **{"batch-size": 4, "accum-freq": 2})
    reports = []
    train(flags, alignment=alignment, weighting=GH(), on_report=reports.append)
    # open_clip adds the gradient of the scale once for each part.
    assert_equal_weights(last(tmp_path), by_hand(data, "both"), skip=["logit_scale"])
    assert len(reports) == 2
    torch.testing.assert_close(reports[0].weights, reports[1].weights, rtol=1e-5, atol=0)


def test_the_weighting_sum_is_the_plain_training(data, tmp_path, monkeypatch):
    class Plain(ClipLoss):
        def forward(self, image_features, text_features, logit_scale, output_dict=False):
            losses = super().forward(image_features, text_features, logit_scale, output_dict=True)
            return losses | {"alignment_loss": alignment(image_features, text_features)}

    flags = {"batch-size": 2, "lr-scheduler": "cosine", "wd": 0.2}
    trained = []
    for name, weighting in (("sum", Sum()), ("gh", GH())):
        train(command(data, tmp_path / name, **flags), alignment=alignment, weighting=weighting)
        trained.append(last(tmp_path / name))
    monkeypatch.setattr(library, "create_loss", lambda args: Plain())
    library.main(command(data, tmp_path / "plain", **flags))
    plain, (summed, harmonized) = last(tmp_path / "plain"), trained
    # To rounding: autograd adds what arrives at the features in another order.
    assert_equal_weights(summed, plain)
    with pytest.raises(AssertionError):
        assert_equal_weights(harmonized, plain)


def test_each_loss_and_what_was_measured_are_in_the_log(data, tmp_path):
    create = library.create_loss
    train(command(data, tmp_path), alignment=alignment, weighting=GH(), on_report=ReportLog(every=1))
    assert library.create_loss is create
    text = (tmp_path / "run" / "out.log").read_text()
    assert "Contrastive_loss: " in text
    assert "Alignment_loss: " in text
    assert "harmonization, backward pass 1: gh/cosine -" in text
    assert "gh/conflict_rate 1" in text
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = {name: events.Scalars(f"train/{name}")[0].value for name in ("contrastive_loss", "alignment_loss", "loss")}
    assert logged["loss"] == pytest.approx(logged["contrastive_loss"] + logged["alignment_loss"], rel=1e-6)
    assert logged["alignment_loss"] < 0


def test_the_loss_of_siglip(data):
    torch.manual_seed(0)
    images, texts = (nn.functional.normalize(torch.randn(6, 8), dim=1).requires_grad_() for _ in range(2))
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    loss = HarmonizedClipLoss(SigLipLoss(), alignment, Sum())
    found = loss(image_features=images, text_features=texts, logit_scale=scale, logit_bias=bias, output_dict=True)
    assert list(found) == ["contrastive_loss", "alignment_loss"]
    assert torch.equal(found["contrastive_loss"], SigLipLoss()(images, texts, scale, bias))
    assert torch.equal(loss(images, texts, logit_scale=scale, logit_bias=bias), sum(found.values()))
    with torch.no_grad():
        assert loss(images, texts, logit_scale=scale, logit_bias=bias) == sum(found.values())


def test_mistakes_are_told():
    clip = ClipLoss()
    with pytest.raises(ValueError, match="both, image, text, got 'images'"):
        HarmonizedClipLoss(clip, alignment, on="images")
    with pytest.raises(ValueError, match=r"gh\+\+\+"):
        HarmonizedClipLoss(clip, alignment, weighting="gh+++")
    with pytest.raises(ValueError, match="alignment Linear has parameters"):
        HarmonizedClipLoss(clip, nn.Linear(8, 1), on="image")
    with pytest.raises(ValueError, match="CoCa"):
        HarmonizedClipLoss(CoCaLoss(1, 1), alignment)
    with pytest.raises(ValueError, match="--local-loss --gather-with-grad"):
        HarmonizedClipLoss(ClipLoss(world_size=2), alignment)
    for joined in (ClipLoss(True, True, world_size=2), SigLipLoss(world_size=2)):
        HarmonizedClipLoss(joined, alignment)
    features = torch.eye(4, 8, requires_grad=True)
    detached = HarmonizedClipLoss(clip, lambda images, texts: alignment(images.detach(), texts.detach()))
    with pytest.raises(ValueError, match="does not depend on the image and text features"):
        detached(features, features.roll(1, 1), logit_scale=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda patch: patch.setitem(sys.modules, "open_clip_train", None), "open_clip_train is incomplete"),
        (lambda patch: patch.delattr(library, "create_loss"), "of another version .*create_loss"),
    ],
    ids=["missing", "new"],
)
def test_one_line_says_which_open_clip_to_install(monkeypatch, change, problem):
    change(monkeypatch)
    with pytest.raises(ImportError, match=rf"{problem}.*pip install 'open_clip_torch\[training\]>=3,<4'") as error:
        train([], alignment)
    assert "\n" not in str(error.value)
