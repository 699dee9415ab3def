"""The run: warm-up, then roll out -> trajectories -> update -> publish, with an evaluation before and after.

`Training` knows its counterparts only through the Protocols of `types.py`; which machines stand behind them is
`cluster`'s affair. All that a step needs derives from (seed, step), so a resumed run goes on as if never stopped.
"""

import json
import logging
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
from smartrag.log import RunFolder
from smartrag.plan import pools, step_requests
from smartrag.price import first_price, ramp
from smartrag.rows import DataError
from smartrag.splits import ledger, share_out
from smartrag.types import Episode, EpisodeRequest, Gate, Learner, Publish, Question, Rollout, Store, Trajectory
from smartrag.warmup import batches, practice

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
        self.warmup_questions, self.ppo_questions = share_out(data.train, run.warmup.share)
        self.pools = pools(self.ppo_questions, run.data.mix)
        self.steps_done = 0
        self.price = first_price(run.reward)
        self.summary: dict[str, Any] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by phase, over all lives of the run

    @property
    def done(self) -> bool:
        return self.steps_done >= self.run.train.steps

    def closed_book(self) -> set[str]:
        """Ids of the warm-up questions that the policy as it is answers right without retrieving."""
        if self.run.warmup.steps == 0 or self.run.warmup.self_knowledge == 0:
            return set()
        with self._timed("warmup"):
            episodes = self._ask(self.warmup_questions, "closed-book", Gate.NEVER)
        right = {e.question.id for e in episodes if evaluate.measure(e, self.run.reward)["em"]}
        logger.info("closed-book, the policy answers %d of %d warm-up questions right", len(right), len(episodes))
        return right

    def practice(self) -> tuple[list[Episode], list[Episode]]:
        """(closed-book, searched): episodes of the policy as it is on warm-up questions, for `warmup.mined`."""
        run = self.run
        quotas = run.train.quotas or [run.algorithm.quota]
        requests = practice(self.warmup_questions, run.warmup, quotas=quotas, k=run.retriever.k, seed=run.seed)
        with self._timed("warmup"):
            episodes = evaluate.run_all(self.rollout, requests)
        pairs = list(zip(requests, episodes, strict=True))
        closed_book, searched = ([e for r, e in pairs if r.gate is gate] for gate in (Gate.NEVER, Gate.ALWAYS))
        return closed_book, searched

    def begin(self, warmup: Sequence[Trajectory]) -> None:
        """Warm-up on `warmup` (may be empty), first push, evaluation before PPO, checkpoint 0."""
        self.folder.write("splits.json", json.dumps(self._ledger(), indent=2) + "\n")
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
        """Goes on from a checkpoint, the newest when None. The first act is a push.

        Raises DataError when the questions are not those that the run began with.
        """
        if json.loads((self.folder.folder / "splits.json").read_text(encoding="utf-8")) != self._ledger():
            raise DataError(
                f"the questions are not those of {self.folder.folder / 'splits.json'}; resume with the data, limits "
                "and warmup.share that the run began with, or start a new one"
            )
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
            requests = self._plan(number)
            episodes = evaluate.run_all(self.rollout, requests)
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
            **self._by_dataset(episodes),
            **self._by_quota(episodes, requests),
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
        run = self.run
        return step_requests(
            run.seed,
            step,
            self.pools,
            run.data.mix,
            episodes=run.train.episodes,
            samples=run.algorithm.samples,
            quotas=run.train.quotas or [run.algorithm.quota],
            ks=run.train.ks or [run.retriever.k],
        )

    def _by_dataset(self, episodes: Sequence[Episode]) -> dict[str, float]:
        if len(self.pools) == 1:
            return {}
        return evaluate.by_group(episodes, [e.question.meta["dataset"] for e in episodes], self.run.reward)

    def _by_quota(self, episodes: Sequence[Episode], requests: Sequence[EpisodeRequest]) -> dict[str, float]:
        if len(set(self.run.train.quotas)) < 2:
            return {}
        return evaluate.by_group(episodes, [f"quota_{request.quota}" for request in requests], self.run.reward)

    def _ledger(self) -> dict[str, Any]:
        trained = {"warmup": self.warmup_questions, "ppo": self.ppo_questions}
        return ledger({**trained, "dev": self.data.dev, "test": self.data.test})

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
            "by_hops": evaluate.by_meta(episodes, self.run.reward, "hops"),
            "by_dataset": evaluate.by_meta(episodes, self.run.reward, "dataset"),
        }
        logger.info("%s: %s", name, evaluate.line(columns))

    def _dev_scores(self) -> dict[str, float]:
        with self._timed("evaluation"):
            episodes = self._ask(self.data.dev, "dev", Gate.POLICY)
        scores = evaluate.means(evaluate.table(episodes, self.run.reward)) | self._by_dataset(episodes)
        return {f"dev/{name}": x for name, x in scores.items()}

    def _ask(self, questions: Sequence[Question], phase: str, gate: Gate) -> list[Any]:
        wanted = evaluate.requests(
            questions,
            seed=self.run.seed,
            phase=f"{phase}/{self.steps_done}",
            quota=self.run.algorithm.quota,
            k=self.run.retriever.k,
            gate=gate,
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
