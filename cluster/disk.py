"""What a learner rank saves: taken into memory at once, and written while the rank goes on learning."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Disk:
    """Writes one after another, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk")
        self._under_way: list[Future[Any]] = []

    def put(self, write: Callable[[], Any]) -> None:
        """Calls `write` soon. What it writes must be its own: the learner does not wait."""
        self._under_way.append(self._thread.submit(write))

    def written(self, *, wait: bool) -> bool:
        """Whether all is written that was put. Raises what a write raised, once all of them have ended."""
        if not wait and not all(write.done() for write in self._under_way):
            return False
        ended, self._under_way = self._under_way, []
        failures = [failure for write in ended if (failure := write.exception()) is not None]
        if failures:
            raise failures[0]
        return True
