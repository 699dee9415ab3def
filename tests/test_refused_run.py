"""Whole runs that are refused: `drive` and the scripts end with their exit code and one message, nothing half-written.

The bad inputs one by one are in test_bad_input.py.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from smartrag import ROOT
from smartrag.compose import load
from smartrag.evaluation.compare import settings
from tests.bad_inputs import ROW, append, good_data, good_run, write

END_TO_END = [
    ("bad json", append("train.jsonl", '{"id": "x"\n'), [], "train.jsonl:2"),
    ("no answers", append("test.jsonl", json.dumps(ROW | {"answers": []}) + "\n"), [], "test.jsonl:2"),
    ("malformed passage", append("corpus.jsonl", '{"id": "p2"}\n'), [], "corpus.jsonl:2"),
    ("empty corpus", write("corpus.jsonl", ""), [], "no passages"),
    ("missing model", None, ["model.path=/nowhere/model"], "/nowhere/model does not exist"),
    ("missing index", None, ["retriever.index=/nowhere/index"], "/nowhere/index"),
    ("nothing to deal", None, ["retriever.corpus=useless"], "there are ['p1']"),
    ("missing data", None, ["data.source=/nowhere/data"], "'/nowhere/data' does not exist"),
    ("long question", append("train.jsonl", json.dumps(ROW | {"question": "why " * 300}) + "\n"), [], "do not fit"),
]


@pytest.mark.fault("C1", "a whole run is given bad input")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "spoil", "overrides", "said"), END_TO_END, ids=[case[0] for case in END_TO_END])
def test_a_run_ends_with_one_message_and_leaves_nothing(
    name: str,
    spoil: Callable[[Path], None] | None,
    overrides: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cluster.driver import drive
    from smartrag.exits import BAD_INPUT

    data = good_data(tmp_path / "data")
    if spoil is not None:
        spoil(data)
    places = [f"runs={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}"]
    run = load(["data=folder", f"data.source={data}", "log.wandb=disabled", *places, *overrides])
    assert drive(run) == BAD_INPUT
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "cache").glob("indexes/*"))


@pytest.mark.slow
def test_a_built_index_must_be_what_the_run_asks_for(tmp_path: Path) -> None:
    from cluster.index import build_index
    from cluster.system import BadInput, inputs
    from smartrag.choices import Corpus, Stemmer
    from smartrag.data.passages import Recipe

    data, built = good_data(tmp_path / "data"), tmp_path / "index"
    made = Recipe(stemmer=Stemmer.krovetz, corpus=Corpus.real, share=1.0)
    build_index(data / "corpus.jsonl", built, made, threads=1, k1=0.9, b=0.4)
    given = ["data=folder", f"data.source={data}", f"cache={tmp_path / 'cache'}", f"retriever.index={built}"]
    assert inputs(load([*given, "retriever.stemmer=krovetz"])).index == built
    with pytest.raises(BadInput, match=r"was made with stemmer krovetz, .* but the run asks for stemmer porter, "):
        inputs(load(given))


@pytest.mark.slow
def test_without_java_the_command_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTRAG_JAVA_HOME", str(tmp_path))
    command = [sys.executable, str(ROOT / "launch" / "train.py"), "+experiment=quickstart", f"runs={tmp_path / 'runs'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3
    assert "Java" in done.stderr
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault("C2", "what is resumed does not fit")
@pytest.mark.slow
@pytest.mark.parametrize(("to_resume", "code"), [("custom/latest/checkpoints/step_00000003", 3), ("nowhere", 5)])
def test_what_cannot_be_resumed_ends_before_anything_starts(
    to_resume: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cluster.driver import drive

    _, made = good_run(tmp_path)
    (made / "learner" / "critic" / "part").write_bytes(b"x")
    assert drive(load([f"runs={tmp_path}", f"resume={tmp_path / to_resume}"])) == code
    message = capsys.readouterr().err
    assert ("has 1 bytes, not the 7 that were written" if code == 3 else "leave out `resume`") in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_a_config_that_no_run_wrote_is_not_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.evaluation import evaluate

    _, made = good_run(tmp_path)
    (made.parents[1] / "config.yaml").write_text("_target_: os.system\n")
    assert evaluate(*settings([f"run={made.parents[1]}"])) == 3
    assert "nothing is instantiated from a configuration" in capsys.readouterr().err
