"""Measure the accuracy of a checkpoint on the validation sets of its configuration.

Example: FOLDER=outputs/classification/digits/cdan
python tools/evaluate_classification.py --config $FOLDER/config.yaml --checkpoint $FOLDER/last.pt
"""

import argparse
import logging
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the training; config.yaml of its output folder")
    parser.add_argument("--checkpoint", required=True, help="last.pt, best.pt, or a state dict")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="what to change, such as output=outputs/again"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        from gh_downstream.classification.config import ClassificationConfig
        from gh_downstream.classification.engine import evaluate_checkpoint, show_results
        from gh_downstream.training import load_config

        config = load_config(ClassificationConfig, arguments.config, arguments.overrides)
        evaluate_checkpoint(config, arguments.checkpoint)
        show_results(config)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
