"""Train an image classifier on one domain for another; call again to resume.

Example: python tools/train_classification.py --config configs/classification/digits.yaml method=mcd
"""

import argparse
import logging
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, such as those in configs/classification")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to change, such as training.steps=100")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        from gh_downstream.classification.config import ClassificationConfig
        from gh_downstream.classification.engine import build_trainer, show_results
        from gh_downstream.training import load_config

        config = load_config(ClassificationConfig, arguments.config, arguments.overrides)
        build_trainer(config).run()
        show_results(config)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
