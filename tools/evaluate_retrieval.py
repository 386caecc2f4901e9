"""Measure the recall of a checkpoint, or of an encoder before training, on the validation sets of its configuration.

Example: python tools/evaluate_retrieval.py --config outputs/retrieval/mini/gh++/config.yaml \\
    --checkpoint outputs/retrieval/mini/gh++/best.pt output=outputs/again
"""

import argparse
import logging
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the training; config.yaml of its output folder")
    parser.add_argument("--checkpoint", help="last.pt, best.pt, or a state dict; without it, the encoder as it starts")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="what to change, such as output=outputs/again"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        from gh_downstream.retrieval.config import RetrievalConfig
        from gh_downstream.retrieval.engine import evaluate_checkpoint, show_results
        from gh_downstream.training import load_config

        config = load_config(RetrievalConfig, arguments.config, arguments.overrides)
        evaluate_checkpoint(config, arguments.checkpoint)
        show_results(config)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
