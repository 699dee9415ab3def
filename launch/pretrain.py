#!/usr/bin/env python
"""Pretrain the tiny base model again: `python launch/pretrain.py models/tiny`. Most of an hour on two CPU cores."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads leave the cores to others

from smartrag.pretraining.pretrain import BROAD, DEEP, pretrain

_STAGES = {"broad": BROAD, "deep": DEEP}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where model and tokenizer go; overwritten")
    parser.add_argument("--stage", choices=list(_STAGES), help="only this one; default: both, in order")
    parser.add_argument("--threads", type=int, default=BROAD.threads)
    options = parser.parse_args()
    for stage in [options.stage] if options.stage else _STAGES:
        print(json.dumps(pretrain(options.folder, replace(_STAGES[stage], threads=options.threads)), indent=1))


if __name__ == "__main__":
    main()
