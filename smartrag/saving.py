"""A checkpoint on its way to the disk while training goes on, one at a time.

begin    what the learner holds is taken; its ranks write it
look     when they have, a thread compares, seals and publishes it
settle   all of it waited for
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

from smartrag.types import Learner

logger = logging.getLogger("smartrag")


class _Dropped(Exception):
    """What was being written is not wanted any more."""


class Saving:
    """The checkpoint of `learner` that is under way, if there is one."""

    def __init__(self, learner: Learner):
        self._learner = learner
        self._draft: ExitStack | None = None  # the learner writes into it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._publishing: Future[None] | None = None

    def begin(self, publish: AbstractContextManager[Path]) -> None:
        """Takes what the learner holds now; `publish`, of a `Store`, is where it goes. Waits for the one before.

        Raises what this one's taking, or the one before, raised; nothing is then published of it.
        """
        self.settle()
        with ExitStack() as draft:
            folder = draft.enter_context(publish)
            self._learner.save(str(folder / "learner"))
            self._learner.export(str(folder / "policy"))
            self._draft = draft.pop_all()

    def look(self, *, wait: bool = False) -> None:
        """Lets it be published if the learner has written it. Raises what kept the learner from that."""
        draft, self._draft = self._draft, None
        if draft is None:
            return
        with draft:  # discarded when the learner fails
            written = self._learner.written(wait=wait)
            kept = draft.pop_all()
        if written:
            self._publishing = self._thread.submit(kept.close)
        else:
            self._draft = kept

    def settle(self) -> None:
        """Waits until it is published. Raises what went wrong with it."""
        self.look(wait=True)
        publishing, self._publishing = self._publishing, None
        if publishing is not None:
            publishing.result()

    def drop(self) -> None:
        """The learner is lost: what it had not written is discarded, what it had is published. Raises as `settle`."""
        draft, self._draft = self._draft, None
        if draft is not None:
            with suppress(_Dropped), draft:
                raise _Dropped
        self.settle()

    def close(self) -> None:
        """Settles at the end of a run that may have failed already, and only tells what goes wrong with that."""
        try:
            self.settle()
        except Exception as error:
            logger.warning("the checkpoint under way was not published: %s", error)
        self._thread.shutdown()
