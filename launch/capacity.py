#!/usr/bin/env python
"""How many machines a run wants and where it would wait: its pipeline, simulated event by event.

python launch/capacity.py                               fleets of 8 to 1,024 H100s, policies of 0.5B to 32B
python launch/capacity.py 'policies=[7B]' 'gpus=[32]' search_s=0.2 passage_tokens=1500
python launch/capacity.py 'measured=[RUN,OTHER,...]'    service times fitted to RUN; all held against their simulation

measured  folders of runs that were trained with log.trace=true
NAME      any of conf/capacity.yaml: chip, tokens, searches, search time, failures

A table; capacity.json, and for a fleet capacity.png, are in runs/capacity/<id>.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments: list[str]) -> int:
    from smartrag.capacity.study import load, run
    from smartrag.compose import understood

    return run(understood(load, arguments))


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    sys.exit(main(sys.argv[1:]))
