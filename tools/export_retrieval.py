"""Write the encoder of a checkpoint as open_clip or transformers reads it.

Example: python tools/export_retrieval.py --config outputs/retrieval/mini/gh++/config.yaml \\
    --checkpoint outputs/retrieval/mini/gh++/last.pt --output outputs/retrieval/mini/gh++/encoder
"""

import argparse
import logging
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config.yaml of the training's output folder")
    parser.add_argument("--checkpoint", required=True, help="last.pt, best.pt, or a state dict")
    parser.add_argument("--output", required=True, help="folder to write to")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        from gh_downstream.retrieval.config import RetrievalConfig
        from gh_downstream.retrieval.engine import export_encoder
        from gh_downstream.training import load_config

        export_encoder(load_config(RetrievalConfig, arguments.config), arguments.checkpoint, arguments.output)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"encoder: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
