"""The hub of Hugging Face where it is out of reach, and where it is not."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("huggingface_hub", reason="needs pip install 'gh_downstream[retrieval]'")

from huggingface_hub import constants

from gh_downstream.retrieval.encoders import build_encoder
from gh_downstream.training.hub import look_for_hub


@pytest.fixture(autouse=True)
def online(monkeypatch):
    look_for_hub.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    look_for_hub.cache_clear()


class Empty(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Empty) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.mark.parametrize(
    "spec", ["hf:org/name", "openclip:hf-hub:org/name", "openclip:ViT-B-32,laion2b_s34b_b79k"], ids=lambda s: s[:10]
)
def test_out_of_reach_the_caches_alone_are_looked_in(monkeypatch, tmp_path, spec, caplog):
    pytest.importorskip("open_clip")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{spec}' not found: looked in .*{tmp_path}") as error:
        build_encoder(spec)
    assert constants.HF_HUB_OFFLINE
    assert "online" not in str(error.value).split("(")[0]
    assert "\n" not in str(error.value)
    assert "Retrying" not in caplog.text
    assert caplog.text.count("http://127.0.0.1:9 is out of reach") == 1


def test_whatever_the_hub_answers_it_is_there(monkeypatch, server):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    look_for_hub()
    assert not constants.HF_HUB_OFFLINE
