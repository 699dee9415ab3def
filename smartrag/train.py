"""The run: warm-up, then roll out -> trajectories -> update -> publish, with an evaluation before and after.

`Training` knows its counterparts only through the Protocols of `types.py`; which machines stand behind them is
`cluster`'s affair. All that a step needs derives from (seed, step), so a resumed run goes on as if never stopped.
"""

import functools
import logging
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from smartrag import evaluate, feedback
from smartrag.config import Run
from smartrag.data import Dataset
from smartrag.episode import episode_id
from smartrag.log import RunFolder
from smartrag.price import first_price, ramp
from smartrag.types import Episode, EpisodeRequest, Gate, Learner, Publish, Question, Rollout, Store, Trajectory
from smartrag.warmup import batches

logger = logging.getLogger("smartrag")


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
        self.run, self.data, self.folder = run, data, folder
        self.rollout, self.learner, self.publish, self.store = rollout, learner, publish, store
        self.steps_done = 0
        self.price = first_price(run.reward)
        self.summary: dict[str, Any] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by phase, over all lives of the run

    @property
    def done(self) -> bool:
        return self.steps_done >= self.run.train.steps

    def closed_book(self) -> set[str]:
        """Ids of the train questions that the policy as it is answers right without retrieving."""
        if self.run.warmup.steps == 0 or self.run.warmup.self_knowledge == 0:
            return set()
        with self._timed("warmup"):
            episodes = self._ask(self.data.train, "closed-book", Gate.NEVER)
        right = {e.question.id for e in episodes if evaluate.measure(e, self.run.reward)["em"]}
        logger.info("closed-book, the policy answers %d of %d train questions right", len(right), len(episodes))
        return right

    def begin(self, warmup: Sequence[Trajectory]) -> None:
        """Warm-up on `warmup` (may be empty), first push, evaluation before PPO, checkpoint 0."""
        steps = list(batches(warmup, self.run.warmup.batch))
        self.rollout.rest()
        with self._timed("warmup"):
            for batch in (bar := tqdm(steps, desc="warm-up", unit="step", disable=not self.run.log.progress)):
                bar.set_postfix(loss=f"{self.learner.imitate(batch, self.run.warmup.learning_rate)['loss']:.3f}")
            self.learner.snapshot_reference()
        self._push()
        self._evaluate("before", Gate.POLICY)
        self._save()

    def resume(self, checkpoint: Path | None = None) -> None:
        """Goes on from a checkpoint, the newest when None. The first act is a push."""
        folder, state = self.store.load(checkpoint)
        self.rollout.rest()
        self.learner.load(str(folder / "learner"))
        self.steps_done, self.summary = state["steps_done"], state["summary"]
        self.seconds |= state["seconds"]
        self.price = replace(self.price, value=state["retrieval_price"])
        self.folder.rewind(self.steps_done)
        self._push()
        logger.info("resumed from %s: %d of %d steps are done", folder, self.steps_done, self.run.train.steps)

    def step(self) -> dict[str, float]:
        """One PPO step; returns its row of metrics.jsonl."""
        number = self.steps_done
        with self._timed("rollout") as rollout_s:
            episodes = evaluate.run_all(self.rollout, self._plan(number))
        with self._timed("feedback") as feedback_s:
            trajectories, told = self._feedback(episodes, number)
        self.rollout.rest()
        with self._timed("update") as update_s:
            learned = self.learner.update(trajectories, number)
        self.steps_done += 1
        row: dict[str, float] = {
            "step": self.steps_done,
            **evaluate.means(evaluate.table(episodes, self.run.reward)),
            **told,
            **learned,
            **self._push(),
            "generated_tokens": sum(sum(t.mask) for t in trajectories),
            "seconds_rollout": rollout_s(),
            "seconds_feedback": feedback_s(),
            "seconds_update": update_s(),
        }
        if self.run.train.evaluate_every and self.steps_done % self.run.train.evaluate_every == 0:
            row |= self._dev_scores()
        self.folder.metrics(row)
        earned = {t.id: sum(t.rewards) for t in trajectories}  # nothing for a voided episode
        for episode in episodes[: self.run.log.episodes]:
            seen = evaluate.describe(episode, self.run.reward)
            self.folder.episode({"step": self.steps_done, **seen, "training_reward": earned.get(episode.id)})
        if self.steps_done % self.run.train.save_every == 0 or self.done:
            self._save()
        return row

    def finish(self) -> dict[str, Any]:
        """Evaluation after PPO and of the fixed gates, on the same test questions. Returns the summary."""
        self._evaluate("after", Gate.POLICY)
        if self.run.train.gates:
            self._evaluate("never", Gate.NEVER)
            self._evaluate("always", Gate.ALWAYS)
        rewards = {name: self.folder.evaluation(name)["reward"] for name in self.summary}
        self.summary["difference"] = {
            f"after_minus_{other}": evaluate.interval(rewards["after"] - rewards[other], self.run.seed)
            for other in rewards
            if other != "after"
        }
        return self.summary

    def _plan(self, step: int) -> list[EpisodeRequest]:
        """The train questions in a new order each epoch, each once an epoch, wherever a run resumes.

        Slots i x samples ... (i + 1) x samples - 1 ask the i-th question of the step.
        """
        pool, samples = self.data.train, self.run.algorithm.samples
        questions = self.run.train.episodes // samples
        requests = []
        for slot in range(self.run.train.episodes):
            epoch, place = divmod(step * questions + slot // samples, len(pool))
            question = pool[_order(self.run.seed, epoch, len(pool))[place]]
            requests.append(
                EpisodeRequest(episode_id(self.run.seed, "train", step, slot), question, self.run.algorithm.quota)
            )
        return requests

    def _feedback(self, episodes: Sequence[Episode], step: int) -> tuple[list[Trajectory], dict[str, float]]:
        """What the learner gets, and its part of the row. Moves the price for the next step."""
        reward, samples = self.run.reward, self.run.algorithm.samples
        scores = feedback.scores(episodes, reward, samples, Path(self.run.cache).expanduser() / "chats")
        share = ramp(step, reward.free_steps, reward.ramp_steps)
        charged = share * self.price.value
        trajectories = feedback.learnable(episodes, scores, reward, samples, charged)
        if share > 0:  # held while nothing is charged: it would only wind up
            self.price = self.price.after(sum(e.retrievals for e in episodes) / len(episodes))
        return trajectories, {
            "training_reward": sum(sum(t.rewards) for t in trajectories) / len(trajectories),
            "retrieval_price": charged,
            "voided_episodes": len(episodes) - len(trajectories),
        }

    def _push(self) -> dict[str, float]:
        with self._timed("push"):
            return {f"push/{name}": value for name, value in self.publish(self.steps_done).items()}

    def _evaluate(self, name: str, gate: Gate) -> None:
        """Asks every test question once and files the result as `summary[name]` and evaluation-<name>.jsonl."""
        with self._timed("evaluation"):
            episodes = self._ask(self.data.test, name, gate)
        columns = evaluate.table(episodes, self.run.reward)
        self.folder.write_evaluation(name, [evaluate.describe(e, self.run.reward) for e in episodes])
        self.summary[name] = {
            **evaluate.summary(columns, self.run.seed),
            "retrieval_rate_by_popularity_fifth": evaluate.retrieval_by_popularity(episodes),
            "by_hops": evaluate.by_hops(episodes, self.run.reward),
        }
        logger.info("%s: %s", name, evaluate.line(columns))

    def _dev_scores(self) -> dict[str, float]:
        with self._timed("evaluation"):
            episodes = self._ask(self.data.dev, "dev", Gate.POLICY)
        return {f"dev/{name}": x for name, x in evaluate.means(evaluate.table(episodes, self.run.reward)).items()}

    def _ask(self, questions: Sequence[Question], phase: str, gate: Gate) -> list[Any]:
        wanted = evaluate.requests(
            questions, seed=self.run.seed, phase=f"{phase}/{self.steps_done}", quota=self.run.algorithm.quota, gate=gate
        )
        return evaluate.run_all(self.rollout, wanted)

    def _save(self) -> None:
        state = {
            "steps_done": self.steps_done,
            "summary": self.summary,
            "seconds": dict(self.seconds),
            "retrieval_price": self.price.value,
        }
        with self._timed("checkpoint"), self.store.publish(self.steps_done, state) as folder:
            self.learner.save(str(folder / "learner"))
            self.learner.export(str(folder / "policy"))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[Any]:
        """Adds the block's seconds to `phase`; yields a function that tells them afterwards."""
        start = time.monotonic()
        took = [0.0]
        yield lambda: took[0]
        took[0] = time.monotonic() - start
        self.seconds[phase] += took[0]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> list[int]:
    order = list(range(count))
    random.Random(f"order/{seed}/{epoch}").shuffle(order)
    return order
