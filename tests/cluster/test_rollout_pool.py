"""The pool gives every episode exactly once, whatever happens to its workers. No engine, no model."""

import asyncio
import dataclasses
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from cluster.dispatch import RolloutFailed
from cluster.rollout import RolloutPool, RolloutWorker
from smartrag.choices import Role
from smartrag.compose import load
from smartrag.config import Cluster
from smartrag.types import (
    Action,
    ActionKind,
    Completion,
    End,
    Episode,
    EpisodeFailed,
    EpisodeRequest,
    PoisonQuestion,
    Question,
    Stop,
    Turn,
)
from tests.fault_table import Row

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]


class PlannedWorker(RolloutWorker):
    """Plays the part that the question's text names. `folder` holds what must outlive a restart."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.incarnation = f"{os.getpid()}-{time.monotonic_ns()}"
        self.version = 0

    async def run_episode(self, request: EpisodeRequest, incarnation: str | None = None) -> Episode:
        self.admit(incarnation)
        part, seen = request.question.text, self.folder / request.id
        first = not seen.exists()
        seen.open("a").write("x")
        if part == "poison" or (part == "kill" and first):
            await asyncio.sleep(0.2)
            os._exit(1)
        if part == "hang" and first:
            await asyncio.sleep(4)
        if part == "freeze" and first:
            time.sleep(600)  # the whole process, not only this episode  # noqa: ASYNC251
        if (part == "flaky" and first) or part == "broken":
            raise EpisodeFailed("planted")
        if part == "bug":
            raise KeyError("planted")
        await asyncio.sleep(0.05)
        done = Completion((1,), (-0.1,), Stop.END, (self.version,))
        turn = Turn((0,), done, Action(ActionKind.ANSWER, "x"), None, forced=False, roles=(Role.answer,))
        return Episode(request.id, request.question, (turn,), End.ANSWERED)

    async def ping(self) -> str:
        return "pong"

    async def on_engine(self, verb: str, *args: Any) -> Any:
        assert verb == "set"
        (self.version,) = args


def requests(*parts: str) -> list[EpisodeRequest]:
    salt = uuid.uuid4().hex[:6]
    return [
        EpisodeRequest(f"{i:04d}{part}{salt}", Question(f"q{i}", part, ("x",)), 1, 1) for i, part in enumerate(parts)
    ]


def cluster(**changes: Any) -> Cluster:
    made = load([]).cluster
    engine = dataclasses.replace(made.engine, workers=2, cpus=0.1, concurrency=4)
    limits = {"call_timeout_s": 60.0, "placement_timeout_s": 60.0, "episode_attempts": 3, "episode_losses": 3}
    base = {"engine": engine, **limits}
    return dataclasses.replace(made, **(base | changes))


@contextmanager
def pool(folder: Path, **changes: Any) -> Iterator[RolloutPool]:
    made = RolloutPool(cluster(**changes), PlannedWorker, (str(folder),), env={"OMP_NUM_THREADS": "1"})
    try:
        yield made
    finally:
        made.close()


def landed(rollout: RolloutPool, wanted: list[EpisodeRequest]) -> list[Episode]:
    return [episode for episode in rollout(wanted) if episode is not None]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RolloutPool, Path]]:
    folder = tmp_path_factory.mktemp("pool")
    with pool(folder) as rollout:
        yield rollout, folder


@pytest.mark.fault("R1", "workers are killed in an episode")
def test_every_episode_once_though_workers_die_and_episodes_fail(
    shared: tuple[RolloutPool, Path], row: Row, trials: int
) -> None:
    rollout, _ = shared
    for _ in range(trials):
        wanted = requests(*["plain"] * 6, "kill", *["plain"] * 6, "flaky", "kill", *["plain"] * 6)
        found = Counter(episode.id for episode in landed(rollout, wanted))
        row.trial(lost=len({r.id for r in wanted} - set(found)), doubled=found.total() - len(found))
        assert found == Counter(request.id for request in wanted)


@pytest.mark.fault("V1", "workers restart while nobody looks")
def test_a_restarted_worker_serves_only_current_weights(tmp_path: Path) -> None:
    with pool(tmp_path) as rollout:
        pushes: list[list[int]] = []

        def push(restored: list[int]) -> None:
            pushes.append(restored)
            refs = {worker: handle.on_engine.remote("set", 5) for worker, handle in rollout.handles().items()}
            for worker, ref in refs.items():
                try:
                    ray.get(ref)
                except RayError:  # not back yet; `lost` is what a weight push calls
                    rollout.lost(worker)

        push([])
        rollout.on_restored = push
        for handle in rollout.handles().values():  # while idle, so nobody is told
            ray.kill(handle, no_restart=False)
        episodes = landed(rollout, requests(*["plain"] * 8))
        assert {version for e in episodes for t in e.turns for version in t.completion.weight_versions} == {5}
        assert len(episodes) == 8
        assert pushes[1:], "nobody brought the new processes their weights"


@pytest.mark.fault("V1", "workers restart while the learner is at work")
def test_workers_that_restart_while_the_learner_works_wait_for_its_push(tmp_path: Path) -> None:
    with pool(tmp_path) as rollout:
        pushes: list[list[int]] = []

        def push(restored: list[int]) -> None:
            pushes.append(restored)
            ray.get([handle.on_engine.remote("set", 5) for handle in rollout.handles().values()])

        rollout.on_restored = push
        rollout.rest()
        for handle in rollout.handles().values():
            ray.kill(handle, no_restart=False)
        arriving = rollout(requests(*["plain"] * 8))
        deadline = time.monotonic() + 8  # they are back, and asked who they are, before that
        while time.monotonic() < deadline:
            assert next(arriving) is None, "an episode by weights that nobody pushed"
        assert pushes == []
        rollout.pushed()
        episodes = [episode for episode in arriving if episode is not None]
        assert {version for e in episodes for t in e.turns for version in t.completion.weight_versions} == {5}
        assert (len(episodes), len(pushes)) == (8, 1)


def test_several_iterations_at_a_time_and_one_that_is_closed(shared: tuple[RolloutPool, Path]) -> None:
    rollout, folder = shared
    ahead, given_up, now = (requests(*["plain"] * 12) for _ in range(3))
    first, second = rollout(ahead), rollout(given_up)
    begun = [next(first), next(second)]
    second.close()
    between = landed(rollout, now)
    rest = [episode for episode in (begun[0], *first) if episode is not None]
    assert sorted(episode.id for episode in between) == sorted(request.id for request in now)
    assert sorted(episode.id for episode in rest) == sorted(request.id for request in ahead)
    assert all((folder / request.id).read_text() == "x" for request in (*ahead, *now)), "none was run twice"


def test_attempts_exhausted_is_an_error_that_names_the_episode(shared: tuple[RolloutPool, Path]) -> None:
    rollout, folder = shared
    wanted = requests("plain", "plain", "broken")
    with pytest.raises(RolloutFailed, match=r"0002broken.* \(q2\) failed 3 times.*EpisodeFailed.*planted"):
        list(rollout(wanted))
    assert (folder / wanted[2].id).read_text() == "xxx"
    assert len(landed(rollout, requests("plain"))) == 1  # the pool outlives it


@pytest.mark.fault("R5", "a question kills every worker it comes to")
def test_a_question_that_ends_every_worker_is_named(shared: tuple[RolloutPool, Path]) -> None:
    rollout, folder = shared
    wanted = requests("plain", "poison", "plain")
    with pytest.raises(PoisonQuestion, match=r"0001poison.* \(q1\) cost 3 workers") as caught:
        list(rollout(wanted))
    assert caught.value.question == "q1"
    assert (folder / wanted[1].id).read_text() == "xxx"


def test_a_bug_is_not_tried_again(shared: tuple[RolloutPool, Path]) -> None:
    rollout, folder = shared
    wanted = requests("bug")
    with pytest.raises(KeyError, match="planted"):
        list(rollout(wanted))
    assert (folder / wanted[0].id).read_text() == "x"


def test_two_episodes_of_one_id_are_refused(shared: tuple[RolloutPool, Path]) -> None:
    with pytest.raises(ValueError, match="different ids"):
        list(shared[0](requests("plain") * 2))


@pytest.mark.fault("R8", "an episode takes longer than it may")
def test_a_late_episode_is_run_again_and_given_once(tmp_path: Path) -> None:
    with pool(tmp_path, call_timeout_s=1.5) as rollout:
        wanted = requests("hang", *["plain"] * 200)
        ids = [episode.id for episode in landed(rollout, wanted)]
        assert sorted(ids) == sorted(request.id for request in wanted)
        assert (tmp_path / wanted[0].id).read_text() == "xx"


@pytest.mark.fault("R3", "a worker stands still")
def test_a_frozen_worker_is_restarted(tmp_path: Path) -> None:
    engine = dataclasses.replace(cluster().engine, workers=1)
    with pool(tmp_path, engine=engine, call_timeout_s=2.0) as rollout:
        assert len(landed(rollout, requests("freeze"))) == 1


def test_workers_that_do_not_fit_are_an_error_in_time(tmp_path: Path) -> None:
    engine = dataclasses.replace(cluster().engine, cpus=99)
    with pytest.raises(RolloutFailed, match="99 CPUs"), pool(tmp_path, engine=engine, placement_timeout_s=2.0):
        pass
