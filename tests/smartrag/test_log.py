import json
from pathlib import Path

import pytest

from smartrag.log import COLUMNS, RunFolder, versions
from smartrag.report.plot import curves
from smartrag.report.terminal import as_text

SCORE = {"mean": 0.5, "low": 0.4, "high": 0.6}


def _summary() -> dict:
    from smartrag.evaluation.evaluate import MEASURES

    one = {"n": 10, **dict.fromkeys(MEASURES, SCORE), "retrieval_rate_by_popularity_fifth": [1, 0.8, 0.5, 0.2, 0]}
    return {"before": one, "after": one | {"hit_rate": None}, "difference": {"after_minus_before": SCORE}}


def test_latest_follows_the_newest_run(tmp_path: Path) -> None:
    first, second = RunFolder.create(str(tmp_path), "x"), RunFolder.create(str(tmp_path), "x")
    assert first.folder != second.folder
    assert (tmp_path / "x" / "latest").resolve() == second.folder
    assert RunFolder.find(str(tmp_path), "x", "latest").folder == second.folder
    assert RunFolder.find(str(tmp_path), "x", str(first.folder)).folder == first.folder
    assert RunFolder.find(str(tmp_path), "x", str(first.checkpoints / "step_00000001")).folder == first.folder
    with pytest.raises(FileNotFoundError, match="no run in"):
        RunFolder.find(str(tmp_path), "y", "latest")


def test_rows_are_kept_in_order_and_a_rewind_drops_what_comes_again(tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path), "x")
    for step in (1, 2, 3):
        run.metrics({"step": step, "reward": step / 2})
        run.episode({"step": step, "question": "Tromsø?", "passage": "a\u2028b\x85c"})  # line ends to str.splitlines
    run.rewind(2)
    assert [row["step"] for row in run.rows()] == [1, 2]
    run.write_evaluation("after", [{**dict.fromkeys(COLUMNS, 1.0), "passage": "a\u2028b\x85c"}])
    assert run.evaluation("after")["reward"].tolist() == [1.0]
    assert "Tromsø" in (run.folder / "episodes.jsonl").read_text(encoding="utf-8")


@pytest.mark.fault("T1", "a row is cut short at any byte")
def test_a_row_that_was_cut_short_is_no_row(tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path), "x")
    for step in (1, 2, 3):
        run.metrics({"step": step, "question": "Tromsø?"})
    path = run.folder / "metrics.jsonl"
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        assert [row["step"] for row in run.rows()] == [1, 2]
        run.rewind(2)
        run.metrics({"step": 3})
        assert [row["step"] for row in run.rows()] == [1, 2, 3]


def test_pictures_and_tables_for_people(tmp_path: Path) -> None:
    rows = [{"step": s, "reward": s / 10, "em": 0.1, "retrievals_per_question": 0.5} for s in range(1, 20)]
    curves(rows, _summary(), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    text = as_text(json.loads(json.dumps(_summary())))
    assert "0.500 [0.400, 0.600]" in text
    assert "10 test questions" in text
    assert as_text({}) == "nothing was evaluated"


def test_versions_name_what_decides_a_result() -> None:
    assert {"torch", "vllm", "ray", "deepspeed", "pyserini", "transformers"} <= set(versions())
