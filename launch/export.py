#!/usr/bin/env python
"""Ship a trained policy: a Hugging Face folder with a model card, which transformers and `vllm serve` load as it is.

python launch/export.py run=runs/quickstart/latest out=FOLDER
python launch/export.py run=runs/quickstart/latest/checkpoints/step_00000040 out=FOLDER   # not the newest

run        folder of a run or of one of its checkpoints
out        the folder to make
overwrite  replace an export that is there already [false]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments: list[str]) -> int:
    from smartrag.commands import Export
    from smartrag.compose import alone, understood

    settings = understood(lambda given: alone(Export, "export.yaml", given), arguments)
    from cluster.export import export  # Ray and torch take seconds to import: not before the command line is right

    return export(settings)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    sys.exit(main(sys.argv[1:]))
