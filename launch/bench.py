#!/usr/bin/env python
"""How far each part is from the limit of what it is built on, as ratios measured in turns on one machine.

python launch/bench.py +experiment=quickstart
python launch/bench.py cluster=one_gpu model=smollm2_135m train.episodes=256

only      parts to measure: rollout, retrieval, corpora, learner, push, step, authors, trl [all]
repeats   of each measurement [5]
SETTING   any setting of launch/train.py

A table at the end, and the same figures in runs/bench/<id>/bench.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments: list[str]) -> int:
    from smartrag.compose import understood
    from smartrag.experiments.bench import load

    settings, run = understood(load, arguments)
    from cluster.bench.parts import bench  # Ray and torch take seconds to import: not before the command line is right

    return bench(settings, run)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    sys.exit(main(sys.argv[1:]))
