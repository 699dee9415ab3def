"""The run: warm-up, then roll out -> feedback -> update -> publish, with an evaluation before and after.

While the learner is at work the episodes of the steps to come may be under way (`train.max_staleness`, prefetch.py).

`Training` knows its counterparts only through the Protocols of `types.py`; which machines stand behind them is
`cluster`'s affair. All that a step needs derives from (seed, step), so a resumed run goes on as if never stopped.
"""

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from smartrag import ledger, teacher, warmup
from smartrag.choices import Teacher
from smartrag.config import Run
from smartrag.data.load import Dataset
from smartrag.data.rows import DataError
from smartrag.data.splits import census, share_out
from smartrag.evaluation import evaluate
from smartrag.exam import Exam
from smartrag.feedback import Feedback
from smartrag.log import RunFolder
from smartrag.plan import Plan
from smartrag.prefetch import Prefetch, staleness
from smartrag.prompt import Prompt
from smartrag.saving import Saving
from smartrag.trace import Trace
from smartrag.types import (
    Episode,
    Gate,
    Learner,
    Publish,
    Retrieve,
    Rollout,
    Store,
    Trajectory,
)

logger = logging.getLogger("smartrag")

SKIPPED = 3  # PPO steps in a row none of whose optimiser steps was finite


class Diverged(RuntimeError):
    """Gradients are no numbers any more. The parameters are those of the last finite step."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What the learner made of a step's episodes."""

    trajectories: list[Trajectory]
    told: dict[str, float]  # by the environment
    metrics: dict[str, float]  # of the update; none where frozen roles wrote all there is
    feedback_s: float
    update_s: float


class Training:
    """One run. Call `begin` or `resume`, then `step` until `done`, then `finish`."""

    def __init__(
        self,
        run: Run,
        data: Dataset,
        rollout: Rollout,
        learner: Learner,
        publish: Publish,
        store: Store,
        folder: RunFolder,
    ):
        self.run, self.folder = run, folder
        self.rollout, self.learner, self.publish, self.store = rollout, learner, publish, store
        self.saving = Saving(learner)
        self.exam, self.feedback = Exam(run, data, rollout, folder), Feedback(run)
        self.warmup_questions, self.ppo_questions = share_out(data.train, run.warmup.share)
        self.splits = census(
            {"warmup": self.warmup_questions, "ppo": self.ppo_questions, "dev": data.dev, "test": data.test}
        )
        self.plan = Plan(run, self.ppo_questions)
        self.prefetch = Prefetch(rollout, self.plan, steps=run.train.steps, max_staleness=run.train.max_staleness)
        self._at_work = ThreadPoolExecutor(1, thread_name_prefix="learner")  # the driver's own looks after the rollout
        self.steps_done = 0
        self._skipped = 0  # PPO steps in a row that taught nothing because gradients were not finite
        self._saved = -1  # steps done at the newest checkpoint
        self.trace = Trace(folder.folder / "trace.json" if run.log.trace else None)
        self.summary: dict[str, Any] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by phase, over all lives of the run

    @property
    def done(self) -> bool:
        return self.steps_done >= self.run.train.steps

    def closed_book(self) -> dict[str, str]:
        """What the policy as it is answers to the warm-up questions, by id; nobody is asked if nobody wants it."""
        if self.run.warmup.self_knowledge == 0:
            return {}
        with self._timed("warmup"):
            return self.exam.closed_book(self.warmup_questions)

    def practice(self) -> tuple[list[Episode], list[Episode]]:
        """(closed-book, searched): episodes of the policy as it is on the warm-up questions, for `warmup.mined`."""
        with self._timed("warmup"):
            return self.exam.practise(self.warmup_questions)

    def lessons(self, prompt: Prompt, retrieve: Retrieve) -> list[Trajectory]:
        """The trajectories to imitate in warm-up, as `warmup.teacher` shows them."""
        run, asked = self.run, self.warmup_questions
        if run.warmup.steps == 0:
            return []
        quotas, k, seed = run.training_quotas, run.retriever.k, run.seed
        if run.warmup.teacher is Teacher.policy:
            return warmup.mined(*self.practice(), run.warmup, prompt, seed=seed)
        if run.warmup.teacher is Teacher.endpoint:
            some = warmup.to_practise(asked, run.warmup, seed)
            chats = Path(run.cache).expanduser() / "chats"
            taught = teacher.lessons(some, prompt, retrieve, run.warmup.endpoint, chats, quotas=quotas, k=k, seed=seed)
            return warmup.mined(*taught, run.warmup, prompt, seed=seed)
        own = self.closed_book()
        return asyncio.run(warmup.samples(asked, run.warmup, prompt, retrieve, quotas=quotas, k=k, seed=seed, own=own))

    def begin(self, lessons: Sequence[Trajectory]) -> None:
        """Warm-up on `lessons` (may be empty), first push, evaluation before PPO, checkpoint 0."""
        self.folder.write("splits.json", json.dumps(self.splits, indent=2) + "\n")
        steps = list(warmup.batches(lessons, self.run.warmup.batch))
        self.rollout.rest()
        with self._timed("warmup"):
            for batch in (bar := tqdm(steps, desc="warm-up", unit="step", disable=not self.run.log.progress)):
                bar.set_postfix(loss=f"{self.learner.imitate(batch, self.run.warmup.learning_rate)['loss']:.3f}")
            self.learner.snapshot_reference()
        self._push()
        self._test("before", Gate.POLICY)
        self.save()
        self.trace.idle_s()  # steps count from here

    def resume(self, checkpoint: Path | None = None) -> None:
        """Goes on from a checkpoint, the newest when None. The first act is a push.

        Raises DataError when the questions are not those that the run began with.
        """
        if json.loads((self.folder.folder / "splits.json").read_text(encoding="utf-8")) != self.splits:
            raise DataError(
                f"the questions are not those of {self.folder.folder / 'splits.json'}; resume with the data, limits "
                "and warmup.share that the run began with, or start a new one"
            )
        self.saving.drop()  # it is of the life that ends here
        folder, state = self.store.load(checkpoint)
        self.prefetch.drop()
        self.rollout.rest()
        self.learner.load(str(folder / "learner"))
        self.steps_done, self.summary = state["steps_done"], state["summary"]
        self._saved = self.steps_done
        self.seconds |= state["seconds"]
        self.plan.leave_out(state["set_aside"])
        self.feedback.price = replace(self.feedback.price, **state["price"])
        self.folder.rewind(self.steps_done)
        self._push()
        self.trace.idle_s()
        logger.info("resumed from %s: %d of %d steps are done", folder, self.steps_done, self.run.train.steps)

    def step(self) -> dict[str, float]:
        """One PPO step; returns its row of metrics.jsonl. Raises Diverged, and what its counterparts raise."""
        number, began = self.steps_done, time.monotonic()
        with self._timed("rollout") as waited_s:
            rolled = self.prefetch.take(number)
        self.saving.look()
        with self._timed("update"):
            learned = self._learn(rolled.episodes, number)
        self.steps_done += 1
        self.trace.episodes(rolled.episodes, self.steps_done)
        row: dict[str, float] = {
            "step": self.steps_done,
            **self.exam.means(rolled.episodes, rolled.requests),
            **learned.told,
            **learned.metrics,
            **staleness(learned.trajectories, number),
            **self._push(),
            "generated_tokens": sum(len(turn.completion.token_ids) for e in rolled.episodes for turn in e.turns),
            "seconds_rollout": rolled.seconds,
            "seconds_waiting": waited_s(),
            "seconds_feedback": learned.feedback_s,
            "seconds_update": learned.update_s,
            "seconds_step": time.monotonic() - began,
            "seconds_idle": self.trace.idle_s(),
        }
        if self.run.train.evaluate_every and self.steps_done % self.run.train.evaluate_every == 0:
            with self._timed("evaluation"):
                row |= self.exam.dev(self.steps_done)
        self.folder.metrics(row)
        self.folder.learned_from(ledger.entry(self.steps_done, rolled.episodes))
        self._show(rolled.episodes, learned.trajectories)
        self._check_finite(learned.metrics)
        if self.steps_done % self.run.train.save_every == 0 or self.done:
            self.save()
        return row

    def finish(self) -> dict[str, Any]:
        """Evaluation after PPO and of the fixed gates, on the same test questions. Returns the summary."""
        self._test("after", Gate.POLICY)
        if self.run.train.gates:
            self._test("never", Gate.NEVER)
            self._test("always", Gate.ALWAYS)
        rewards = {name: self.folder.evaluation(name)["reward"] for name in self.summary}
        self.summary["difference"] = {
            f"after_minus_{other}": evaluate.interval(rewards["after"] - rewards[other], self.run.seed)
            for other in rewards
            if other != "after"
        }
        return self.summary

    def save(self, *, wait: bool = False) -> None:
        """Begins a checkpoint of the steps that are done, unless there is one; the one before is then out. With `wait`,
        and where nothing goes on beside it, before the first step and after the last, so is this one."""
        with self._timed("checkpoint"):
            if self._saved != self.steps_done:
                self.saving.begin(self.store.publish(self.steps_done, self._state()))
                self._saved = self.steps_done
            if wait or self.steps_done == 0 or self.done:
                self.saving.settle()

    def _state(self) -> dict[str, Any]:
        return {
            "steps_done": self.steps_done,
            "summary": self.summary,
            "seconds": dict(self.seconds),
            "set_aside": self.plan.set_aside,
            "price": {"multiplier": self.feedback.price.multiplier, "excess": self.feedback.price.excess},
        }

    def _learn(self, episodes: Sequence[Episode], step: int) -> Learned:
        """Feedback and update; meanwhile the episodes of later steps are collected, if they may be begun already."""
        self.rollout.rest()
        learning = self._at_work.submit(self._feedback_and_update, episodes, step)
        while not learning.done() and self.prefetch.ahead(step):
            pass
        return learning.result()

    def _feedback_and_update(self, episodes: Sequence[Episode], step: int) -> Learned:
        start = time.monotonic()
        trajectories, told = self.feedback(episodes, step)
        graded = time.monotonic()
        metrics = self.learner.update(trajectories, step) if trajectories else {}
        took_s = time.monotonic() - graded
        self.trace.learner("update", metrics.get("seconds_learner", took_s))
        return Learned(trajectories, told, metrics, graded - start, took_s)

    def _check_finite(self, learned: Mapping[str, float]) -> None:
        """Raises Diverged. A step that is not finite leaves all parameters as they were; one or two may happen."""
        nothing = "skipped_steps" in learned and learned["skipped_steps"] >= learned["optimiser_steps"]
        self._skipped = self._skipped + 1 if nothing else 0
        if self._skipped == SKIPPED:
            raise Diverged(
                f"no gradient was finite in {SKIPPED} PPO steps in a row, {self.steps_done - SKIPPED + 1} to "
                f"{self.steps_done}; lower learner.learning_rate or learner.critic_learning_rate, see policy_loss and "
                f"value_loss in {self.folder.folder / 'metrics.jsonl'} for which, and resume from a checkpoint before"
            )

    def _push(self) -> dict[str, float]:
        with self._timed("push"):
            told = self.publish(self.steps_done)
            self.trace.learner("weights", told["transfer_seconds"])
            return {f"push/{name}": value for name, value in told.items()}

    def _test(self, name: str, gate: Gate) -> None:
        with self._timed("evaluation"):
            self.summary[name] = self.exam.test(name, self.steps_done, gate)

    def _show(self, episodes: Sequence[Episode], trajectories: Sequence[Trajectory]) -> None:
        """The first episodes of the step for people to read; `training_reward` is null where nothing is learned."""
        earned = {t.id: sum(t.rewards) for t in trajectories}
        for episode in episodes[: self.run.log.episodes]:
            seen = evaluate.describe(episode, self.run.reward)
            self.folder.episode({"step": self.steps_done, **seen, "training_reward": earned.get(episode.id)})

    @contextmanager
    def _timed(self, phase: str) -> Iterator[Any]:
        """Adds the block's seconds to `phase`; yields a function that tells them afterwards."""
        start = time.monotonic()
        took = [0.0]
        yield lambda: took[0]
        took[0] = time.monotonic() - start
        self.seconds[phase] += took[0]
        self.trace.phase(phase, took[0])
