"""Service times out of a run that was traced (`log.trace=true`), by least squares with no coefficient below zero.

generation = iteration·tokens + sequence·Σ(running beside it) + prompt·entries + prompt_token·(their tokens)
search     = search·(queries there when it came, itself included) / threads + what a message takes
update     = update + token·(tokens of its episodes)                                              all in seconds
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean, median

import numpy as np
from scipy.optimize import nnls

from smartrag.capacity.pipeline import Generation, Layout, Services
from smartrag.compose import from_yaml
from smartrag.config import Run
from smartrag.files import whole_lines
from smartrag.trace import ROLLOUT

_LEAST_STEPS = 4  # the first is left out: engines, JIT compilers and caches are cold


class Unusable(ValueError):
    """A run that nothing can be fitted to."""


@dataclass(frozen=True, slots=True)
class Span:
    """A generation, and the search after it where there is one; seconds since the trace began."""

    episode: str
    began: float
    generation_s: float
    retrieval_s: float
    turn: Generation

    @property
    def ended(self) -> float:
        return self.began + self.generation_s


@dataclass(frozen=True, slots=True)
class Measured:
    """A traced run without its first step."""

    name: str
    layout: Layout
    steps: list[list[Span]]  # in time order
    rows: list[Mapping[str, float]]  # of metrics.jsonl

    @property
    def episodes(self) -> list[list[Generation]]:
        return [[span.turn for span in spans] for step in self.steps for spans in _by_episode(step).values()]

    @property
    def step_s(self) -> float:
        return median(row["seconds_step"] for row in self.rows)

    @property
    def rollout_s(self) -> float:
        return median(row["seconds_rollout"] for row in self.rows)


def read(folder: Path) -> Measured:
    """Raises Unusable."""
    if not (folder / "trace.json").exists():
        raise Unusable(f"{folder} has no trace.json; train with log.trace=true")
    run = from_yaml(folder / "config.yaml")
    rows = [json.loads(line) for line in whole_lines(folder / "metrics.jsonl")]
    steps = [list(some) for _, some in groupby(_spans(folder / "trace.json"), lambda pair: pair[0])]
    if len(steps) != len(rows) or len(rows) < _LEAST_STEPS:
        raise Unusable(
            f"{folder} has {len(rows)} steps in metrics.jsonl and {len(steps)} in trace.json; as many in both, and at "
            f"least {_LEAST_STEPS}, are due"
        )
    spans = [sorted((span for _, span in some), key=lambda span: span.began) for some in steps]
    return Measured(str(folder), _layout(run), spans[1:], rows[1:])


def _layout(run: Run) -> Layout:
    engine = run.cluster.engine
    return Layout(
        engines=engine.workers,
        concurrency=engine.concurrency,
        threads=run.retriever.replicas * run.retriever.threads,
        episodes=run.train.episodes,
        max_staleness=run.train.max_staleness,
    )


def _spans(trace: Path) -> list[tuple[int, Span]]:
    """(step, span) in the order of the steps. What a resumed run did again counts as it was the last time."""
    spans: dict[tuple[str, int], tuple[int, Span]] = {}
    for line in whole_lines(trace)[1:]:
        event = json.loads(line.removesuffix(",\n"))
        if event["pid"] != ROLLOUT or event["ph"] != "X":
            continue
        told, seconds = event["args"], event["dur"] / 1e6
        if "prompt" not in told:
            raise Unusable(f"{trace} does not say how long prompts were: an older version wrote it; train again")
        key = told["episode"], told["turn"]
        if event["name"] == "generate":
            turn = Generation(told["prompt"], told["tokens"], searches=False)
            spans[key] = told["step"], Span(told["episode"], event["ts"] / 1e6, seconds, 0.0, turn)
        elif key in spans:  # a search follows its generation; a forced query has none
            step, span = spans[key]
            spans[key] = step, replace(span, retrieval_s=seconds, turn=replace(span.turn, searches=True))
    return sorted(spans.values(), key=lambda pair: pair[0])


def _by_episode(spans: Sequence[Span]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(span.episode, []).append(span)
    return found


def fit(measured: Measured) -> Services:
    iteration_s, sequence_s, prompt_s, prompt_token_s = _engine(measured)
    search_s, message_s = _search(measured)
    tokens = [sum(span.turn.prompt + span.turn.tokens for span in step) for step in measured.steps]
    update_s, token_s = _nonnegative(
        [[1.0, n] for n in tokens], [row["seconds_update"] + row["seconds_feedback"] for row in measured.rows]
    )
    firsts = [[spans[0].began for spans in _by_episode(step).values()] for step in measured.steps]
    within = [max(s.ended + s.retrieval_s for s in step) - step[0].began for step in measured.steps]
    return Services(
        send_s=fmean((max(began) - min(began)) / max(1, len(began) - 1) for began in firsts),
        iteration_s=iteration_s,
        sequence_s=sequence_s,
        prompt_s=prompt_s,
        prompt_token_s=prompt_token_s,
        search_s=search_s,
        message_s=message_s,
        update_s=update_s,
        token_s=token_s,
        push_s=median(row["push/seconds"] for row in measured.rows),
        step_s=median(_else_s(row, inside) for row, inside in zip(measured.rows, within, strict=True)),
    )


def _else_s(row: Mapping[str, float], inside_s: float) -> float:
    """Of a step: neither between the first generation and the last, nor update nor push."""
    between = row["seconds_step"] - row["seconds_waiting"] - row["seconds_update"] - row["push/seconds"]
    return max(0.0, between) + max(0.0, row["seconds_rollout"] - inside_s)


def _engine(measured: Measured) -> tuple[float, ...]:
    """Engines share the episodes alike: an engine's load is its share of all."""
    rows, seconds = [], []
    share = 1 / measured.layout.engines
    for step in measured.steps:
        begins = [span.began for span in step]
        ends = sorted(span.ended for span in step)
        prompts = np.cumsum([0, *(span.turn.prompt for span in step)])
        for span in step:
            entered = slice(bisect_left(begins, span.began), bisect_right(begins, span.ended))
            entries = (entered.stop - entered.start) * share
            new = float(prompts[entered.stop] - prompts[entered.start]) * share
            beside = _running(begins, ends, span.began, span.ended) * share
            rows.append([span.turn.tokens, span.turn.tokens * max(1.0, beside), max(1.0, entries), new])
            seconds.append(span.generation_s)
    return _nonnegative(rows, seconds)


def _running(begins: Sequence[float], ends: Sequence[float], start: float, end: float) -> float:
    """Mean number of generations under way between two moments."""
    if end <= start:
        return 1.0
    changes = [t for times in (begins, ends) for t in times[bisect_left(times, start) : bisect_right(times, end)]]
    moments = sorted({start, end, *changes})
    area = sum((b - a) * (bisect_right(begins, a) - bisect_right(ends, a)) for a, b in pairwise(moments))
    return area / (end - start)


def _search(measured: Measured) -> tuple[float, float]:
    """(a query's seconds of a thread, what else passes between a generation and the next of its episode)."""
    rows, seconds, between = [], [], []
    for step in measured.steps:
        searching = [span for span in step if span.turn.searches]
        begins = sorted(span.ended for span in searching)
        ends = sorted(span.ended + span.retrieval_s for span in searching)
        for span in searching:
            there = bisect_right(begins, span.ended) - bisect_right(ends, span.ended)
            rows.append([max(1, there) / measured.layout.threads, 1.0])
            seconds.append(span.retrieval_s)
        for spans in _by_episode(step).values():
            between += [b.began - a.ended - a.retrieval_s for a, b in pairwise(spans)]
    if not rows:
        return 0.0, 0.0
    search_s, message_s = _nonnegative(rows, seconds)
    return search_s, message_s + max(0.0, fmean(between) if between else 0.0)


def _nonnegative(rows: Sequence[Sequence[float]], values: Sequence[float]) -> tuple[float, ...]:
    """Least squares; columns are brought to one size first, or the small ones count for nothing."""
    matrix = np.asarray(rows, dtype=float)
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-12)
    found, _ = nnls(matrix / scale, np.asarray(values, dtype=float))
    return tuple(float(x) for x in found / scale)
