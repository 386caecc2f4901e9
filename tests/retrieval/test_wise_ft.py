"""WiSE-FT: the weights between a starting model and what became of it, at the command line and with adapters."""

import copy
import json

import pytest
import torch
from accelerate.state import AcceleratorState

from gh_downstream.cli.main import run
from gh_downstream.retrieval.config import RetrievalConfig
from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes
from gh_downstream.retrieval.encoders import LoRAConfig, add_lora, build_encoder
from gh_downstream.retrieval.encoders.lora import merged_state_dict
from gh_downstream.retrieval.encoders.tiny import TinyConfig, TinyDualEncoder
from gh_downstream.retrieval.wise_ft import interpolate, starting_weights
from gh_downstream.training import load_config
from gh_downstream.training.configs import find_config
from tests.retrieval.encoders.tiny_models import transformers_folder

ALPHAS = (0.0, 0.3, 1.0)


def moved(encoder, names=""):
    """Move every number of an encoder, running statistics and counters too, as a training does."""
    encoder = copy.deepcopy(encoder)
    generator = torch.Generator().manual_seed(1)
    for name, x in encoder.state_dict().items():
        if names in name:
            x.add_(torch.randn(x.shape, generator=generator).abs() if x.is_floating_point() else 3)
    return encoder


def copied(encoder):
    return {name: x.clone() for name, x in encoder.state_dict().items()}


def assert_between(found, start, end, alpha):
    assert found.keys() == start.keys() == end.keys()
    for name, x in found.items():
        if alpha in (0, 1):
            assert torch.equal(x, (start, end)[int(alpha)][name]), name
        elif x.is_floating_point():
            torch.testing.assert_close(x, (1 - alpha) * start[name] + alpha * end[name])
        assert x.dtype == start[name].dtype


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", ["tiny", "align"])
def test_every_number_is_between_the_two(tmp_path, kind, alpha):
    spec = "tiny" if kind == "tiny" else f"hf:{transformers_folder(tmp_path / 'model', kind)}"
    start = build_encoder(spec, init="random" if kind == "tiny" else "pretrained")
    encoder = moved(start)
    end = copied(encoder)
    assert (kind == "align") == any("running_var" in name for name in end)
    interpolate(encoder, copied(start), alpha)
    assert_between(encoder.state_dict(), start.state_dict(), end, alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_of_adapters_the_merged_weights_are_between_the_two(alpha):
    pytest.importorskip("peft")
    plain = build_encoder("tiny", init="random", width=32, layers=1, embed_dim=16)
    start = copy.deepcopy(plain)
    add_lora(start, LoRAConfig(targets=["*.self_attn", "*.linear?", "text.tokens", "image.patches"], rank=2))
    encoder = moved(start, "lora_")
    encoder.logit_scale.data += 1  # which trains beside them
    end = copy.deepcopy(merged_state_dict(encoder, {}))
    differing = {name for name, x in plain.state_dict().items() if not torch.equal(x, end[name])}
    assert {"text.tokens.weight", "image.patches.weight", "logit_scale"} < differing
    interpolate(encoder, copied(start), alpha)
    assert_between(merged_state_dict(encoder, {}), plain.state_dict(), end, alpha)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The words that name a short training from an exported encoder, the folder of that, and of the output."""
    folder = tmp_path_factory.mktemp("wise_ft")
    make_mini_scenes(folder / "scenes", train=40, target=8, val=8, test=20, seed=1)
    torch.manual_seed(0)
    TinyDualEncoder(TinyConfig(width=32, layers=1, embed_dim=16)).export(folder / "start")
    words = [
        *(f"encoder=tiny:{folder / 'start'}", "init=pretrained", f"output={folder / 'out'}", "batch_size=8"),
        *(f"source.path={folder / 'scenes' / 'source' / 'train.csv'}", "alignment.mmd.weight=0"),
        *(f"validation.{name}.path={folder / 'scenes' / 'source' / 'test.csv'}" for name in ("source", "target")),
        *("harmonization.weighting=none", "training.steps=4", "optimizer.warmup_steps=0", "optimizer.lr=0.01"),
    ]
    AcceleratorState._reset_state(True)
    assert run(["train", "--config", "retrieval/mini", *words]) == 0
    return words, folder / "start", folder / "out"


def exported(folder):
    return TinyDualEncoder.load(folder).state_dict()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_an_export_is_between_the_start_and_the_checkpoint(trained, tmp_path, alpha):
    _, start, out = trained
    words = ["--config", str(out / "config.yaml"), "--checkpoint", str(out / "last.pt")]
    for name, more in (("end", []), ("between", ["--wise-ft", str(alpha)])):
        assert run(["export", *words, "--output", str(tmp_path / name), *more]) == 0
    assert_between(exported(tmp_path / "between"), exported(start), exported(tmp_path / "end"), alpha)


def test_an_export_of_adapters_goes_back_to_the_start(trained, tmp_path):
    pytest.importorskip("peft")
    words, start, _ = trained
    lora = ["lora.targets=['*.self_attn', '*.linear?']", f"output={tmp_path / 'out'}"]
    assert run(["train", "--config", "retrieval/mini", *words, *lora]) == 0
    found = {}
    for alpha in ALPHAS:
        checkpoint = ["--checkpoint", str(tmp_path / "out" / "last.pt"), "--wise-ft", str(alpha)]
        output = ["--output", str(tmp_path / str(alpha))]
        assert run(["export", "--config", str(tmp_path / "out" / "config.yaml"), *checkpoint, *output]) == 0
        found[alpha] = exported(tmp_path / str(alpha))
    for alpha in ALPHAS:
        assert_between(found[alpha], exported(start), found[1], alpha)
    assert any(not torch.equal(found[1][name], x) for name, x in found[0].items())


def test_towers_begin_with_random_projections(trained):
    words, _, _ = trained
    config = load_config(RetrievalConfig, find_config("retrieval/mini"), [*words, "encoder=towers"])
    with pytest.raises(ValueError, match=r"from random weights \(the projections of towers\)"):
        starting_weights(config, torch.nn.Module())


def results(folder, alpha=None):
    named = "" if alpha in (None, 1) else f"wise-ft-{alpha:g}"
    return json.loads((folder / "evaluation" / named / "results.json").read_text())["results"]


def test_an_evaluation_is_that_of_the_export(trained, tmp_path):
    _, _, out = trained
    config = ["--config", str(out / "config.yaml")]
    checkpoint = ["--checkpoint", str(out / "last.pt")]
    found = {}
    for alpha in ALPHAS:
        folder = tmp_path / str(alpha)
        assert run(["evaluate", *config, *checkpoint, "--wise-ft", str(alpha), f"output={tmp_path / 'direct'}"]) == 0
        assert run(["export", *config, *checkpoint, "--wise-ft", str(alpha), "--output", str(folder / "encoder")]) == 0
        plain = ["encoder=tiny:" + str(folder / "encoder"), f"output={folder / 'exported'}"]
        assert run(["evaluate", *config, *plain]) == 0
        found[alpha] = results(folder / "exported")
    assert run(["evaluate", *config, f"output={tmp_path / 'start'}"]) == 0
    assert run(["evaluate", *config, *checkpoint, f"output={tmp_path / 'end'}"]) == 0
    assert found == {alpha: results(tmp_path / "direct", alpha) for alpha in ALPHAS}  # none has replaced another
    assert (results(tmp_path / "start"), results(tmp_path / "end")) == (found[0], found[1])
    assert found[0] != found[1]


def test_the_start_is_that_of_init_from(trained, tmp_path):
    words, _, out = trained
    first = tmp_path / "first"
    begun = [f"training.init_from={out / 'last.pt'}", f"output={tmp_path / 'second'}"]
    # The architecture alone, whose weights all come from the checkpoint.
    random = ["encoder=tiny", "init=random", "encoder_options={width: 32, layers: 1, embed_dim: 16}"]
    assert run(["train", "--config", "retrieval/mini", *words, *random, *begun]) == 0
    second = ["--config", str(tmp_path / "second" / "config.yaml"), "--checkpoint", str(tmp_path / "second/last.pt")]
    start = ["--config", str(out / "config.yaml"), "--checkpoint", str(out / "last.pt")]
    assert run(["export", *second, "--wise-ft", "0", "--output", str(tmp_path / "back")]) == 0
    assert run(["export", *start, "--output", str(first)]) == 0
    assert run(["export", *second, "--output", str(tmp_path / "end")]) == 0
    begin, back, end = (exported(folder) for folder in (first, tmp_path / "back", tmp_path / "end"))
    assert_between(back, begin, end, 0)
    assert any(not torch.equal(end[name], x) for name, x in begin.items())


@pytest.mark.parametrize(
    ("command", "words", "named"),
    [
        ("evaluate", ["--wise-ft", "1.5"], "wise_ft must be at least 0 and at most 1, got 1.5"),
        ("evaluate", ["--wise-ft", "-0.1"], "wise_ft must be at least 0"),
        ("evaluate", ["--wise-ft", "nan"], "wise_ft must be finite"),
        ("evaluate", ["--wise-ft", "half"], "'--wise-ft'"),
        ("export", ["--wise-ft", "2", "--output", "nowhere"], "wise_ft must be at least 0"),
        ("evaluate", ["--wise-ft", "0.5", "encoder=tiny", "init=random"], "from random weights (init: random)"),
        ("evaluate", ["--wise-ft", "0.5", "training.init_from=gone.pt"], "no such checkpoint: gone.pt"),
    ],
)
def test_a_mistake_is_one_line(trained, capsys, command, words, named):
    _, _, out = trained
    assert run([command, "--config", str(out / "config.yaml"), "--checkpoint", str(out / "last.pt"), *words]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_there_has_to_be_a_checkpoint_of_retrieval(trained, capsys):
    _, _, out = trained
    assert run(["evaluate", "--config", str(out / "config.yaml"), "--wise-ft", "0.5"]) == 2
    assert "give --checkpoint" in capsys.readouterr().err
    assert run(["evaluate", "--config", "classification/digits", "--checkpoint", "x.pt", "--wise-ft", "0.5"]) == 2
    assert "--wise-ft is for retrieval, not for engine classification" in capsys.readouterr().err
