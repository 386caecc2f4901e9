"""What stands in the model card of an export, and what not; and its upload, to a hub of this test's own."""

import base64
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import pytest
import torch

pytest.importorskip("huggingface_hub", reason="needs pip install 'gh_downstream[training]'")

from huggingface_hub import ModelCard, constants

from gh_downstream.training import ExperimentConfig, TrainingConfig
from gh_downstream.training.checkpoint import save_checkpoint
from gh_downstream.training.config import config_dict
from gh_downstream.training.export import check_upload, public, upload, write_card


@dataclass
class Data:
    path: str
    format: str = "auto"


@dataclass(kw_only=True)
class Config(ExperimentConfig):
    source: Data
    target: Data | None = None
    validation: dict[str, Data] = field(default_factory=dict)


CONFIG = Config(
    output="/home/alice/runs/secret-project",
    training=TrainingConfig(steps=20, wandb="inside", init_from="/home/alice/old/best.pt"),
    source=Data("/home/alice/data/photos.csv"),
    target=Data("drawings", "folder"),
    validation={"photos": Data("~/val/photos.csv")},
)


def checkpoint(path, step, **more):
    content = {"config": config_dict(CONFIG), "step": step, "model": {"w": torch.zeros(1)}}
    save_checkpoint(path, content | {"metrics": {"photos/recall": 12.345678, "photos/none": float("nan")}} | more)
    return path


def written(folder, weights, model="hf:org/name", **more):
    kinds = "image-text-retrieval", "transformers", "zero-shot-image-classification"
    write_card(folder, CONFIG, weights, model, *kinds, "import model", **more)
    return ModelCard.load(folder / "README.md")


def test_a_card_says_what_the_weights_are_and_reach(tmp_path):
    card = written(tmp_path / "new", checkpoint(tmp_path / "best.pt", 10))
    assert (card.data.base_model, card.data.library_name) == ("org/name", "transformers")
    assert card.data.license is None
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("photos", "recall", 12.3457)
    for told in ("for 10 steps", "- source: path photos.csv", "- target: path drawings, format folder", "| recall"):
        assert told in card.text
    assert "steps: 20" in card.text
    assert f"torch {metadata.version('torch')}" in card.text


def test_a_card_has_the_lines_that_load_the_export(tmp_path):
    weights = checkpoint(tmp_path / "best.pt", 10)
    assert "From within this folder:\n\n```python\nimport model\n```" in written(tmp_path, weights).text
    assert "## Use\n\n```python\nimport model\n```" in written(tmp_path, weights, repository="org/name").text


def test_a_card_tells_nothing_of_the_machine_and_no_secrets(tmp_path):
    text = written(tmp_path, checkpoint(tmp_path / "best.pt", 10), "hf:/home/alice/clip").content
    for private in ("alice", "secret-project", "inside", "/home"):
        assert private not in text
    assert "base_model" not in text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("/data/a b/c.csv", "c.csv"),
        ("/data/shards/", "shards"),
        ("~/c.csv", "c.csv"),
        ("~bob/c.csv", "c.csv"),
        ("../../bob/c.csv", "c.csv"),
        (r"C:\Users\bob\c.csv", "c.csv"),
        ("file:///home/bob/c.csv", "c.csv"),
        ("openclip:local-dir:/home/bob/clip", "openclip:local-dir:clip"),
        ("openclip:ViT-B-32,/home/bob/clip.pt", "openclip:ViT-B-32,clip.pt"),
        ("https://bob:word@host/c?X-Signature=1#x", "https://host/c"),
        ("openclip:hf-hub:org/name", "openclip:hf-hub:org/name"),
        ("data/c.csv", "data/c.csv"),
        ("encoder.image.*", "encoder.image.*"),
        ("a photo of a cat and/or a dog", "a photo of a cat and/or a dog"),
        ({"hub_token": "hf_abc", "token_dim": 3}, {"hub_token": "(left out)", "token_dim": 3}),
        ({"deep": [{"password": "word"}, ["/a/b"]]}, {"deep": [{"password": "(left out)"}, ["b"]]}),
        ({"output": "x", "steps": 1, "none": None}, {"steps": 1, "none": None}),
    ],
)
def test_what_is_public_of_a_value(given, told):
    assert public(given) == told


@pytest.mark.parametrize(
    ("step", "unevaluated", "reaches"), [(20, None, True), (10, None, False), (20, {"total": 1.0}, False)]
)
def test_the_last_checkpoint_reaches_what_was_evaluated_after_its_own_step(tmp_path, step, unevaluated, reaches):
    weights = checkpoint(tmp_path / "last.pt", step, optimizer={}, unevaluated=unevaluated)
    assert ("were not evaluated" not in written(tmp_path, weights).text) == reaches


def test_weights_of_others_have_no_figures_and_no_steps(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "state.pt")
    card = written(tmp_path, tmp_path / "state.pt")
    assert card.data.eval_results is None
    assert "Trained, by gh_downstream" in card.text


def test_weights_that_were_changed_since_have_no_figures(tmp_path):
    card = written(tmp_path, checkpoint(tmp_path / "best.pt", 10), since="halved")
    assert card.data.eval_results is None
    assert "for 10 steps, then halved, by gh_downstream" in card.text


def test_a_card_takes_the_place_of_another_card_alone(tmp_path):
    weights = checkpoint(tmp_path / "best.pt", 10)
    written(tmp_path / "out", weights)
    written(tmp_path / "out", weights)
    (tmp_path / "README.md").write_text("# My project\n")
    with pytest.raises(ValueError, match=r"README.md is no card of an export: choose another --output"):
        written(tmp_path, weights)
    assert (tmp_path / "README.md").read_text() == "# My project\n"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for; ``server.files`` is what it got."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers["Authorization"] != "Bearer word":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            return self.answer({"url": f"{constants.ENDPOINT}/org/name"})
        if self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": path} | modes for path in paths]})
        if self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files = {file["path"]: base64.b64decode(file["content"]) for file in files}
            return self.answer({"commitUrl": f"{constants.ENDPOINT}/org/name/commit/0", "commitOid": "0"})
        return self.answer({})

    def do_GET(self):
        self.answer({"error": "Repository not found"}, 401)

    def answer(self, content, code=200):
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "word")
        yield server
        server.shutdown()


@pytest.fixture
def exported(tmp_path) -> Path:
    folder = tmp_path / "exported"
    written(folder, checkpoint(tmp_path / "best.pt", 10))
    (folder / "config.json").write_text("{}")
    return folder


def test_an_export_is_uploaded_to_a_private_repository(hub, exported):
    check_upload("org/name", exported)
    assert upload("org/name", exported).endswith("/org/name")
    assert hub.made.get("private") or hub.made["visibility"] == "private"
    assert hub.files == {path.name: path.read_bytes() for path in exported.iterdir()}


def test_what_the_hub_refuses_is_one_line_and_the_export_stays(hub, exported, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "other")
    with pytest.raises(OSError, match=r"exported is written, but cannot be uploaded to org/name: .*401") as error:
        upload("org/name", exported)
    assert "\n" not in str(error.value)


def test_a_hub_out_of_reach_is_one_line(hub, exported, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="cannot be uploaded to org/name: "):
        upload("org/name", exported)


@pytest.mark.parametrize(
    ("name", "message"),
    [("name", "give OWNER/NAME"), ("a/b/c", "a/b/c"), ("a/b c", "a/b c"), ("a/..b", "a/..b"), ("", "--push-to-hub")],
)
def test_a_name_that_is_none_is_refused_before_anything_is_written(hub, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        check_upload(name, tmp_path / "new")


def test_an_upload_that_cannot_be_is_refused_before_anything_is_written(hub, exported, tmp_path, monkeypatch):
    (tmp_path / "private.txt").write_text("mine")
    with pytest.raises(ValueError, match="has other files, which would be uploaded too: choose a new --output"):
        check_upload("org/name", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE"):
        check_upload("org/name", exported)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(OSError, match="no token for the hub: run 'hf auth login', or set HF_TOKEN"):
        check_upload("org/name", exported)
