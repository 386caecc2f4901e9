"""Train open_clip's own script with a second loss: the modality gap. Without arguments, drawn pairs and a tiny CLIP.

python examples/open_clip_pairs.py
torchrun --nproc_per_node 4 examples/open_clip_pairs.py --model ViT-B-32 --pretrained laion2b_s34b_b79k \
    --train-data pairs.tsv --local-loss --gather-with-grad --report-to tensorboard
"""

import json
import sys
from pathlib import Path

import open_clip
from PIL import Image, ImageDraw
from torch import Tensor

from gh_downstream.adaptation import mmd
from gh_downstream.integrations.open_clip_train import train
from gh_downstream.integrations.report_log import ReportLog
from gh_downstream.retrieval.objectives import gather_with_gradient

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "cyan")


def modality_gap(images: Tensor, texts: Tensor) -> Tensor:
    return 0.1 * mmd(gather_with_gradient(images), gather_with_gradient(texts))


def tiny(folder: Path) -> list[str]:
    """Draw 64 pairs, describe a model of two small towers, and return the arguments that train it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["filepath\ttitle"]
    for number in range(64):
        inner, outer = COLOURS[number % 8], COLOURS[number // 8]
        image = Image.new("RGB", (32, 32), outer)
        ImageDraw.Draw(image).ellipse((8, 8, 24, 24), fill=inner)
        image.save(folder / f"{number}.png")
        lines.append(f"{folder / f'{number}.png'}\ta {inner} disc on {outer}")
    (folder / "pairs.tsv").write_text("\n".join(lines))
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    (folder / "tiny.json").write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder / "tiny.json")
    settings = {"model": "tiny", "train-data": folder / "pairs.tsv", "dataset-type": "csv", "logs": folder / "logs"}
    settings |= {"batch-size": 32, "epochs": 30, "workers": 0, "lr": 2e-3, "warmup": 10, "device": "cpu"}
    return [text for key, value in settings.items() for text in (f"--{key}", str(value))]


if __name__ == "__main__":
    arguments = sys.argv[1:] or tiny(Path("outputs/examples/open_clip"))
    train(arguments, alignment=modality_gap, weighting="gh++", on_report=ReportLog(every=20))
