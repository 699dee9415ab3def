#!/usr/bin/env python
"""Only the first stage: supervised warm-up, its evaluation, and a checkpoint whose policy/ is a Hugging Face folder.

python launch/warmup.py +experiment=quickstart
python launch/train.py +experiment=quickstart warmup.steps=0 \\
        model.path=runs/quickstart/latest/checkpoints/step_00000000/policy
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from smartrag.compose import main
from smartrag.config import Run


def warm_up(run: Run) -> None:
    from cluster.driver import drive

    sys.exit(drive(run, warmup_only=True))


if __name__ == "__main__":
    main(warm_up)
