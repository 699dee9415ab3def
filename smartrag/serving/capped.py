"""A limit on what a policy writes for one question."""

from collections.abc import Sequence

from smartrag.types import Completion, Generate, Stop


class Capped:
    """Implements `Generate`: what `generate` writes, in all calls together at most `most` tokens.

    A call that finds nothing left writes nothing and stops for its length, so the episode ends as truncated.
    """

    def __init__(self, generate: Generate, most: int):
        self._generate, self._left = generate, most

    async def __call__(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, temperature: float, seed: int, request_id: str
    ) -> Completion:
        room = min(max_new_tokens, self._left)
        if room < 1:
            return Completion((), (), Stop.LENGTH, ())
        made = await self._generate(
            prompt_ids, max_new_tokens=room, temperature=temperature, seed=seed, request_id=request_id
        )
        self._left -= len(made.token_ids)
        return made
