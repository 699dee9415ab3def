"""A small run as training leaves it, with every text in it hostile, for tests of what reads a run's folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from smartrag.compose import as_yaml, load
from smartrag.evaluate import MEASURES

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
    """evaluations/test/evaluation.json with every part that the contract names."""
    measured = [*MEASURES, "accuracy", "model_calls", "prompt_tokens", "generated_tokens", "latency_s"]
    groups = {v: {"n": 40, **{name: rng.uniform(0.01, 2) for name in measured}} for v in ("1", HOSTILE)}
    names = ("policy", "never", "always", "question", "oracle")
    found = {
        "run": str(folder),
        "checkpoint": "checkpoints/step_00000012",
        "questions": 80,
        "settings": {"data": HOSTILE, "retriever.k": 4},
        "versions": {"torch": "2.13.0"},
        "seconds": {"answering": 61.5},
        "systems": {
            name: {"n": 80, **{m: figures(rng) for m in measured}, "by": {"dataset": groups, "popularity": groups}}
            for name in names
        },
        "differences": {f"policy_minus_{name}": {m: figures(rng) for m in MEASURES} for name in names[1:]},
        "gates": {
            gate: {
                "auc": {"em": rng.uniform(), "f1": rng.uniform(), "reward": rng.uniform()},
                "curve": [
                    {
                        "threshold": t / 4,
                        "retrievals_per_question": t / 4,
                        "em": 0.4 + t / 8,
                        "f1": 0.5,
                        "reward": t / 5,
                    }
                    for t in range(5)
                ],
                "tuned": {"threshold": 0.25, **{m: figures(rng) for m in measured}},
            }
            for gate in ("entropy", "popularity", "$x^", HOSTILE)
        },
        "decision": {
            "over_search_rate": rng.uniform(),
            "hit_by_right": [
                {"row": row, "column": column, "share": rng.uniform()}
                for row in ("hit", HOSTILE)
                for column in ("right", "wrong")
            ],
        },
    }
    found["systems"]["never"]["hit_rate"] = None
    path = folder / "evaluations" / "test" / "evaluation.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(found))
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
    found = {"setting": f"reward.retrieval {HOSTILE}", "warmup": "w", "points": points}
    path.write_text(json.dumps(found))
    return found


def write_ablation(path: Path, rng: np.random.Generator) -> dict[str, Any]:
    told = (["decision"], ["decision", "answer"], "composed", HOSTILE)
    rows = [{"trained": t, "seed": 0, "run": "/runs/a/b", **{m: figures(rng) for m in MEASURES}} for t in told]
    found = {"episodes": 7680, "warmup": "w", "rows": rows}
    path.write_text(json.dumps(found))
    return found


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
