"""Episodes through the rollout workers against vLLM's own offline `generate` on the very same prompts and lengths.

The offline engine is told all turns of all episodes at once, so it never waits for a retrieval, a tokenizer or a
message. It knows the second turn's prompt before the first is written: the limit, and no way to do it.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from cluster.engine_args import engine_args, engine_env
from cluster.system import System, inputs
from smartrag.config import Run
from smartrag.evaluation.evaluate import run_all
from smartrag.experiments.bench import Figure, against, in_turns, rate
from smartrag.plan import Plan
from smartrag.types import Episode

_STEPS = 4  # of episodes at a time: one step's alone would be half over before the engine is full


def bench(run: Run, path: Path, repeats: int) -> dict[str, Figure]:
    """Generated tokens a second, on questions that no engine has met before; with what the prefix cache brings."""
    found = inputs(run)
    plan, path = Plan(run, found.data.train), found.model
    system = System(run, found, learn=False).start()
    try:
        cached, uncached = (_Offline(run, path, prefix_caching=on) for on in (True, False))
        episodes: list[list[Episode]] = [_played(system, plan, repeats)]  # warm
        for engine in (cached, uncached):
            engine.replay(episodes[0])
        steps = iter(range(repeats))

        def ours() -> float:
            start = time.perf_counter()
            episodes.append(_played(system, plan, next(steps)))
            return time.perf_counter() - start

        measured = in_turns([ours, lambda: cached.replay(episodes[-1]), lambda: uncached.replay(episodes[-1])], repeats)
        for engine in (cached, uncached):
            engine.close()
    finally:
        system.close()
    tokens = sum(_generated(some) for some in episodes[1:]) / repeats
    workers, offline, without = (rate(tokens, "tokens/s", seconds) for seconds in measured)
    return {
        "rollout_tokens": workers,
        "engine_tokens": offline,
        "engine_tokens_without_prefix_cache": without,
        "rollout_vs_engine": against(workers, "engine_tokens", offline),
        "prefix_cache": against(offline, "engine_tokens_without_prefix_cache", without),
        "rollout_episodes": rate(_STEPS * run.train.episodes, "episodes/s", measured[0]),
    }


def _played(system: System, plan: Plan, turn: int) -> list[Episode]:
    steps = range(turn * _STEPS, (turn + 1) * _STEPS)
    return run_all(system.rollout, [request for step in steps for request in plan(step)])


def _generated(episodes: Sequence[Episode]) -> int:
    return sum(len(turn.completion.token_ids) for episode in episodes for turn in episode.turns)


class _Offline:
    """vLLM's `LLM` with a rollout worker's own arguments, in a process of its own."""

    def __init__(self, run: Run, path: Path, *, prefix_caching: bool):
        engine = run.cluster.engine
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": engine.gpus}
        options["runtime_env"] = {"env_vars": engine_env(run.cluster)}
        args = engine_args(run.model, run.cluster, str(path)) | {"enable_prefix_caching": prefix_caching}
        engine_class: Any = ray.remote(_Engine)
        self._actor: Any = engine_class.options(**options).remote(args)

    def replay(self, episodes: Sequence[Episode]) -> float:
        """Seconds that the generations of these episodes take, all known beforehand."""
        wanted = []
        for episode in episodes:
            context: list[int] = []
            for turn in episode.turns:
                context += turn.context_ids
                if turn.completion.token_ids:
                    wanted.append((list(context), len(turn.completion.token_ids)))
                context += turn.completion.token_ids
        return ray.get(self._actor.generate.remote(wanted))

    def close(self) -> None:
        ray.kill(self._actor)


class _Engine:
    def __init__(self, args: dict[str, Any]):
        from vllm import LLM

        self._llm = LLM(**args)

    def generate(self, wanted: Sequence[tuple[list[int], int]]) -> float:
        from vllm import SamplingParams

        prompts: list[Any] = [{"prompt_token_ids": ids} for ids, _ in wanted]
        params = [
            SamplingParams(temperature=1.0, max_tokens=n, min_tokens=n, ignore_eos=True, detokenize=False, logprobs=0)
            for _, n in wanted
        ]
        start = time.perf_counter()
        self._llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start
