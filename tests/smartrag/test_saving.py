"""Checkpoints under way beside training: one at a time, published when the learner has written, never half."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.checkpoint import Checkpoints
from smartrag.saving import Saving


class Slow:
    """A learner whose disk is as slow as a test wants. `holds` is what training changes."""

    def __init__(self) -> None:
        self.holds, self.finishes, self.fails = "weights 0", True, False
        self._taken: list[tuple[Path, str]] = []

    def save(self, folder: str) -> None:
        self._taken.append((Path(folder), self.holds))

    export = save

    def written(self, *, wait: bool) -> bool:
        if self.fails:
            raise OSError(28, "No space left on device")
        if not (wait or self.finishes):
            return False
        for folder, held in self._taken:
            folder.mkdir()
            (folder / "held").write_text(held)
        self._taken = []
        return True


@pytest.fixture
def learner() -> Slow:
    return Slow()


@pytest.fixture
def saving(learner: Slow) -> Iterator[Saving]:
    made = Saving(learner)  # type: ignore[arg-type]
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, keep=9)


def published(store: Checkpoints) -> dict[str, str]:
    """Step -> what is held in it."""
    whole = {store.load(path)[0] for path in store.folder.glob("step_*")}  # verified
    return {path.name[-1]: (path / "policy" / "held").read_text() for path in whole}


def test_a_checkpoint_holds_what_the_learner_held_when_it_was_begun(saving, learner, store) -> None:
    learner.finishes = False
    saving.begin(store.publish(1, {}))
    learner.holds = "weights 1"
    saving.look()
    assert published(store) == {}
    learner.finishes = True
    saving.look()
    saving.settle()
    assert published(store) == {"1": "weights 0"}


def test_one_is_under_way_at_a_time(saving, learner, store) -> None:
    learner.finishes = False
    for step in (1, 2, 3):
        learner.holds = f"weights {step}"
        saving.begin(store.publish(step, {}))
        assert published(store) == {str(s): f"weights {s}" for s in range(1, step)}
        assert len(list(store.folder.glob(".tmp-*"))) == 1
    saving.settle()
    assert published(store) == {"1": "weights 1", "2": "weights 2", "3": "weights 3"}


def test_a_lost_learner_leaves_what_it_had_written_and_nothing_of_what_it_had_not(saving, learner, store) -> None:
    saving.begin(store.publish(1, {}))
    saving.look()
    learner.finishes = False
    saving.drop()
    saving.begin(store.publish(2, {}))
    saving.drop()
    assert published(store) == {"1": "weights 0"}
    assert not list(store.folder.glob(".tmp-*"))
    saving.settle()  # nothing is left to wait for


@pytest.mark.parametrize("act", ["look", "settle", "begin"])
def test_a_full_disk_is_told_and_leaves_the_one_before(saving, learner, store, act: str) -> None:
    saving.begin(store.publish(1, {}))
    saving.settle()
    saving.begin(store.publish(2, {}))
    learner.fails = True
    with pytest.raises(OSError, match="No space left"):
        saving.begin(store.publish(3, {})) if act == "begin" else getattr(saving, act)()
    learner.fails = False
    assert published(store) == {"1": "weights 0"}
    assert not list(store.folder.glob(".tmp-*"))


def test_what_keeps_it_from_being_published_is_raised_once_and_only_told_at_the_end(saving, store, caplog) -> None:
    @contextmanager
    def taken_over() -> Iterator[Path]:
        with store.publish(1, {}) as folder:
            yield folder
            raise RuntimeError("another driver has the run")

    saving.begin(taken_over())
    with pytest.raises(RuntimeError, match="another driver"):
        saving.settle()
    saving.settle()
    saving.begin(taken_over())
    saving.close()
    assert "not published: another driver has the run" in caplog.text
    assert published(store) == {}
