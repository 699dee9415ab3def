"""What `make quickstart` runs, made short, and the command that it names at its end."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from smartrag import ROOT
from smartrag.report.terminal import as_text
from tests.whole_run import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]
SHORT = ("train.steps=1", *SMALL, "train.gates=false", "log.wandb=disabled")


def test_the_quickstart_ends_with_a_table_and_a_question_to_ask(tmp_path: Path) -> None:
    env = os.environ | {"SMARTRAG_RUNS": str(tmp_path / "runs")}
    done = _said([sys.executable, "launch/quickstart.py", *SHORT], env)
    folder = (tmp_path / "runs" / "quickstart" / "latest").resolve()
    assert f"to look at it, open {folder / 'report.html'}" in done
    assert as_text(json.loads((folder / "summary.json").read_text())) in done
    [command] = re.findall(r"^Ask it yourself: (.*)$", done, re.MULTILINE)
    words = shlex.split(command)
    assert words[:2] == [".venv/bin/python", "launch/ask.py"]
    asked = _said([sys.executable, *words[1:]], env)
    assert re.search(r"^Question   Which country is Jonkoping in\?\n(Search|Answer)", asked, re.MULTILINE), asked


@pytest.mark.nightly
def test_the_warm_up_alone_leaves_a_policy(tmp_path: Path) -> None:
    given = ["launch/warmup.py", "+experiment=quickstart", *SHORT, f"runs={tmp_path}"]
    _said([sys.executable, *given], dict(os.environ))
    [checkpoint] = (tmp_path / "quickstart" / "latest" / "checkpoints").iterdir()
    assert checkpoint.name == "step_00000000"
    assert (checkpoint / "policy" / "model.safetensors").exists()


def _said(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
    return done.stdout
