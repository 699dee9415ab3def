#!/usr/bin/env python
"""Is the policy worth it? Compares it with never, always, threshold gates and oracles on the test questions.

python launch/evaluate.py run=runs/quickstart/latest
python launch/evaluate.py run=runs/quickstart/latest out=more_passages retriever.k=4   # another retriever at test time
python launch/evaluate.py run=runs/hotpotqa/latest out=musique data=musique            # questions it never trained on
python launch/evaluate.py run=HuggingFaceTB/SmolLM2-135M-Instruct +experiment=popqa    # a model as it is

run        folder of a run or of one of its checkpoints, or a model: a folder or an id on the hub
out        name of the folder in RUN/evaluations/ that gets evaluation.json, questions.parquet and plots [test]
gates      threshold gates too; they need dev and train questions [true]
samples    sampled closed-book answers a question, for the gate that goes by their entropy [5]
labelled   train questions asked closed-book, for the gates that learn; at most [1000]
           everything else changes the run's own settings, as on the command line of train.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments: list[str]) -> int:
    from smartrag.compose import understood
    from smartrag.evaluation.compare import settings

    chosen, overrides = understood(settings, arguments)
    from cluster.evaluation import evaluate

    return evaluate(chosen, overrides)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    sys.exit(main(sys.argv[1:]))
