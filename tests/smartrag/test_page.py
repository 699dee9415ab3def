import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smartrag import ROOT
from smartrag.evaluation.evaluate import COSTS, MEASURES
from smartrag.log import RunFolder
from smartrag.report import contrast, page
from smartrag.report.prose import number
from smartrag.report.tables import LABELS
from tests import run_folder
from tests.run_folder import SHOWN, STEPS, SYSTEMS

VOID = {"meta", "link", "br", "img", "input"}


class Seen(HTMLParser):
    """What a page holds: tags, attributes, text, and its tables by caption as rows of texts."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}
        if tag not in VOID:
            self._open.append(tag)
        match tag:
            case "table":
                self._rows: list[list[str]] = []
            case "tr":
                self._rows.append([])
            case "td" | "th":
                self._rows[-1].append("")
            case "caption":
                self._caption = ""

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data
        elif "caption" in self._open:
            self._caption += data

    def table(self, caption: str) -> dict[str, list[str]]:
        """Cells by the name of their row; the head is the row ""."""
        (rows,) = [rows for name, rows in self.tables.items() if name.startswith(caption)]
        return {row[0]: row[1:] for row in rows}


def _cell(x: Any) -> str:
    """As a number or an interval below ten must stand on the page."""
    if x is None:
        return "–"
    return f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" if isinstance(x, dict) else f"{x:.3f}"


def _signed(x: dict[str, float]) -> str:
    mean, low, high = (f"{x[name]:+.3f}" if x[name] else "0.000" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]".replace("-", "−")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Seen, str, dict[str, Any]]:
    """(page, its HTML, what the files say) of a run with an evaluation, a sweep and an ablation."""
    top, rng = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    folder = top / "runs" / "quickstart" / "one"
    told = {"summary": run_folder.write_run(folder, rng), "evaluation": run_folder.write_evaluation(folder, rng)}
    told["sweep"] = run_folder.write_sweep(top / "frontier.json", rng)
    told["ablation"] = run_folder.write_ablation(top / "ablation.json", rng)
    out = page.write(folder, None, [top / "frontier.json", top / "ablation.json"])
    assert out == folder / "report.html"
    html = out.read_text(encoding="utf-8")
    return Seen(html), html, told


def test_the_headline_shows_the_figures_of_the_summary(whole: tuple) -> None:
    seen, _, told = whole
    summary = told["summary"]
    shown = seen.table("6 test questions")
    assert shown[""] == list(SYSTEMS)
    for name in MEASURES:
        assert shown[LABELS[name]] == [_cell(summary[system][name]) for system in SYSTEMS]
    gaps = seen.table("After, minus the others")
    for other in ("before", "never", "always"):
        assert gaps[f"minus {other}"][0] == _signed(summary["difference"][f"after_minus_{other}"])
    # exact match of after: 5 of 6 (q3 wrong); before 4 of 6 less q1, q5: 0, 2, 3, 4 right
    assert gaps["minus before"][1].startswith("+0.167 [")
    assert gaps["minus always"][2].startswith("−0.500 [")  # 3 of 6 searched, always 6 of 6
    assert f"{summary['after']['reward']['mean']:.3f}" in seen.text


def test_curves_decisions_and_groups_show_what_the_files_say(whole: tuple) -> None:
    seen, html, told = whole
    summary = told["summary"]
    fifths = seen.table("Share that retrieves")
    assert all(fifths[s] == [_cell(x) for x in summary[s]["retrieval_rate_by_popularity_fifth"]] for s in SYSTEMS)
    hops = seen.tables["By hops"][1:]
    names = ("reward", "em", "f1", "retrievals_per_question", "hit_rate")
    assert hops == [
        [v, s, "3", *(_cell(summary[s]["by_hops"][v][name]) for name in names)] for v in "12" for s in SYSTEMS
    ]
    assert SHOWN in [row[0] for row in seen.tables["By data set"]]
    assert html.count('class="plot"') >= 12
    health = seen.table("Health")
    assert health["canary's gap after a weight push, nats (largest)"] == ["1.2 × 10⁻⁵".replace(" ", "\u202f")] * 2 + [
        "12"
    ]
    assert health["episodes voided (in all)"][0] == str(STEPS)


def test_what_became_of_the_questions_is_counted(whole: tuple) -> None:
    seen, _, _ = whole
    turned = seen.table("Test questions, before")
    assert turned["direct, right"] == ["1", "1", "1", "0"]  # q0; q3; q2
    assert turned["direct, wrong"] == ["0", "0", "2", "0"]  # q1, q5
    assert turned["searched, right"] == ["1", "0", "0", "0"]  # q4
    needed = seen.table("Where a retrieval was needed")
    assert needed["both right: no need"] == ["2", "0.500", "1.000"]  # q0 direct, q2 searched
    assert needed["only always right: needed"] == ["2", "0.500", "1.000"]  # q1 searched, q4 direct
    assert needed["only never right: harmful"] == ["2", "0.500", "0.500"]  # q3 direct and wrong, q5 searched and right
    assert "neither right: no help" not in needed


def test_evaluations_sweeps_and_ablations_show_what_the_files_say(whole: tuple) -> None:
    seen, _, told = whole
    evaluation = told["evaluation"]
    systems = seen.table("Systems, mean")
    for name in (*MEASURES, *COSTS):
        assert systems[LABELS[name]] == [_cell(of[name]) for of in evaluation["systems"].values()]
    gaps = seen.table("Paired differences")
    for other, gap in evaluation["differences"].items():
        assert gaps[other.replace("_", " ")][0] == _signed(gap["reward"])
    areas, shown = seen.table("Threshold gates"), ("reward", "em", "retrievals_per_question", "model_calls")
    for gate, of in evaluation["gates"].items():
        gate = gate.replace("\u202e", r"\u202e")
        assert areas[gate] == [_cell(x) for x in of["auc"].values()]
        for kind, caption in (("tuned", "threshold tuned"), ("matched", "with the policy's")):
            figures = [of[kind][name] for name in ("threshold", *shown)]
            assert seen.table(f"Gates, {caption}")[gate] == [_cell(x) for x in figures]
            gap = of[kind]["policy_minus_this"]
            assert seen.table(f"Policy minus gate, {caption}")[gate] == [_signed(gap[name]) for name in shown]
    decided = evaluation["decision"]
    shares = [cell["share"] for cell in decided["necessity"]]
    assert list(seen.table("necessity").values())[1:] == [
        [_cell(x) for x in shares[:2]],
        [_cell(x) for x in shares[2:]],
    ]
    rates = [x for x in decided.values() if isinstance(x, float) or x is None]
    assert [row[1] for row in seen.tables["Decisions of the policy"][1:]] == [_cell(x) for x in rates]
    for role, of in decided["counterfactuals"].items():
        assert seen.table("The policy with one role made perfect")[role][0] == _cell(of["reward"])
        assert seen.table("What that gains")[role][0] == _signed(of["gain"]["reward"])
    points = seen.tables["Points of the sweep, one a run"][1:]
    for row, point in zip(points, told["sweep"]["points"], strict=True):
        assert row[1:4] == [str(point["seed"]), _cell(point["reward"]), _cell(point["em"])]
        assert "/somewhere" not in row[-1], "only experiment/id of a run's path"
    rows = seen.tables["Rows of the ablation, one a run"][1:]
    assert [row[0] for row in rows] == ["decision", "decision + answer", "composed", SHOWN, "nothing"]
    assert [row[2] for row in rows] == [_cell(row["reward"]) for row in told["ablation"]["rows"]]
    together = seen.tables["All seeds of a value together"][1]
    assert together[1:3] == ["0, 1", _cell(told["sweep"]["curve"][0]["reward"])]
    gaps = seen.tables["All roles together, minus the row, paired"][1:]
    assert [row[:2] for row in gaps] == [[SHOWN, "0"], [SHOWN, "all"]]
    assert [row[2] for row in gaps] == [_signed(gap["reward"]) for gap in told["ablation"]["differences"]]


def test_cost_is_summed_as_reserved(whole: tuple) -> None:
    seen, _, _ = whole
    cost = seen.table("Cost")
    assert cost["tokens generated in training"] == ["1,278"]  # 12 × 100 + 1 + ... + 12
    assert cost["tokens generated a second of rollout"] == ["53.2"]  # 1,278 / 24 s
    assert cost["CPUs reserved"] == ["2"]  # two ranks, an engine and a replica, half a CPU each
    assert cost["CPU core-hours"] == ["2.000"]
    assert cost["GPU-hours"] == ["0.000"]
    assert seen.table("Seconds by phase")["in all"][0] == "3,600"
    assert "share 3 questions" in seen.text, "an overlap of splits is a limit"


def test_hostile_texts_are_text(whole: tuple) -> None:
    seen, html, _ = whole
    assert seen.text.count(SHOWN) > 20
    assert not {"script", "img", "iframe", "object", "link", "form", "a:href"} & seen.tags
    assert "7*7" in seen.text
    names = {name for name, _ in seen.attributes}
    assert not [name for name in names if name.startswith("on") or name in ("style", "src", "srcset", "action")]
    links = {value for name, value in seen.attributes if name in ("href", "xlink:href")}
    assert links
    assert all(link.startswith("#") for link in links), "nothing is fetched"
    assert "url(http" not in html


def test_the_policy_lets_in_one_style_sheet_and_nothing_else(whole: tuple) -> None:
    _, html, _ = whole
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in html.replace("&#39;", "'").replace(
        "&#43;", "+"
    )
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert "@import" not in style
    assert "url(" not in style


PARTS = ("config.yaml", "metrics.jsonl", "summary.json", "splits.json", "episodes.jsonl", "evaluation-before.jsonl")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("alone", [False, True])
def test_a_folder_with_parts_missing_gives_a_page_that_says_so(tmp_path: Path, part: str, alone: bool) -> None:
    folder = tmp_path / "runs" / "x" / "one"
    run_folder.write_run(folder, np.random.default_rng(1))
    for path in folder.iterdir():
        if (path.name == part) is not alone:
            path.unlink()
    if alone and part == "episodes.jsonl":
        with pytest.raises(FileNotFoundError, match="not the folder of a run"):
            page.write(folder)
        return
    seen = Seen(page.write(folder).read_text(encoding="utf-8"))
    assert "not evaluated against gates" in seen.text
    if alone or part in ("config.yaml", "summary.json"):
        assert ("There is no config.yaml" in seen.text) == (alone != (part == "config.yaml"))
        assert ("There is no summary.json" in seen.text) == (alone != (part == "summary.json"))


def test_a_run_under_way_shows_what_there_is(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x" / "one"
    run_folder.write_run(folder, np.random.default_rng(2))
    for name in ("summary.json", *(f"evaluation-{system}.jsonl" for system in SYSTEMS[1:])):
        (folder / name).unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    seen = Seen(page.write(folder).read_text(encoding="utf-8"))
    assert "5 of 12 planned steps are in metrics.jsonl" in seen.text
    assert "metrics.jsonl: 1 of 6 lines are no JSON objects" in seen.text
    assert "has not been evaluated after training" in seen.text
    assert seen.table("6 test questions")["exact match"][0].startswith("0.667 [")  # 4 of the 6 before
    assert "sampled training episodes" in seen.text


def test_long_runs_and_long_passages_make_no_long_page(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x" / "one"
    rng = np.random.default_rng(3)
    run_folder.write_run(folder, rng)
    steps = [run_folder._step(step, rng) for step in range(1, 20_001)]
    run_folder._lines(folder / "metrics.jsonl", steps)
    for i, system in enumerate(SYSTEMS):
        many = [row | {"question_id": f"{row['question_id']}-{n}"} for n in range(5) for row in run_folder.rows(i)]
        for row in many:
            row["turns"] = [
                turn | {"text": "x" * 10_000, "passages": ["t\n" + "y" * 10_000] * 20} for turn in row["turns"]
            ]
        run_folder._lines(folder / f"evaluation-{system}.jsonl", many)
    html = page.write(folder).read_text(encoding="utf-8")
    assert "(10,000 characters in all)" in html
    assert len(html.encode()) < 1_500_000


def test_lone_surrogates_and_control_characters_do_not_stop_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x" / "one"
    run_folder.write_run(folder, np.random.default_rng(4))
    rows = run_folder.rows(1)
    rows[0]["turns"][0]["text"] = "a\ud800b\x00c\u2028d"
    (folder / "evaluation-after.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "evaluations" / "e").mkdir(parents=True)
    bad = {"systems": {"policy\x0b": {"n": 1, "em": None}}, "gates": {"\ud800": {"curve": [{"em": 1.0}]}}}
    (folder / "evaluations" / "e" / "evaluation.json").write_text(json.dumps(bad))
    sweep = {"setting": "\x0c\ud800", "points": [{"value": 1, "em": _FIGURES, "retrievals_per_question": _FIGURES}]}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    assert r"a\ud800b\u0000c\u2028d" in page.write(folder, None, [tmp_path / "sweep.json"]).read_text(encoding="utf-8")


_FIGURES = {"mean": 0.5, "low": 0.4, "high": 0.6}


def test_pairs_show_every_kind_of_change_and_are_chosen_alike_every_time() -> None:
    before, after = run_folder.rows(0), run_folder.rows(1)
    kinds = contrast.kinds(before * 10, after * 10)
    assert {kind.changes: kind.count for kind in kinds} == {
        (): 10,  # q0
        ("direct → search", "wrong → right"): 20,  # q1, q5
        ("direct → search",): 10,  # q2
        ("right → wrong",): 10,  # q3
        ("search → direct",): 10,  # q4
    }
    assert kinds[-1].changes == ()
    assert all(len(kind.pairs) == 2 for kind in kinds)
    assert kinds == contrast.kinds(before * 10, after * 10)
    assert contrast.kinds(before, after[1:]) == [], "not the same questions"


def test_rows_of_real_episodes_can_be_shown() -> None:
    from smartrag.evaluation import evaluate
    from tests.smartrag.test_evaluate import _episode
    from tests.toys import PAPER

    row = evaluate.describe(_episode("[Search] Oslo", " Norway"), PAPER)
    shown = contrast.shown(row)
    assert [move.action for move in shown.moves] == ["search", "answer"]
    assert shown.moves[0].passages[0].gold
    assert (shown.right, shown.reward, contrast.behaviour(row)) == (True, pytest.approx(1.8), "searched, right")
    assert contrast.shown(evaluate.describe(_episode("hm"), PAPER)).end == "format_error"


def test_numbers_as_people_read_them() -> None:
    shown = [number(x) for x in (0.0, 0.0004, -0.25, 9.9994, 123.456, 12345.6, 7, 12345, True, None, float("nan"))]
    tiny = "4.0\u202f×\u202f10⁻⁴"
    assert shown == ["0.000", tiny, "−0.250", "9.999", "123.5", "12,346", "7", "12,345", "yes", "–", "–"]
    assert [number(x, True) for x in (0.5, -0.5, 0.0)] == ["+0.500", "−0.500", "0.000"]


def test_the_command_refuses_what_it_cannot_use_and_its_help_is_fast(tmp_path: Path) -> None:
    def report(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-X", "importtime", str(ROOT / "launch" / "report.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    asked = report("--help")
    assert asked.returncode == 0
    assert "--with" in asked.stdout
    assert not re.search(r"\| +(numpy|matplotlib|jinja2|omegaconf)$", asked.stderr, re.MULTILINE)
    refused = report(str(tmp_path))
    assert refused.returncode == 3
    assert "is not the folder of a run" in refused.stderr
    folder = tmp_path / "runs" / "x" / "one"
    run_folder.write_run(folder, np.random.default_rng(5))
    (tmp_path / "other.json").write_text('{"neither": 1}')
    refused = report(str(folder), "--with", str(tmp_path / "other.json"))
    assert refused.returncode == 3
    assert "neither an evaluation" in refused.stderr
    RunFolder(folder)  # a checkpoint's path means its run
    done = report(str(folder / "checkpoints" / "step_00000012"), "--out", str(tmp_path / "new" / "page.html"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "new" / "page.html")
    assert not (folder / "report.html").exists()
