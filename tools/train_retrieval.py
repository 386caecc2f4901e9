"""Fine-tune an image-text model from one domain for another; call again to resume.

Example: python tools/train_retrieval.py --config configs/retrieval/mini.yaml harmonization.weighting=gh++
"""

import argparse
import logging
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, such as those in configs/retrieval")
    parser.add_argument(
        "--check", action="store_true", help="decode every image before training, and name the faulty ones"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to change, such as training.steps=100")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        from gh_downstream.retrieval.config import RetrievalConfig
        from gh_downstream.retrieval.engine import build_trainer, show_results
        from gh_downstream.training import load_config

        config = load_config(RetrievalConfig, arguments.config, arguments.overrides)
        build_trainer(config, arguments.check).run()
        show_results(config)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
