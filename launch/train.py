#!/usr/bin/env python
"""Train a policy: warm-up, PPO and evaluation, as conf/ and the command line say.

python launch/train.py +experiment=quickstart
ray job submit --working-dir . -- python launch/train.py +experiment=hotpotqa train.steps=400
python launch/train.py +experiment=hotpotqa resume=latest
python launch/train.py +experiment=hotpotqa train.mirror=s3://BUCKET/runs resume=auto
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from smartrag.compose import main
from smartrag.config import Run


def train(run: Run) -> None:
    from cluster.driver import drive  # Ray and RLlib take seconds to import: not before the command line is right

    sys.exit(drive(run))


if __name__ == "__main__":
    main(train)
