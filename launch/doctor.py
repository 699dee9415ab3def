#!/usr/bin/env python
"""Is this machine fit for a run? Looks at everything it would need, starts nothing, and says what to do.

python launch/doctor.py +experiment=quickstart
python launch/doctor.py +experiment=hotpotqa cluster=one_gpu runs=/shared/runs

Takes what launch/train.py takes. A line for each check: ok, warning or problem. Exit code 3 when there is a problem.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments: list[str]) -> int:
    from smartrag.compose import load, understood

    run = understood(load, arguments)
    from cluster.doctor import doctor  # Ray takes seconds to import: not before the command line is right

    return doctor(run)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    sys.exit(main(sys.argv[1:]))
