"""A small run as training leaves it, with every text in it hostile, for tests of what reads a run's folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from smartrag.compose import as_yaml, load
from smartrag.evaluation import decision, evaluate, gates
from smartrag.evaluation.evaluate import COSTS, MEASURES

HOSTILE = "</script></style></svg><script>hacked=1</script><img src=x onerror=hacked=1>$\\frac{\"'&\u202e{{7*7}}"
SHOWN = HOSTILE.replace("\u202e", r"\u202e")  # as a page spells it out
STEPS = 12
# question, gold, then for before, after, never, always: (query or None, answer)
QUESTIONS = (
    ("q0", "Oslo", "Norway", (None, "Norway"), (None, "Norway"), (None, "Norway"), ("Oslo", "Norway")),
    ("q1", "Bo", "Sierra Leone", (None, "Mali"), ("Bo", "Sierra Leone"), (None, "Mali"), ("Bo", "Sierra Leone")),
    ("q2", "Ede", "Nigeria", (None, "Nigeria"), ("Ede", "Nigeria"), (None, "Nigeria"), ("Ede", "Nigeria")),
    ("q3", "Como", "Italy", (None, "Italy"), (None, "Como"), (None, "Italy"), ("Como", "Peru")),
    ("q4", "Wels", "Austria", ("Wels", "Austria"), (None, "Austria"), (None, "Chad"), ("Wels", "Austria")),
    ("q5", HOSTILE, HOSTILE, (None, "x"), (HOSTILE, HOSTILE), (None, HOSTILE), (HOSTILE, "y")),
)
SYSTEMS = ("before", "after", "never", "always")
# systems of an evaluation and the share of questions for which each retrieves
ASKED = {"policy": 0.6, "never": 0.0, "always": 1.0, "question": 1.0, "gold_first": 0.6, "oracle": 0.5}


def rows(system: int) -> list[dict[str, Any]]:
    """evaluation-<system>.jsonl, as evaluate.describe writes it."""
    return [_episode(name, place, gold, *told[system]) for name, place, gold, *told in QUESTIONS]


def figures(rng: np.random.Generator) -> dict[str, float]:
    low, mean, high = sorted(rng.uniform(0.01, 2, 3))
    return {"mean": mean, "low": low, "high": high}


def write_run(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    """The whole folder of a finished run; returns its summary. Numbers are random, so none passes for another."""
    folder.mkdir(parents=True)
    run = load(["+experiment=quickstart", f"train.steps={STEPS}", "seed=7"])
    (folder / "config.yaml").write_text(as_yaml(run) + f"# {HOSTILE}\n", encoding="utf-8")
    for i, system in enumerate(SYSTEMS):
        _lines(folder / f"evaluation-{system}.jsonl", rows(i))
    _lines(folder / "metrics.jsonl", [_step(step, rng) for step in range(1, STEPS + 1)])
    _lines(folder / "episodes.jsonl", [{"step": step, **rows(1)[step % 6]} for step in range(1, STEPS + 1)])
    splits = {name: {"questions": n, "sha256": f"{n:064x}"} for name, n in (("ppo", 2849), ("test", 811))}
    (folder / "splits.json").write_text(json.dumps({"splits": splits, "overlaps": {"ppo/test": 3}}))
    summary: dict[str, Any] = {}
    for system in SYSTEMS:
        groups = {value: {"n": 3, **dict(zip(MEASURES, rng.uniform(0.01, 2, 7), strict=True))} for value in "12"}
        summary[system] = {
            "n": len(QUESTIONS),
            **{name: figures(rng) for name in MEASURES},
            "retrieval_rate_by_popularity_fifth": list(rng.uniform(0, 1, 5)),
            "by_hops": groups,
            "by_dataset": {HOSTILE: groups["1"], "popqa": groups["2"]},
        }
    summary["before"]["hit_rate"] = None
    summary["difference"] = {f"after_minus_{other}": figures(rng) for other in ("before", "never", "always")}
    summary["seconds"] = {"warmup": 100.5, "rollout": 1500.25, "update": 1999.25}  # an hour in all
    summary["versions"] = {"torch": "2.13.0+cpu", "vllm": HOSTILE}
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


def write_evaluation(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    """evaluations/test/evaluation.json, of random columns through the functions that make a real one."""
    systems = {name: _columns(rng, share) for name, share in ASKED.items()}
    policy, never, always = (systems[name] for name in ("policy", "never", "always"))
    scores = {gate: rng.uniform(size=len(never["em"])) for gate in ("entropy", "$x^", HOSTILE)}
    groups = [("1", HOSTILE)[i % 2] for i in range(len(never["em"]))]
    found = {
        "run": str(folder),
        "weights": "/somewhere/checkpoints/step_00000012/policy",
        "when": "2026-01-02 03:04:05",
        "changed": [f"data={HOSTILE}", "retriever.k=4"],
        "versions": {"torch": "2.13.0"},
        "questions": len(groups),
        "systems": {
            name: {**evaluate.summary(of, 0), "by": {"dataset": evaluate.by_group(of, groups)}}
            for name, of in systems.items()
        },
        "differences": {f"policy_minus_{x}": evaluate.differences(policy, systems[x], 0) for x in ("never", "oracle")},
        "decision": decision.report(systems, load([]).reward, seed=0),
        "gates": {
            gate: gates.judged(gate, score, score, systems, {"never": never, "always": always}, draws=2, seed=0)
            for gate, score in scores.items()
        },
        "seconds": {"test": 61.5},
    }
    found["decision"]["hit_and_right"][0]["row"] = HOSTILE
    path = folder / "evaluations" / "test" / "evaluation.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(found, default=float))
    return found


def write_sweep(path: Path, rng: np.random.Generator) -> dict[str, Any]:
    points = [
        {
            "value": value,
            "seed": seed,
            "run": f"/somewhere/runs/x/{value}-{seed}",
            **{m: figures(rng) for m in MEASURES},
        }
        for value in (-0.1, -0.4, HOSTILE)
        for seed in (0, 1)
    ]
    points[0] |= {"never": points[1], "always": points[2]}
    curve = [{"value": -0.1, "seeds": [0, 1], **{m: figures(rng) for m in MEASURES}}]
    found = {"setting": f"reward.retrieval {HOSTILE}", "warmup": {"0": "w"}, "points": points, "curve": curve}
    path.write_text(json.dumps(found))
    return found


def write_ablation(path: Path, rng: np.random.Generator) -> dict[str, Any]:
    told = (["decision"], ["decision", "answer"], "composed", HOSTILE, [])
    rows = [{"trained": t, "seed": 0, "run": "/runs/a/b", **{m: figures(rng) for m in MEASURES}} for t in told]
    gaps = [{"all_minus": HOSTILE, "seed": seed, **{m: figures(rng) for m in MEASURES}} for seed in (0, None)]
    found = {"episodes": 7680, "warmup": {"0": "w"}, "rows": rows, "differences": gaps}
    path.write_text(json.dumps(found))
    return found


def _columns(rng: np.random.Generator, share: float, n: int = 20) -> evaluate.Columns:
    searched = np.arange(n) < share * n
    found = {name: rng.uniform(0.01, 2, n) for name in (*MEASURES, *COSTS)}
    right = rng.uniform(size=n) < 0.4 + 0.4 * searched
    found |= {"em": right.astype(float), "retrievals_per_question": searched.astype(float)}
    return found | {"hit_rate": np.where(searched, rng.integers(0, 2, n), np.nan)}


def _episode(name: str, place: str, gold: str, query: str | None, answer: str) -> dict[str, Any]:
    turns: list[dict[str, Any]] = [{"action": "answer", "text": answer, "forced": False}]
    if query is not None:
        passages = [f"{query}\n{place} is a city in {gold}.", f"{HOSTILE}\n{HOSTILE}"]
        turns.insert(0, {"action": "search", "text": query, "forced": False, "passages": passages})
    right = float(answer == gold)
    return {
        **{"id": f"{name}-id", "question_id": name, "question": f"Which country is {place} in?", "gold": [gold]},
        **{
            "turns": turns,
            "end": "answered",
            "reward": 2 * right - 0.4 * (query is not None),
            "em": right,
            "f1": right,
        },
        **{"retrievals_per_question": float(query is not None), "format_error_rate": 0.0, "truncation_rate": 0.0},
        **({} if query is None else {"hit_rate": 1.0}),
    }


def _step(step: int, rng: np.random.Generator) -> dict[str, Any]:
    named = (*MEASURES, "entropy", "kl_ref", "grad_norm", "ess", "clip_fraction", "first_ratio_deviation")
    return {
        "step": step,
        **{name: rng.uniform(0.01, 2) for name in named},
        **{"push/canary_gap": step * 1e-6, "push/seconds": 0.5, "voided_episodes": 1, "skipped_steps": 0},
        **{"generated_tokens": 100 + step, "seconds_rollout": 2.0, "seconds_feedback": 0.25, "seconds_update": 3.0},
        **({"dev/reward": 1.0} if step % 4 == 0 else {}),
    }


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
