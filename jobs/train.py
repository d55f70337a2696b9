"""``ureca train``: train a checkpoint on captioned regions, with Ray Train and DeepSpeed."""

import sys
from collections.abc import Sequence

from ureca.settings.train import TrainSettings


def main(argv: Sequence[str]) -> int:
    """Run the verb; what ends a run before its last step is an error, and status 2."""
    settings = TrainSettings.load(argv)
    from pipelines.train import train

    print(train(settings).summary())
    return 0


if __name__ == "__main__":
    from jobs.cli import run_verb

    sys.exit(run_verb(main, sys.argv[1:]))
