#!/usr/bin/env python
"""Ask a trained run questions and see the episodes: decision, query, passages, answer.

python launch/ask.py runs/quickstart/latest "Which country is Oslo in?" ["Another question?" ...]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run, or of one of its checkpoints, or the URI of its copy")
    parser.add_argument("questions", nargs="+", metavar="question")
    arguments = parser.parse_args()

    from cluster.asking import ask

    return ask(arguments.run, arguments.questions)


if __name__ == "__main__":
    sys.exit(main())
