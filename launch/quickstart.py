#!/usr/bin/env python
"""What `make quickstart` runs: a Ray of its own, `ray job submit` of the quickstart experiment, and the result.

python launch/quickstart.py [OVERRIDE ...]        e.g. seed=1 train.steps=5
"""

import json
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main(overrides: list[str]) -> int:
    from cluster.local_ray import LocalRay
    from smartrag.report.terminal import as_text

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that Ray is stopped
    runs = Path(os.environ.get("SMARTRAG_RUNS", ROOT / "runs")).resolve()
    command = ["launch/train.py", "+experiment=quickstart", f"runs={runs}", *overrides]
    with LocalRay(num_cpus=2) as ray:
        code = ray.submit(command)
    if code == 0:
        folder = (runs / "quickstart" / "latest").resolve()
        print(as_text(json.loads((folder / "summary.json").read_text())))
        print(f"All of it is in {folder}; to look at it, open {folder / 'report.html'}")
        print(f'Ask it yourself: .venv/bin/python launch/ask.py {folder} "Which country is Jonkoping in?"')
    return code


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    sys.exit(main(sys.argv[1:]))
