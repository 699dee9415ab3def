"""One vLLM engine: token ids in, token ids out, weights that can be replaced while it runs.

An engine hands out completions only while it is *serving*. A weight push stops it, replaces the weights and lets the
generations it had begun go on; they are handed out once the canary has proved the weights, or voided if it has not.
"""

import asyncio
import logging
import os
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from cluster import stacks
from smartrag.choices import WeightBackend
from smartrag.evaluation.uncertainty import entropy
from smartrag.types import Completion, EpisodeFailed, Stop

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

logger = logging.getLogger("smartrag")

_QUICK_S = 3.0  # an engine that is busy has scored a token by then
_TOP = 20  # best tokens that a greedy generation's uncertainty is told from: vLLM's default limit


class Engine:
    """Implements `Generate`. Build it in a process of its own: when vLLM's core dies, it exits that process.

    `end_id` ends a generation. `args` are those of `engine_args`. Raises RuntimeError when vLLM does not start.
    """

    def __init__(self, args: dict[str, Any], end_id: int, version: int = 0):
        check_plugin(args["weight_transfer_config"]["backend"])
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
        except Exception as error:
            traceback.print_exc()
            raise RuntimeError(
                f"vLLM did not start on {args['model']}: {error}"
            ) from None  # vLLM's errors do not pickle
        self._end_id = end_id
        self._first_version = self.version = version
        self._asleep = False
        self._serving, self._voids = True, 0
        self._changed = asyncio.Condition()

    # -- generation ---------------------------------------------------------------------------------------------------

    async def __call__(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, temperature: float, seed: int, request_id: str
    ) -> Completion:
        """Sample until the end token (kept) or `max_new_tokens`; greedy at temperature 0. Waits while a push goes on.

        Raises EpisodeFailed when a push that failed its canary, or vLLM, gave the generation up; ValueError when vLLM
        refuses the request.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=temperature,
            seed=seed,
            max_tokens=max_new_tokens,
            stop_token_ids=[self._end_id],
            ignore_eos=True,  # of the model's config; ours is in stop_token_ids
            logprobs=0 if temperature > 0 else _TOP,  # 0: of the sampled token alone
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        await self._wait(lambda: self._serving)
        voids = self._voids
        output = await self._generate(prompt_ids, params, request_id)
        await self._wait(lambda: self._serving or self._voids != voids)
        if self._voids != voids or output.outputs[0].finish_reason not in ("stop", "length"):
            raise EpisodeFailed(f"generation {request_id} was given up ({output.outputs[0].finish_reason})")
        return _completion(output, self._end_id, self._first_version)

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probs (nats, temperature 1) of tokens 1.. of a prompt given those before: len(token_ids) - 1 floats.

        Computed afresh, never from the prefix cache; works while the engine is not serving.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            detokenize=False,
            skip_reading_prefix_cache=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._generate(token_ids, params, f"canary-{uuid.uuid4().hex}")
        assert output.prompt_logprobs is not None
        found = zip(token_ids, output.prompt_logprobs, strict=True)
        return [entry[token].logprob for token, entry in found if entry is not None]

    async def _generate(self, prompt_ids: Sequence[int], params: "SamplingParams", request_id: str) -> "RequestOutput":
        from vllm.v1.engine.exceptions import EngineGenerateError

        last = None
        with _exit_if_dead():
            try:
                async for output in self._llm.generate({"prompt_token_ids": list(prompt_ids)}, params, request_id):
                    last = output
            except ValueError as error:
                raise ValueError(f"vLLM refused generation {request_id}: {error}") from None
            except EngineGenerateError as error:
                raise EpisodeFailed(f"generation {request_id} failed in vLLM: {error.__cause__ or error}") from None
        if last is None:
            raise EpisodeFailed(f"generation {request_id} came back empty")
        return last

    # -- weights: the verbs of a push, in their order (cluster/weights.py) --------------------------------------------

    async def connect(self, init_info: dict[str, Any]) -> None:
        """Join the learner's transfer group. Blocks until all of it have joined."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        with _exit_if_dead():
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info))

    async def pause(self) -> None:
        """Stop serving; generations that have begun are kept where they are."""
        self._serving = False
        with _exit_if_dead():
            if self._asleep:
                await self._llm.wake_up(["weights"])
            else:
                # pause_generation sleeps 20 ms more, for callers who hand on at once what was about to end
                await self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)

    async def start_update(self) -> None:
        with _exit_if_dead():
            await self._llm.start_weight_update()

    async def receive(self, messages: Sequence[dict[str, Any]]) -> None:
        """Take these messages from the learner, in order. Blocks until they have arrived and are loaded."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        with _exit_if_dead():
            for message in messages:
                await self._llm.update_weights(WeightTransferUpdateRequest(message))

    async def finish_update(self, version: int) -> None:
        """The weights are complete and are `version`: what was cached of older ones is forgotten, generations that had
        begun go on (and compute their prefix anew). Nothing is handed out before `resume`."""
        with _exit_if_dead():
            await self._llm.finish_weight_update(weight_version=str(version))
            self.version = version
            if self._asleep:
                await self._llm.wake_up(["kv_cache"])
                self._asleep = False
            if not await self._llm.reset_prefix_cache(reset_running_requests=True):
                raise RuntimeError("vLLM did not reset its prefix cache; it would mix old and new weights")
            await self._llm.resume_generation()

    async def resume(self) -> None:
        """The canary lives: serve."""
        async with self._changed:
            self._serving = True
            self._changed.notify_all()

    async def void(self) -> None:
        """The canary is dead: give up every generation that may have seen these weights; do not serve."""
        async with self._changed:
            self._serving = False
            self._voids += 1
            self._changed.notify_all()
        with _exit_if_dead():
            await self._llm.pause_generation(mode="abort")

    async def disconnect(self) -> None:
        """Leave the transfer group, also from the middle of a push. The engine serves again after the next push."""
        with _exit_if_dead():
            try:
                await self._llm.shutdown_weight_transfer_engine()
            except (
                Exception
            ):  # refused in the middle of an update: close that first, if it has not broken off by itself
                with suppress(Exception):
                    await self._llm.collective_rpc("finish_weight_update")
                await self._llm.shutdown_weight_transfer_engine()

    # -- sharing a GPU with the learner -------------------------------------------------------------------------------

    async def sleep(self) -> None:
        """Give the GPU's memory back (weights go to host memory); the next push wakes the engine."""
        self._serving, self._asleep = False, True
        with _exit_if_dead():
            await self._llm.sleep(level=1)

    async def wake_up(self) -> None:
        """Serve again with the weights it fell asleep with, if it sleeps."""
        if not self._asleep:
            return
        with _exit_if_dead():
            await self._llm.wake_up()
        self._asleep = False
        await self.resume()

    async def check(self) -> None:
        """Exits the process when vLLM's core is dead, and does not return while it hangs: vLLM calls that healthy, so a
        serving engine has to score a token. One that takes longer than `_QUICK_S` is asked where it stands."""
        with _exit_if_dead():
            await self._llm.check_health()
        if self._serving:
            scoring = asyncio.ensure_future(self.prompt_logprobs([self._end_id, self._end_id]))
            if not (await asyncio.wait([scoring], timeout=_QUICK_S))[0]:
                asked = stacks.ask_children("VLLM::")
                logger.warning("vLLM's %s did not score a token in %g s; its stacks are in this log", asked, _QUICK_S)
            await scoring

    def close(self) -> None:
        self._llm.shutdown()

    async def _wait(self, ready: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(ready)


def _completion(output: "RequestOutput", end_id: int, first_version: int) -> Completion:
    out = output.outputs[0]
    ids = tuple(out.token_ids)
    assert out.logprobs is not None
    entries: Sequence[Any] = out.logprobs
    logprobs = tuple(float(entry[token].logprob) for token, entry in zip(ids, entries, strict=True))
    spreads = [sorted((float(x.logprob) for x in entry.values()), reverse=True) for entry in entries]
    greedy = [best for best in spreads if len(best) > 1]
    stop = Stop.END if ids and ids[-1] == end_id else Stop.LENGTH
    versions = [first_version] * len(ids)
    for span in out.weight_versions or ():
        if span.version != "default":  # vLLM's name for the weights it was started with
            versions[span.start : span.end] = [int(span.version)] * (span.end - span.start)
    entropies, margins = tuple(map(entropy, greedy)), tuple(best[0] - best[1] for best in greedy)
    return Completion(ids, logprobs, stop, tuple(versions), entropies, margins)


@contextmanager
def _exit_if_dead() -> Iterator[None]:
    """Ends this process when vLLM's core has died: Ray then restarts the actor, and reaps what the core left behind."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError:
        traceback.print_exc()
        os._exit(1)


def check_plugin(backend: str) -> None:
    """Raises RuntimeError where vLLM would not find our back end: it looks among installed packages."""
    known = {entry.name for entry in entry_points(group="vllm.general_plugins")}
    if backend == WeightBackend.gloo and "smartrag" not in known:
        raise RuntimeError("vLLM cannot find this package's gloo back end; install the package here: pip install -e .")
