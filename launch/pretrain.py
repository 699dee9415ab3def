"""Pretrain the tiny base model again: `python launch/pretrain.py models/tiny`. About half an hour on two CPU cores."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads leave the cores to others

from smartrag.pretrain import Plan, pretrain


def main() -> None:
    plan = Plan()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where model and tokenizer go; overwritten")
    parser.add_argument("--steps", type=int, default=plan.steps)
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--threads", type=int, default=plan.threads)
    options = parser.parse_args()
    plan = replace(plan, steps=options.steps, seed=options.seed, threads=options.threads)
    print(json.dumps(pretrain(options.folder, plan), indent=1))


if __name__ == "__main__":
    main()
