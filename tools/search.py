"""Find images by a text, in a folder or any data set, with an encoder before or after training.

Without --query, queries are read from the standard input, one on each line.

Example: python tools/search.py --config outputs/retrieval/mini/gh++/config.yaml \\
    --checkpoint outputs/retrieval/mini/gh++/last.pt --images datasets/mini_scenes/target/images \\
    --query "a small red circle above a large blue star"
Example: python tools/search.py --encoder openclip:ViT-B-32,laion2b_s34b_b79k --images ~/photos \\
    --query "a dog on a beach" --top 20
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="config.yaml of the training's output folder; needs --checkpoint")
    what.add_argument("--encoder", help="an encoder as in a configuration, such as tiny:FOLDER, openclip:..., hf:...")
    parser.add_argument("--checkpoint", help="last.pt, best.pt, or a state dict of the training of --config")
    parser.add_argument("--images", required=True, help="folder of images, or any data set that has images")
    parser.add_argument("--query", action="append", type=_text, metavar="TEXT", help="may be given several times")
    parser.add_argument("--top", type=_positive, default=10, metavar="K", help="images for a query (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/search"), help="folder of the pictures (%(default)s)"
    )
    parser.add_argument("--index", type=Path, help="file of the index; by default one for each --images in --output")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (%(default)s)")
    parser.add_argument(
        "data", nargs="*", metavar="KEY=VALUE", help="how to read --images, such as image_column=file or split=test"
    )
    arguments = parser.parse_args(argv)
    if (arguments.config is None) != (arguments.checkpoint is None):
        parser.error("--config and --checkpoint belong together")
    if arguments.encoder == "tiny":
        parser.error("--encoder tiny is random: give tiny:FOLDER, as tools/export_retrieval.py writes it")
    queries = arguments.query or (_typed() if sys.stdin.isatty() else _lines())
    if not queries:
        parser.error("no query: give --query, or one on each line of the standard input")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        from accelerate import PartialState

        from gh_downstream.retrieval.config import RetrievalConfig
        from gh_downstream.retrieval.data import load_dataset
        from gh_downstream.retrieval.encoders import build_encoder
        from gh_downstream.retrieval.engine import load_encoder
        from gh_downstream.retrieval.search import default_index, encode_texts, image_data, show_hits, update_index
        from gh_downstream.training import load_config

        data = image_data(arguments.images, arguments.data)
        images = load_dataset(data).images
        if arguments.config is None:
            encoder = build_encoder(arguments.encoder)
        else:
            encoder = load_encoder(load_config(RetrievalConfig, arguments.config), arguments.checkpoint)
        encoder.to(PartialState().device).eval()
        path = arguments.index or default_index(arguments.output, data)
        index = update_index(encoder, images, path, workers=arguments.workers)
        if arguments.top > len(index):
            logging.info("--top %d: there are %d images", arguments.top, len(index))
        for query in queries:
            (hits,) = index.search(encode_texts(encoder, [query]), arguments.top)
            show_hits(query, hits, arguments.output)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _typed() -> Iterator[str]:
    """What a user types, until the end of the input."""
    while True:
        try:
            query = input("query: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if query:
            yield query


def _lines() -> list[str]:
    return [line.strip() for line in sys.stdin if line.strip()]


def _text(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty: describe the image to be found")
    return value.strip()


def _positive(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {value!r}")
    return int(value)


if __name__ == "__main__":
    sys.exit(main())
