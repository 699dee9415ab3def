"""The loop with stand-ins for the machines: what is asked, in which order, and what a resumed run does."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smartrag.compose import load
from smartrag.config import Run
from smartrag.data.load import Dataset
from smartrag.data.rows import DataError
from smartrag.episode import run_episode
from smartrag.log import RunFolder
from smartrag.train import Diverged, Training
from smartrag.types import Episode, EpisodeRequest, Gate, PoisonQuestion, Question, Trajectory
from tests import toys

TRAIN = tuple(Question(f"q{i}", f"Which country is Oslo {i} in?", ("Norway",), {"popularity": i}) for i in range(10))
TEST = tuple(Question(f"t{i}", f"Where is Oslo {i}?", ("Norway",), {"popularity": i, "hops": 1}) for i in range(6))


class Machines:
    """Rollout, learner, push and store in one, with a diary of what was asked of them."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.requests: list[EpisodeRequest] = []
        self.learned: list[list[Trajectory]] = []
        self.published: dict[int, dict[str, Any]] = {}
        self.knows = False

    def __call__(self, requests: Sequence[EpisodeRequest]) -> Iterator[Episode]:
        self.requests += requests
        self.diary.append(f"rollout {len(requests)}")
        for request in reversed(requests):  # in any order
            yield asyncio.run(self._episode(request))

    async def _episode(self, request: EpisodeRequest) -> Episode:
        prompt = toys.prompt()
        match request.gate:
            case Gate.NEVER:
                texts = [" Norway"]
            case Gate.ALWAYS:
                texts = [" Oslo", " Norway"]
            case Gate.POLICY:
                texts = ["[Answer] Norway"] if self.knows else ["[Search] Oslo", " Norway"]
        policy = toys.ScriptedPolicy(prompt, *texts)
        return await run_episode(request, policy, toys.Shelf(toys.OSLO), prompt, temperature=1.0)

    def rest(self) -> None:
        self.diary.append("rest")

    def imitate(self, trajectories: Sequence[Trajectory], learning_rate: float) -> dict[str, float]:
        self.diary.append(f"imitate {len(trajectories)}")
        return {"loss": 1.0}

    def snapshot_reference(self) -> None:
        self.diary.append("reference")

    def update(self, trajectories: Sequence[Trajectory], step: int) -> dict[str, float]:
        self.diary.append(f"update {step}")
        self.learned.append(list(trajectories))
        self.knows = True
        return {"kl_ref": 0.1}

    def save(self, folder: str) -> None:
        Path(folder).mkdir(parents=True)

    def load(self, folder: str) -> None:
        self.diary.append("load")

    def export(self, folder: str) -> None:
        Path(folder).mkdir(parents=True)

    def written(self, *, wait: bool) -> bool:
        return True


class Shelf:
    """A `Store` that keeps states in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.states = folder, {}

    @contextmanager
    def publish(self, step: int, state: Any) -> Iterator[Path]:
        yield self.folder / f"step-{step}"
        self.states[step] = json.loads(json.dumps(state))

    def load(self, path: Path | None = None) -> tuple[Path, Any]:
        step = max(self.states)
        return self.folder / f"step-{step}", self.states[step]


def small_run(*overrides: str) -> Run:
    small = ["train.steps=4", "train.episodes=4", "train.save_every=2", "warmup.steps=2", "warmup.batch=2"]
    return load(["algorithm.minibatches=1", "algorithm.quota=1", *small, "log.progress=false", *overrides])


def _training(
    tmp_path: Path,
    machines: Machines,
    store: Shelf,
    folder: RunFolder,
    run: Run | None = None,
    data: Dataset | None = None,
) -> Training:
    def push(version: int) -> dict[str, float]:
        machines.diary.append(f"push {version}")
        return {"seconds": 0.0, "transfer_seconds": 0.0}

    data = data or Dataset(TRAIN, TEST[:2], TEST, None)
    return Training(run or small_run(), data, machines, machines, push, store, folder)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(str(tmp_path), "test")


def _samples(count: int) -> list[Trajectory]:
    from smartrag.trajectory import imitation

    return [imitation(f"w{i}", (1,), (2,)) for i in range(count)]


def test_the_order_of_a_run(tmp_path: Path, folder: RunFolder) -> None:
    machines = Machines()
    training = _training(tmp_path, machines, Shelf(tmp_path), folder)
    training.begin(_samples(4))
    assert machines.diary == ["rest", "imitate 2", "imitate 2", "reference", "push 0", "rollout 6"]
    machines.diary.clear()
    while not training.done:
        training.step()
    assert machines.diary[:8] == ["rollout 4", "rest", "update 0", "push 1", "rollout 4", "rest", "update 1", "push 2"]
    assert [row["step"] for row in folder.rows()] == [1, 2, 3, 4]


def test_every_train_question_once_an_epoch_and_every_id_once(tmp_path: Path, folder: RunFolder) -> None:
    machines = Machines()
    training = _training(tmp_path, machines, Shelf(tmp_path), folder, small_run("train.steps=5"))
    training.begin([])
    machines.requests.clear()
    while not training.done:
        training.step()
    asked = [request.question.id for request in machines.requests]
    assert sorted(asked[:10]) == sorted(asked[10:]) == sorted(q.id for q in TRAIN)
    assert asked[:10] != asked[10:]
    assert len({request.id for request in machines.requests}) == 20


def test_the_summary_compares_on_the_same_questions(tmp_path: Path, folder: RunFolder) -> None:
    training = _training(tmp_path, Machines(), Shelf(tmp_path), folder)
    training.begin([])
    while not training.done:
        training.step()
    summary = training.finish()
    assert summary["before"]["reward"]["mean"] == pytest.approx(1.8)
    assert summary["after"]["reward"]["mean"] == pytest.approx(2.0)
    assert summary["difference"]["after_minus_before"]["mean"] == pytest.approx(0.2)
    assert summary["never"]["retrievals_per_question"]["mean"] == 0
    assert summary["always"]["n"] == 6
    assert summary["before"]["retrieval_rate_by_popularity_fifth"] == [1.0] * 5


@pytest.mark.fault("D2", "a driver ends between two checkpoints")
def test_a_resumed_run_asks_exactly_what_the_first_would_have(tmp_path: Path, folder: RunFolder) -> None:
    whole, store = Machines(), Shelf(tmp_path)
    training = _training(tmp_path, whole, store, folder)
    training.begin([])
    for _ in range(3):  # the checkpoint is of step 2; step 3 is lost
        training.step()
    expected = [request.id for request in whole.requests]
    first, again = whole.requests[-4:], Machines()
    resumed = _training(tmp_path, again, store, folder)
    resumed.resume()
    assert again.diary == ["rest", "load", "push 2"]
    assert [row["step"] for row in folder.rows()] == [1, 2]
    resumed.step()
    assert [r.id for r in again.requests] == [r.id for r in first] == expected[-4:]
    resumed.step()
    assert [row["step"] for row in folder.rows()] == [1, 2, 3, 4]
    assert "before" in resumed.finish()
    rows = [json.loads(line) for line in (folder.folder / "ledger.jsonl").read_text().splitlines()]
    assert [row["episodes"] for row in rows] == [expected[i : i + 4] for i in (6, 10, 14)] + [rows[3]["episodes"]]


def test_the_price_follows_the_budget_and_goes_on_where_it_stood(tmp_path: Path, folder: RunFolder) -> None:
    """Step 1 retrieves once a question, the others never: 0.2, then 0.1 x (1 - 0.5) more, then 0.05 less each step;
    and 0.2 x 0.5 more or less with what was retrieved last."""
    run = small_run("reward=budget", "reward.budget.rate=0.1", "reward.budget.gain=0.2")
    store, machines = Shelf(tmp_path), Machines()
    training = _training(tmp_path, machines, store, folder, run)
    training.begin([])
    for _ in range(3):  # the checkpoint is of step 2
        training.step()
    assert [row["retrieval_price"] for row in folder.rows()] == pytest.approx([0.2, 0.25 + 0.1, 0.2 - 0.1])
    resumed = _training(tmp_path, machines, store, folder, run)
    resumed.resume()
    while not resumed.done:
        resumed.step()
    rows = folder.rows()
    assert [row["retrieval_price"] for row in rows] == pytest.approx([0.2, 0.25 + 0.1, 0.2 - 0.1, 0.15 - 0.1])
    assert [row["training_reward"] for row in rows] == pytest.approx([1.8, 2.0, 2.0, 2.0])


def test_the_price_is_held_while_nothing_is_charged_and_the_measure_stays_the_papers(
    tmp_path: Path, folder: RunFolder
) -> None:
    run = small_run(
        "reward=budget", "reward.budget.rate=0.1", "reward.budget.gain=0", "reward.free_steps=1", "reward.ramp_steps=2"
    )
    training = _training(tmp_path, Machines(), Shelf(tmp_path), folder, run)
    training.begin([])
    while not training.done:
        training.step()
    rows = folder.rows()
    # Steps 0 and 1 charge nothing, step 2 half of 0.2, step 3 all of the 0.15 that step 2, without retrievals, left.
    assert [row["retrieval_price"] for row in rows] == pytest.approx([0.0, 0.0, 0.1, 0.15])
    assert (rows[0]["reward"], rows[0]["training_reward"]) == pytest.approx((1.8, 2.0))


class Torn(Machines):
    """Searches or not and answers with one of two countries, as the episode's id has it."""

    async def _episode(self, request: EpisodeRequest) -> Episode:
        draw = random.Random(request.id)
        country = draw.choice(["Norway", "Sweden"])
        texts = ["[Search] Oslo", f" {country}"] if draw.random() < 0.5 else [f"[Answer] {country}"]
        prompt = toys.prompt()
        policy = toys.ScriptedPolicy(prompt, *texts)
        request = replace(request, gate=Gate.POLICY)
        return await run_episode(request, policy, toys.Shelf(toys.OSLO), prompt, temperature=1.0)


def test_without_gold_answers_the_learner_gets_the_same_whatever_they_are(tmp_path: Path) -> None:
    run = small_run("reward=agreement", "algorithm.samples=2", "warmup.steps=0")
    rows, learned = [], []
    for gold in ("Norway", "Sweden"):
        machines, folder = Torn(), RunFolder.create(str(tmp_path), gold)
        questions = tuple(replace(q, answers=(gold,)) for q in TRAIN)
        data = Dataset(questions, TEST[:2], TEST, None)
        training = _training(tmp_path, machines, Shelf(tmp_path / gold), folder, run, data)
        training.begin([])
        while not training.done:
            training.step()
        learned.append(machines.learned)
        rows.append(folder.rows())
    assert learned[0] == learned[1]
    assert len({sum(t.rewards) for step in learned[0] for t in step}) > 2  # and there was something to learn
    for ours, theirs in zip(*rows, strict=True):
        assert ours["training_reward"] == theirs["training_reward"]
        assert ours["em"] == pytest.approx(1 - theirs["em"])  # measured all the same


def test_voided_episodes_are_counted_and_not_learned_from(
    tmp_path: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smartrag.feedback.judge", lambda episodes, *_: [None, 1.0, 0.5, 1.0])
    machines = Machines()
    training = _training(tmp_path, machines, Shelf(tmp_path), folder, small_run("reward=judge"))
    training.begin([])
    row = training.step()
    assert (row["voided_episodes"], len(machines.learned[0])) == (1, 3)
    assert row["training_reward"] == pytest.approx((2.0 + 1.0 + 2.0) / 3)  # the ramp's first step is free
    lines = (folder.folder / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["training_reward"] for line in lines] == [None, 2.0, 1.0, 2.0][: len(lines)]


def test_a_step_whose_trained_role_was_never_played_teaches_nothing_and_the_run_goes_on(
    tmp_path: Path, folder: RunFolder
) -> None:
    machines = Machines()
    run = small_run("algorithm.trains=[query]", "warmup.steps=0")
    training = _training(tmp_path, machines, Shelf(tmp_path), folder, run)
    training.begin([])
    first = training.step()  # the policy searches, and then knows
    assert (first["untrained_episodes"], first["kl_ref"], first["training_reward"]) == (0, 0.1, pytest.approx(1.8))
    machines.diary.clear()
    second = training.step()
    assert machines.diary == ["rollout 4", "rest", "push 2"]
    assert (second["untrained_episodes"], second["reward"]) == (4, pytest.approx(2.0))
    assert not {"kl_ref", "training_reward"} & set(second)
    assert second["generated_tokens"] > 0


def _to_the_end(training: Training) -> None:
    while not training.done:
        training.step()


class Mined(Machines):
    """Workers end on the question `mine`."""

    mine = "q3"

    def __call__(self, requests: Sequence[EpisodeRequest]) -> Iterator[Episode]:
        if any(request.question.id == self.mine for request in requests):
            raise PoisonQuestion(f"{self.mine} cost 4 workers", self.mine)
        yield from super().__call__(requests)


@pytest.mark.fault("R5", "a question is set aside in the middle of a run")
def test_a_question_that_ends_workers_is_set_aside_if_that_is_allowed(tmp_path: Path, folder: RunFolder) -> None:
    strict = _training(tmp_path, Mined(), Shelf(tmp_path / "strict"), folder, small_run("train.steps=5"))
    strict.begin([])
    with pytest.raises(PoisonQuestion, match="q3 cost 4 workers"):
        _to_the_end(strict)

    machines, store = Mined(), Shelf(tmp_path)
    run = small_run("train.steps=5", "train.set_aside=1", "train.save_every=4")
    training = _training(tmp_path, machines, store, folder, run)
    training.begin([])
    _to_the_end(training)
    assert [len(step) for step in machines.learned] == [4] * 5, "every update has all its episodes"
    assert training.plan.set_aside == ["q3"]
    resumed = _training(tmp_path, machines, store, folder, run)
    resumed.resume()
    assert resumed.plan.set_aside == ["q3"]
    machines.mine = "q4"
    resumed.steps_done = 0
    with pytest.raises(PoisonQuestion, match="q4 cost"):
        _to_the_end(resumed)


@pytest.mark.fault("L5", "no gradient is finite any more")
def test_three_updates_in_a_row_that_are_not_finite_end_the_run(tmp_path: Path, folder: RunFolder) -> None:
    skipped = iter([8.0, 8.0, 7.0, 8.0, 8.0, 8.0])

    class Diverging(Machines):
        def update(self, trajectories: Sequence[Trajectory], step: int) -> dict[str, float]:
            return {"optimiser_steps": 8.0, "skipped_steps": next(skipped)}

    store = Shelf(tmp_path)
    training = _training(tmp_path, Diverging(), store, folder, small_run("train.steps=9", "train.save_every=6"))
    training.begin([])
    with pytest.raises(Diverged, match="no gradient was finite in 3 PPO steps in a row, 4 to 6"):
        _to_the_end(training)
    assert [row["step"] for row in folder.rows()] == [1, 2, 3, 4, 5, 6]
    assert set(store.states) == {0}, "and nothing was saved of it"


@pytest.mark.fault("C2", "a run is resumed on other data")
def test_a_run_is_not_resumed_on_other_questions(tmp_path: Path, folder: RunFolder) -> None:
    store = Shelf(tmp_path)
    _training(tmp_path, Machines(), store, folder).begin([])
    other = Dataset(TRAIN[1:], TEST[:2], TEST, None)
    with pytest.raises(DataError, match=r"not those of .*splits.json; resume with the data"):
        _training(tmp_path, Machines(), store, folder, data=other).resume()


def test_figures_of_each_data_set_and_each_quota_stand_beside_those_of_all(tmp_path: Path, folder: RunFolder) -> None:
    def of(name: str, questions: tuple[Question, ...]) -> tuple[Question, ...]:
        return tuple(replace(q, id=f"{name}/{q.id}", meta={"dataset": name}) for q in questions)

    knows_b = tuple(replace(q, answers=("Chile",)) for q in TRAIN)  # the scripted policy says Norway
    data = Dataset((*of("popqa", TRAIN), *of("hotpotqa", knows_b)), of("popqa", TEST[:2]), of("popqa", TEST), None)
    run = small_run(
        "data=[popqa,hotpotqa]", "data.mix.hotpotqa=3", "train.quotas=[1,2]", "train.ks=[1,3]", "train.steps=20"
    )
    machines = Machines()
    machines.knows = True
    training = _training(tmp_path, machines, Shelf(tmp_path), folder, run, data)
    training.begin([])
    machines.requests.clear()
    while not training.done:
        training.step()
    summary = training.finish()
    for row in folder.rows():
        asked = Counter(r.question.meta["dataset"] for r in machines.requests[4 * row["step"] - 4 : 4 * row["step"]])
        assert asked == {"popqa": 1, "hotpotqa": 3}
        assert (row["popqa/em"], row["hotpotqa/em"], row["em"]) == (1.0, 0.0, 0.25)
        assert row["popqa/reward"] - row["hotpotqa/reward"] == pytest.approx(2.0)
        assert row["popqa/retrievals_per_question"] == 0.0
    trained = [r for r in machines.requests if not r.greedy]
    assert {(r.quota, r.k) for r in trained} == {(1, 1), (1, 3), (2, 1), (2, 3)}
    assert {(r.quota, r.k) for r in machines.requests if r.greedy} == {(run.algorithm.quota, run.retriever.k)}
    assert {"quota_1/em", "quota_2/em"} <= {name for row in folder.rows() for name in row}
    assert summary["after"]["by_dataset"]["popqa"]["n"] == 6


def test_warm_up_and_ppo_share_no_question_when_told_so_and_the_folder_proves_it(
    tmp_path: Path, folder: RunFolder
) -> None:
    machines = Machines()
    training = _training(tmp_path, machines, Shelf(tmp_path), folder, small_run("warmup.share=0.5", "train.steps=5"))
    closed_book, searched = training.practice()
    assert {e.retrievals for e in closed_book} == {0}
    assert {e.retrievals for e in searched} == {1}
    practised = {r.question.id for r in machines.requests}
    training.begin([])
    machines.requests.clear()
    while not training.done:
        training.step()
    trained = {r.question.id for r in machines.requests}
    assert practised | trained == {q.id for q in TRAIN}
    assert not practised & trained
    splits = json.loads((folder.folder / "splits.json").read_text())
    assert splits["splits"]["warmup"]["questions"] + splits["splits"]["ppo"]["questions"] == len(TRAIN)
    assert {pair: n for pair, n in splits["overlaps"].items() if n} == {"dev/test": 2}
