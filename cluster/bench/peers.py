"""What people would use instead, on the same questions with the same model, retriever and cores.

authors   the control flow of SmartRAG's released code (alg_wrappers.generate_batch), ported: ten environments write
          their first move together; then one environment after the other goes on alone, a token at a time. Episodes a
          second; the passes of value function and reference that it makes beside are left out.
trl       TRL's GRPOTrainer, its rollouts by transformers in batches of all episodes, a turn at a time. Optimiser steps
          a second, from questions to new weights.

Both have every core to themselves; ours share them between engine, replica and learner ranks. On CPUs alone.
"""

import asyncio
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import ray

from cluster.bench.step import begun
from cluster.system import BadInput, Inputs, System, inputs
from smartrag.choices import KL, Advantage, Critic, KLIn
from smartrag.config import Run
from smartrag.episode import run_episode
from smartrag.evaluation.evaluate import run_all
from smartrag.experiments.bench import Figure, against, in_turns, rate, seconds
from smartrag.plan import Plan
from smartrag.prompt import Prompt
from smartrag.reward import gold_score
from smartrag.types import Completion, Episode, EpisodeRequest, Gate, Retrieve, Stop

ENVIRONMENTS = 10  # of the authors'


def authors(run: Run, path: Path, repeats: int) -> dict[str, Figure]:
    """`run`'s episodes with one search at least against the authors' way."""
    found = inputs(run)
    plan, steps = Plan(run, found.data.train), count()
    system = System(run, found, learn=False).start()

    def episodes() -> list[EpisodeRequest]:
        return [replace(request, gate=Gate.ALWAYS) for request in plan(next(steps))]

    try:
        peer = _peer(run, found, system)
        ours, theirs = in_turns(
            [
                lambda: seconds(lambda: run_all(system.rollout, episodes())),
                lambda: ray.get(peer.authors.remote(episodes())),
            ],
            repeats + 1,  # the first is to warm up
        )
    finally:
        system.close()
    rolled, one_by_one = (rate(run.train.episodes, "episodes/s", taken[1:]) for taken in (ours, theirs))
    return {
        "authors_episodes": one_by_one,
        "episodes_vs_authors": against(rolled, "authors_episodes", one_by_one),
    }


def trl(run: Run, path: Path, repeats: int) -> dict[str, Figure]:
    """A step of GRPO with one optimiser step against TRL's."""
    if importlib.util.find_spec("trl") is None:
        raise BadInput("a step is compared with TRL's: pip install trl==1.16.0, or leave trl out of `only`")
    algorithm = replace(
        run.algorithm,
        advantage=Advantage.grpo,
        critic=Critic.separate,
        samples=8,
        epochs=1,
        minibatches=1,
        kl=KL.k3,
        kl_in=KLIn.loss,
        critic_warmup_steps=0,
        whiten_advantages=False,
    )
    with begun(replace(run, algorithm=algorithm)) as (found, system, training):
        peer = _peer(training.run, found, system)
        plan, steps = training.plan, count()
        step, theirs = in_turns(
            [lambda: seconds(training.step), lambda: ray.get(peer.trl.remote([plan(next(steps)), plan(next(steps))]))],
            repeats + 1,  # the first is to warm up
        )
    stepped, trained = (rate(1, "steps/s", taken[1:]) for taken in (step, theirs))
    return {"trl_steps": trained, "steps_vs_trl": against(stepped, "trl_steps", trained)}


def _peer(run: Run, found: Inputs, system: System) -> Any:
    return ray.remote(Peer).options(num_cpus=0).remote(run, found, system.retrieval.client())  # type: ignore[attr-defined]


class Peer:
    """The policy under transformers, in a process of its own."""

    def __init__(self, run: Run, found: Inputs, retrieve: Retrieve):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(os.cpu_count() or 1)
        self.run, self.prompt, self.retrieve, self.path = run, found.prompt, retrieve, found.model
        self.model = AutoModelForCausalLM.from_pretrained(found.model, dtype=torch.float32)

    def authors(self, requests: Sequence[EpisodeRequest]) -> float:
        """Seconds that the episodes take."""
        start = time.perf_counter()
        for first in range(0, len(requests), ENVIRONMENTS):
            some = requests[first : first + ENVIRONMENTS]
            play(some, self.model, self.prompt, self.retrieve, lambda turn: 1 if turn else ENVIRONMENTS)
        return time.perf_counter() - start

    def trl(self, steps: Sequence[Sequence[EpisodeRequest]]) -> float:
        """Seconds of the last of the steps, each of which learns from its episodes."""
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        run, samples = self.run, self.run.algorithm.samples
        asked = {request.question.text: request for step in steps for request in step}
        times: list[float] = []

        class Clock(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                times.append(-time.perf_counter())

            def on_step_end(self, *_: Any, **__: Any) -> None:
                times[-1] += time.perf_counter()

        def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
            each = [asked[text] for text in prompts]
            return told(play(each, trainer.model, self.prompt, self.retrieve, lambda _: len(each)), run)

        with tempfile.TemporaryDirectory() as out:
            settings: dict[str, Any] = {
                **{"output_dir": out, "use_cpu": True, "report_to": "none", "save_strategy": "no"},
                **{"max_steps": len(steps), "num_generations": samples, "shuffle_dataset": False, "seed": run.seed},
                **{"per_device_train_batch_size": run.train.episodes // 4, "gradient_accumulation_steps": 4},
                **{"learning_rate": run.learner.learning_rate, "max_grad_norm": run.learner.max_grad_norm},
                **{"beta": run.algorithm.kl_coef, "epsilon": run.algorithm.clip, "temperature": 1.0, "bf16": False},
                **{"gradient_checkpointing": False, "disable_tqdm": True, "logging_strategy": "no"},
            }
            trainer = GRPOTrainer(
                model=str(self.path),
                reward_funcs=lambda score, **_: score,
                args=GRPOConfig(**settings),
                train_dataset=Dataset.from_dict({"prompt": list(asked)}),
                processing_class=self.prompt.tokenizer,
                rollout_func=rollout,
                callbacks=[Clock()],
            )
            trainer.train()
        assert len(times) == len(steps)
        return times[-1]


def play(
    requests: Sequence[EpisodeRequest], model: Any, prompt: Prompt, retrieve: Retrieve, at_once: Callable[[int], int]
) -> list[Episode]:
    """The episodes, all at their first turn, then all that go on at their second, ...; `at_once(turn)` of them are
    written together."""

    async def all_of_them() -> list[Episode]:
        waiting: list[tuple[list[int], asyncio.Future[Completion]]] = []

        async def generate(prompt_ids: Sequence[int], **_: Any) -> Completion:
            waiting.append((list(prompt_ids), asyncio.get_running_loop().create_future()))
            return await waiting[-1][1]

        tasks = [
            asyncio.create_task(run_episode(request, generate, retrieve, prompt, temperature=1.0))
            for request in requests
        ]
        turn = 0
        while unfinished := [task for task in tasks if not task.done()]:
            if len(waiting) < len(unfinished):
                await asyncio.sleep(0.0005)  # passages are on their way
                continue
            due, waiting[:] = list(waiting), []
            for first in range(0, len(due), at_once(turn)):
                some = due[first : first + at_once(turn)]
                written = write(model, [context for context, _ in some], prompt)
                for (_, future), completion in zip(some, written, strict=True):
                    future.set_result(completion)
            turn += 1
            await asyncio.sleep(0)
        return [task.result() for task in tasks]

    return asyncio.run(all_of_them())


def write(model: Any, contexts: Sequence[list[int]], prompt: Prompt) -> list[Completion]:
    """What transformers sample after each of the contexts, in one batch."""
    import torch

    widest = max(map(len, contexts))
    ids = torch.tensor([[prompt.end_id] * (widest - len(c)) + c for c in contexts])
    mask = torch.tensor([[0] * (widest - len(c)) + [1] * len(c) for c in contexts])
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=mask,
            **{"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
            **{
                "max_new_tokens": prompt.budget.new_tokens,
                "eos_token_id": prompt.end_id,
                "pad_token_id": prompt.end_id,
            },
        )
    return [_completion(row, prompt.end_id) for row in out[:, widest:].tolist()]


def _completion(ids: list[int], end_id: int) -> Completion:
    ended = end_id in ids
    ids = ids[: ids.index(end_id) + 1] if ended else ids
    return Completion(tuple(ids), (0.0,) * len(ids), Stop.END if ended else Stop.LENGTH, (0,) * len(ids))


def told(episodes: Sequence[Episode], run: Run) -> dict[str, Any]:
    """Episodes as TRL wants them: what was asked, what came after, which tokens of that the policy wrote, the score."""
    asked, came, mask = [], [], []
    for episode in episodes:
        tokens: list[int] = []
        own: list[int] = []
        for turn in episode.turns[1:]:
            tokens += [*turn.context_ids, *turn.completion.token_ids]
            own += [0] * len(turn.context_ids) + [1] * len(turn.completion.token_ids)
        first = episode.turns[0]
        asked.append(list(first.context_ids))
        came.append([*first.completion.token_ids, *tokens])
        mask.append([1] * len(first.completion.token_ids) + own)
    scores = [gold_score(e, run.reward) + run.reward.retrieval * e.retrievals for e in episodes]
    return {"prompt_ids": asked, "completion_ids": came, "logprobs": None, "env_mask": mask, "score": scores}
