#!/usr/bin/env python
"""Write a run as one page, report.html, that opens in any browser without network.

python launch/report.py runs/quickstart/latest
python launch/report.py runs/hotpotqa/latest --out hotpotqa.html --with runs/hotpotqa/sweeps/*/frontier.json
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, finished or not")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page goes; default: report.html in the run")
    parser.add_argument(
        "--with",
        dest="others",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="frontier.json of sweeps, ablation.json of ablations, evaluation.json of other evaluations",
    )
    arguments = parser.parse_args()

    from smartrag.exits import BAD_INPUT
    from smartrag.report.page import write

    try:
        print(write(arguments.run, arguments.out, arguments.others))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
