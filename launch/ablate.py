#!/usr/bin/env python
"""Ablations: train only the decision, only the query, only the answer, each pair, all three, and put parts together.

python launch/ablate.py +experiment=quickstart [seeds=[0,1,2]] [rows=[decision,query+answer,all,composed]] [SETTING=...]
python launch/ablate.py +experiment=quickstart resume=latest      goes on; rows and seeds may have been added

rows      decision, query, answer; decision+query, decision+answer, query+answer; all; composed (the single rows'
          policies, each in its own role). Left out: every one of them
seeds     each is a warm-up of its own, from which all its rows start
SETTING   any setting of launch/train.py; train.steps x train.episodes is the budget of every row

A table at the end; ablation.json, ablation.png and the runs are in runs/<name>/ablations/<id>.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments: list[str]) -> int:
    from smartrag.compose import understood
    from smartrag.experiments.ablation import load

    settings, run = understood(load, arguments)
    from cluster.ablation import ablate  # Ray and RLlib take seconds to import: not before the command line is right

    return ablate(settings, run)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    sys.exit(main(sys.argv[1:]))
