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
    ours = {"run": "", "out": "test", "gates": "true", "samples": "5", "labelled": "1000"}
    given = [a.partition("=")[::2] for a in arguments if a.partition("=")[0] in ours]
    overrides = [a for a in arguments if a.partition("=")[0] not in ours]
    if {"-h", "--help"} & set(arguments) or not arguments:
        print(__doc__)
        return 0 if arguments else 2
    chosen = ours | dict(given)
    if problems := list(_problems(chosen)):
        print("\n".join(problems), file=sys.stderr)
        return 2
    from cluster.evaluation import evaluate
    from smartrag.compare import Effort

    effort = Effort(chosen["gates"] == "true", int(chosen["samples"]), int(chosen["labelled"]))
    return evaluate(chosen["run"], overrides, chosen["out"], effort)


def _problems(chosen: dict[str, str]) -> list[str]:
    found = [] if chosen["run"] else ["run=... must be given: the folder of a run, or a model"]
    if chosen["gates"] not in ("true", "false"):
        found.append(f"gates must be true or false, got {chosen['gates']!r}")
    found += [
        f"{n} must be a whole number, got {chosen[n]!r}" for n in ("samples", "labelled") if not chosen[n].isdigit()
    ]
    if Path(chosen["out"]).name != chosen["out"]:
        found.append(f"out must be a name without slashes, got {chosen['out']!r}")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
