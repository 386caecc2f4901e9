"""Dual encoders behind one class: a built-in tiny one, those of open_clip and those of Hugging Face transformers."""

from gh_downstream.retrieval.encoders.build import build_encoder
from gh_downstream.retrieval.encoders.lora import LoRAConfig, add_lora
from gh_downstream.retrieval.encoders.protocol import DualEncoder

__all__ = ["DualEncoder", "LoRAConfig", "add_lora", "build_encoder"]
