#!/usr/bin/env python
"""The frontier of accuracy and cost: a setting swept over values and seeds, each trial an ordinary run, with Ray Tune.

python launch/sweep.py +experiment=quickstart setting=reward.retrieval 'values=[0,-0.1,-0.2,-0.4,-0.8]' 'seeds=[0,1,2]'
python launch/sweep.py +experiment=quickstart reward=budget setting=reward.budget.target 'values=[0.2,0.5,0.8]'
python launch/sweep.py +experiment=quickstart ... resume=latest      goes on; values and seeds may have been added

setting   any number of a run
values    what it is set to
seeds     each is one warm-up, from which all its trials start
gates     an evaluation.json whose gates stand in the picture too; left out: that of a warm-up, where it has one
asha      reward, em or f1: trials that fall behind by it are stopped, at `grace` steps, twice as many and so on
SETTING   any setting of launch/train.py, for the warm-ups and all trials

A table at the end; frontier.json, frontier.png and the runs are in runs/<name>/sweeps/<id>.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments: list[str]) -> int:
    from smartrag.compose import understood
    from smartrag.experiments.sweep import load

    plan = understood(load, arguments)
    from cluster.sweep import sweep  # Ray and RLlib take seconds to import: not before the command line is right

    return sweep(plan)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    sys.exit(main(sys.argv[1:]))
