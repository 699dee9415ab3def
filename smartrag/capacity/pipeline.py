"""A run's pipeline as a discrete-event simulation (SimPy): questions sent, generations, searches, update, push.

    driver ─ question ─> engine ─ query ─> retrieval thread ─ passages ─> engine ─ ... ─> learner ─ push ─> engines

An engine is shared by all that it runs: an iteration gives each sequence one token, and lasts the longer the more
there are; a prompt that enters stops all others while it is read. Steps follow each other as `prefetch.Prefetch` has
it: those of step n are sent once step n-1's are all here and version n - `max_staleness` of the weights is out.
"""

import heapq
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice, pairwise
from operator import attrgetter
from statistics import median
from typing import Any

import simpy

_load = attrgetter("load")


@dataclass(frozen=True, slots=True)
class Services:
    """What each part takes, in seconds."""

    send_s: float  # the driver sends one question; one after another
    iteration_s: float  # an engine's iteration, whatever it runs
    sequence_s: float  # and for each sequence that it runs
    prompt_s: float  # a generation is taken up by an engine, which does nothing else meanwhile
    prompt_token_s: float  # and for each token of context that is new to it
    search_s: float  # a query has a retrieval thread to itself
    message_s: (
        float  # from a generation's end to the next of the episode, beside the search: nobody waits for it but this one
    )
    update_s: float  # an update, whatever its tokens
    token_s: float  # and for each token of its episodes, prompts and passages included
    push_s: float  # weights go to the engines, which pause
    step_s: float  # what else the driver does between two steps


@dataclass(frozen=True, slots=True)
class Layout:
    engines: int
    concurrency: int  # episodes in flight an engine
    threads: int  # of retrieval, all replicas together
    episodes: int  # of a step
    max_staleness: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One turn of an episode."""

    prompt: int  # tokens of context that are new: template, question, passages
    tokens: int  # generated
    searches: bool  # a search follows


@dataclass(frozen=True, slots=True)
class Outcome:
    """Medians, and shares of the time; without the first step, which finds idle machines, and the last ones."""

    step_s: float  # from one update's end to the next
    rollout_s: float  # from a step's first question to its last episode
    update_s: float
    engines_busy: float  # share of time in which an engine ran something, mean of all engines
    threads_busy: float  # of retrieval
    learner_busy: float
    episodes: int  # of a step

    @property
    def episodes_a_second(self) -> float:
        return self.episodes / self.step_s


def simulate(services: Services, layout: Layout, episodes: Sequence[Sequence[Generation]], *, steps: int) -> Outcome:
    """`steps` steps of `layout.episodes` each; `episodes` is gone through in order, and again from its start."""
    whole = steps + layout.max_staleness + 1
    return _Pipeline(services, layout, [*islice(cycle(episodes), layout.episodes * whole)], whole).run()


class _Pipeline:
    def __init__(self, services: Services, layout: Layout, episodes: Sequence[Sequence[Generation]], steps: int):
        self._services, self._layout, self._steps = services, layout, steps
        self._env = simpy.Environment()
        self._engines = [_Engine(self._env, services, layout.concurrency) for _ in range(layout.engines)]
        self._threads = simpy.Resource(self._env, layout.threads)
        self._searched_s = self._learned_s = 0.0
        self._work = [episodes[i * layout.episodes : (i + 1) * layout.episodes] for i in range(steps)]
        self._rolled = [self._env.event() for _ in range(steps)]  # all episodes of the step are here
        self._out = [self._env.event() for _ in range(steps + 1)]  # weights of the version are with the engines
        self._out[0].succeed()
        self._rollouts_s: list[float] = []
        self._updates_s: list[float] = []
        self._ends: list[float] = []
        self._busy_at_ends: list[tuple[float, float, float]] = []  # seconds of (engines, threads, learner)

    def run(self) -> Outcome:
        self._env.process(self._roll())
        self._env.run(self._env.process(self._learn()))
        last = self._steps - self._layout.max_staleness  # after it there is nothing left to roll out beside an update
        passed, busy = self._ends[last - 1] - self._ends[0], (self._busy_at_ends[0], self._busy_at_ends[last - 1])
        engines, threads, learner = ((after - before) / passed for before, after in zip(*busy, strict=True))
        return Outcome(
            step_s=median(b - a for a, b in pairwise(self._ends[:last])),
            rollout_s=median(self._rollouts_s[1:]),
            update_s=median(self._updates_s[1:]),
            engines_busy=engines / self._layout.engines,
            threads_busy=threads / self._layout.threads,
            learner_busy=learner,
            episodes=self._layout.episodes,
        )

    def _roll(self) -> Generator[Any, Any, None]:
        """Step by step, as Prefetch begins them."""
        for number, work in enumerate(self._work):
            yield self._out[max(0, number - self._layout.max_staleness)]
            began, under_way = self._env.now, []
            for turns in work:
                yield self._env.timeout(self._services.send_s)
                under_way.append(self._env.process(self._episode(turns)))
            yield self._env.all_of(under_way)
            self._rollouts_s.append(self._env.now - began)
            self._rolled[number].succeed()

    def _learn(self) -> Generator[Any, Any, None]:
        for number, work in enumerate(self._work):
            yield self._rolled[number]
            tokens = sum(turn.prompt + turn.tokens for turns in work for turn in turns)
            took = self._services.update_s + self._services.token_s * tokens
            yield self._env.timeout(took)
            self._updates_s.append(took)
            self._learned_s += took
            for engine in self._engines:
                engine.pause()
            yield self._env.timeout(self._services.push_s)
            for engine in self._engines:
                engine.go_on()
            yield self._env.timeout(self._services.step_s)
            self._ends.append(self._env.now)
            busy = sum(engine.busy_s for engine in self._engines)
            self._busy_at_ends.append((busy, self._searched_s, self._learned_s))
            self._out[number + 1].succeed()

    def _episode(self, turns: Sequence[Generation]) -> Generator[Any, Any, None]:
        """With the engine that has least to do, to its end."""
        engine = min(self._engines, key=_load)
        engine.load += 1
        with engine.slots.request() as slot:
            yield slot
            for turn in turns:
                yield engine.generate(turn)
                if turn.searches:
                    with self._threads.request() as thread:
                        yield thread
                        yield self._env.timeout(self._services.search_s)
                    self._searched_s += self._services.search_s
                yield self._env.timeout(self._services.message_s)
        engine.load -= 1


class _Engine:
    """Iterations over all sequences that run. Its clock counts iterations: a sequence of n tokens ends n after it
    entered, however long they last."""

    def __init__(self, env: simpy.Environment, services: Services, concurrency: int):
        self.load = 0  # episodes that run or wait here
        self.slots = simpy.Resource(env, concurrency)
        self.busy_s = 0.0
        self._env, self._services = env, services
        self._running: list[tuple[float, int, simpy.Event]] = []  # a heap of (iteration it ends at, number, its end)
        self._numbers = count()
        self._iterations, self._reading_s, self._since = 0.0, 0.0, 0.0  # done; of prompts to read; until when
        self._paused, self._alarms = False, 0

    def generate(self, turn: Generation) -> simpy.Event:
        """The end of it."""
        self._catch_up()
        self._reading_s += self._services.prompt_s + self._services.prompt_token_s * turn.prompt
        end = self._env.event()
        heapq.heappush(self._running, (self._iterations + turn.tokens, next(self._numbers), end))
        self._set_alarm()
        return end

    def pause(self) -> None:
        self._catch_up()
        self._paused = True
        self._set_alarm()

    def go_on(self) -> None:
        self._catch_up()
        self._paused = False
        self._set_alarm()

    def _iteration_s(self) -> float:
        return self._services.iteration_s + self._services.sequence_s * len(self._running)

    def _catch_up(self) -> None:
        """What has been done since it was last asked."""
        passed, self._since = self._env.now - self._since, self._env.now
        if self._paused or not self._running:
            return
        self.busy_s += passed
        read = min(passed, self._reading_s)
        self._reading_s -= read
        self._iterations += (passed - read) / self._iteration_s()

    def _set_alarm(self) -> None:
        """For the next sequence that ends; an alarm set before is void."""
        self._alarms += 1
        if self._paused or not self._running:
            return
        number, left = self._alarms, max(0.0, self._running[0][0] - self._iterations)
        alarm = self._env.timeout(self._reading_s + left * self._iteration_s())
        alarm.callbacks.append(lambda _: self._ring(number))

    def _ring(self, number: int) -> None:
        if number != self._alarms:
            return
        self._catch_up()
        self._iterations = max(self._iterations, self._running[0][0])  # rounding must not put it off for ever
        while self._running and self._running[0][0] <= self._iterations + 1e-9:
            heapq.heappop(self._running)[2].succeed()
        self._set_alarm()
