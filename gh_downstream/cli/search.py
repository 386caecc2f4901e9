"""``gh-downstream search``: find images by texts."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def search(
    images: Annotated[str, typer.Option(help="folder of images, or a file of a data set that has images")],
    config: Annotated[str, typer.Option(help="config.yaml of a training; needs --checkpoint")] = "",
    checkpoint: Annotated[str, typer.Option(help="last.pt, best.pt or a state dict of that training")] = "",
    encoder: Annotated[str, typer.Option(help="instead of these two: tiny:FOLDER, openclip:..., hf:...")] = "",
    query: Annotated[list[str] | None, typer.Option(help="text that describes an image; may be repeated")] = None,
    top: Annotated[int, typer.Option(min=1, help="number of images for each query")] = 10,
    output: Annotated[Path, typer.Option(help="folder of the picture, hits.png")] = Path("outputs/search"),
) -> None:
    """Find the images that fit a text best, with an encoder before or after training.

    Prints rank, cosine similarity and name of the best images of each query, and draws them into one picture, which
    replaces that of an earlier search. Without --query, reads queries from the standard input, one on each line.

    \b
    Example: gh-downstream search --encoder openclip:ViT-B-32,laion2b_s34b_b79k --images photos --query "a dog"
    """
    if bool(config) != bool(checkpoint) or bool(config) == bool(encoder):
        raise ValueError("which encoder? give --config and --checkpoint, or --encoder alone")
    if not query and sys.stdin.isatty():
        print("queries, one on each line; end with Ctrl-D:", file=sys.stderr)
    queries = query or [line.strip() for line in sys.stdin if line.strip()]
    if not queries:
        raise ValueError("no query: give --query, or one on each line of the standard input")

    from accelerate import PartialState

    from gh_downstream.data.paths import printable
    from gh_downstream.files import atomic_file, check_folder
    from gh_downstream.retrieval.config import RetrievalConfig
    from gh_downstream.retrieval.data import DataConfig, load_dataset
    from gh_downstream.retrieval.drawing import contact_sheet
    from gh_downstream.retrieval.encoders import build_encoder
    from gh_downstream.retrieval.engine import load_encoder
    from gh_downstream.retrieval.search import SearchIndex, encode_texts
    from gh_downstream.training.config import load_config
    from gh_downstream.training.configs import find_config

    check_folder(output, "--output")
    found = load_dataset(DataConfig(images, side="images")).images
    if encoder:
        model = build_encoder(encoder)
    else:
        model = load_encoder(load_config(RetrievalConfig, find_config(config)), checkpoint)
    model.to(PartialState().device).eval()
    texts = encode_texts(model, queries)
    hits = SearchIndex.build(model, found).search(texts, top)
    for text, best in zip(queries, hits, strict=True):
        print(printable(text))
        for rank, hit in enumerate(best, start=1):
            print(f"{rank:4d}  {hit.similarity:7.4f}  {printable(hit.image)}")
    with atomic_file(output / "hits.png") as file:
        contact_sheet(queries, hits).save(file, format="PNG")
    print(f"picture: {output / 'hits.png'}")
