"""Retrieval data: CSV, TSV, JSONL, Karpathy JSON, webdataset shards, saved Hugging Face data sets, folders of images,
files of captions, and mini-scenes."""

try:
    import PIL.Image  # noqa: F401  # asked for here, so that every module below may import it plainly
except ImportError as error:
    raise ImportError("retrieval data need pillow: pip install 'gh_downstream[retrieval]'") from error

from gh_downstream.data.images import open_image
from gh_downstream.retrieval.data.config import DataConfig
from gh_downstream.retrieval.data.load import load_dataset
from gh_downstream.retrieval.data.mini_scenes import make_mini_scenes
from gh_downstream.retrieval.data.records import RetrievalDataset

__all__ = ["DataConfig", "RetrievalDataset", "load_dataset", "make_mini_scenes", "open_image"]
