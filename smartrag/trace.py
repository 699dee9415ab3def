"""When each phase, generation and retrieval of a run began and how long it took; and how long nobody was at work.

At work are engines, retrieval and learner. What is left of a step is orchestration: messages, records, and waiting.

The file, for ui.perfetto.dev, is the JSON array form of Chrome's Trace Event Format, whose closing bracket may be
absent: it can be looked at while the run goes on, and after it was killed.
"""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from smartrag.types import Episode

DRIVER, ROLLOUT = 1, 2  # what the viewer calls processes


class Trace:
    """Appends to `path`, so that a resumed run goes on with it; without one nothing is written."""

    def __init__(self, path: Path | None):
        self._since = time.time()
        self._work: list[tuple[float, float]] = []  # (begin, end) of what was done since
        self._file = path.open("a", encoding="utf-8") if path else None
        if self._file is not None and self._file.tell() == 0:
            self._file.write("[\n")
            self._write({"name": "process_name", "ph": "M", "pid": DRIVER, "args": {"name": "driver and learner"}})
            self._write({"name": "process_name", "ph": "M", "pid": ROLLOUT, "args": {"name": "episodes"}})

    def phase(self, name: str, seconds: float) -> None:
        """A phase of the run that has just ended."""
        told = self._worked if name == "evaluation" else self._slice  # of the others, work is told by those who do it
        told(DRIVER, 0, name, time.time() - seconds, seconds)
        self._flush()

    def learner(self, name: str, seconds: float) -> None:
        """What the learner has just done, while the driver may have done something else."""
        self._worked(DRIVER, 1, name, time.time() - seconds, seconds)

    def episodes(self, episodes: Sequence[Episode], step: int) -> None:
        """Generations and retrievals of a step, on as few lines as hold them side by side."""
        turns = (turn for episode in episodes for turn in episode.turns)
        self._work += [(turn.began, turn.began + turn.generation_s + turn.retrieval_s) for turn in turns]
        if self._file is None:
            return
        for line, episode in _lines(episodes):
            for number, turn in enumerate(episode.turns):
                told = {"step": step, "episode": episode.id, "turn": number}
                told |= {"prompt": len(turn.context_ids), "tokens": len(turn.completion.token_ids)}
                if turn.generation_s:
                    self._slice(ROLLOUT, line, "generate", turn.began, turn.generation_s, **told)
                if turn.retrieved is not None:
                    start = turn.began + turn.generation_s
                    self._slice(ROLLOUT, line, "retrieve", start, turn.retrieval_s, **told, query=turn.action.text)
        self._flush()

    def idle_s(self) -> float:
        """Seconds since this was last asked, or since the beginning, in which nobody was at work.

        Machines whose clocks differ make it wrong by as much.
        """
        now = time.time()
        idle, self._since, self._work = uncovered(self._work, self._since, now), now, []
        return idle

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def _worked(self, pid: int, tid: int, name: str, start: float, seconds: float) -> None:
        self._work.append((start, start + seconds))
        self._slice(pid, tid, name, start, seconds)

    def _slice(self, pid: int, tid: int, name: str, start: float, seconds: float, **told: Any) -> None:
        event = {"name": name, "ph": "X", "pid": pid, "tid": tid, "ts": start * 1e6, "dur": seconds * 1e6}
        self._write(event | ({"args": told} if told else {}))

    def _write(self, event: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(event, ensure_ascii=False) + ",\n")


def uncovered(spans: Iterable[tuple[float, float]], start: float, end: float) -> float:
    """How much of [start, end] none of the spans (begin, end) covers."""
    left, reached = 0.0, start
    for begin, until in sorted(spans):
        left += max(0.0, min(begin, end) - reached)
        reached = max(reached, min(until, end))
    return left + end - reached


def _lines(episodes: Iterable[Episode]) -> Iterable[tuple[int, Episode]]:
    """(line, episode): the first line that is free when it begins."""
    ends: list[float] = []
    for episode in sorted(episodes, key=lambda e: e.turns[0].began):
        last = episode.turns[-1]
        begin, end = episode.turns[0].began, last.began + last.generation_s + last.retrieval_s
        line = next((i for i, free in enumerate(ends) if free <= begin), len(ends))
        ends[line : line + 1] = [end]
        yield line, episode
