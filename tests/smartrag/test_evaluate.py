import asyncio

import numpy as np
import pytest

from smartrag.episode import run_episode
from smartrag.evaluation import evaluate
from smartrag.types import Episode, EpisodeRequest, Question
from tests import toys
from tests.toys import PAPER


def _episode(*texts: str, popularity: float = 0.0, gold: str = "Norway", hops: int = 1) -> Episode:
    prompt = toys.prompt()
    question = Question("q", toys.QUESTION, (gold,), {"popularity": popularity, "hops": hops})
    policy, shelf = toys.ScriptedPolicy(prompt, *texts), toys.Shelf(toys.OSLO)
    return asyncio.run(run_episode(EpisodeRequest("e", question, 1, 1), policy, shelf, prompt, temperature=1.0))


def test_the_measures_of_four_kinds_of_episodes() -> None:
    right, searched = _episode("[Answer] Norway"), _episode("[Search] Oslo", " Norway")
    wrong, silent = _episode("[Search] Rome", " Norway Italy"), _episode("hm")
    columns = evaluate.table([right, searched, wrong, silent], PAPER)
    assert columns["reward"] == pytest.approx([2.0, 1.8, 2 / 3 - 0.2, -1.0])
    assert list(columns["em"]) == [1, 1, 0, 0]
    assert list(columns["retrievals_per_question"]) == [0, 1, 1, 0]
    assert list(columns["format_error_rate"]) == [0, 0, 0, 1]
    assert np.isnan(columns["hit_rate"]).tolist() == [True, False, False, True]
    assert evaluate.means(columns)["hit_rate"] == 0.5  # of the two that retrieved
    found = evaluate.summary(columns, seed=0)
    assert found["n"] == 4
    assert found["em"]["mean"] == 0.5
    assert found["em"]["low"] <= 0.5 <= found["em"]["high"]


def test_a_rate_that_is_defined_for_nobody_is_null_not_zero() -> None:
    columns = evaluate.table([_episode("[Answer] Norway")], PAPER)
    assert evaluate.summary(columns, seed=0)["hit_rate"] is None
    assert "hit_rate" not in evaluate.means(columns)


def test_the_interval_covers_as_often_as_it_claims() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        found = evaluate.interval(rng.normal(1.0, 2.0, size=80), seed=trial)
        assert found is not None
        covered += found["low"] <= 1.0 <= found["high"]
    assert 0.90 <= covered / 200 <= 0.99


def test_the_interval_is_that_of_the_normal_distribution_for_many() -> None:
    """The mean of n coin tosses: mean ± 1.96 s / √n, to a tenth of the half-width."""
    values = np.repeat([0.0, 1.0], [1200, 800])
    found = evaluate.interval(values, seed=0)
    assert found is not None
    half = 1.959964 * values.std() / np.sqrt(len(values))
    assert found["mean"] == 0.4
    assert found["low"] == pytest.approx(0.4 - half, abs=half / 10)
    assert found["high"] == pytest.approx(0.4 + half, abs=half / 10)


def test_differences_are_paired() -> None:
    """Two systems that differ by 0.1 on every question differ by 0.1 exactly, however hard the questions vary."""
    hard = np.random.default_rng(0).normal(size=50)
    ours, theirs = {"em": hard + 0.1, "hit_rate": hard}, {"em": hard, "hit_rate": np.full(50, np.nan)}
    found = evaluate.differences(ours, theirs, seed=0)
    assert found["em"] == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})
    assert found["hit_rate"] is None


def test_what_an_episode_costs() -> None:
    """Two calls: 3 tokens written after a prompt of p, then 4 after p + 3 + o."""
    episode = _episode("[Search] Oslo", " Norway")
    first, second = episode.turns
    p, o = len(first.context_ids), len(second.context_ids)
    w = len(first.completion.token_ids)
    found = evaluate.measure(episode, PAPER)
    assert (found["model_calls"], found["accuracy"]) == (2, 1)
    assert found["prompt_tokens"] == p + (p + w + o)
    assert found["generated_tokens"] == w + len(second.completion.token_ids)


def test_retrieval_by_popularity_puts_the_least_popular_first() -> None:
    episodes = [_episode("[Answer] x", popularity=p) for p in (90, 100, 80, 70)]
    episodes += [_episode("[Search] Oslo", " x", popularity=p) for p in (1, 2, 3, 4, 5, 6)]
    assert evaluate.retrieval_by_popularity(episodes) == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert evaluate.retrieval_by_popularity(episodes[:4]) is None


def test_scores_are_split_by_hops() -> None:
    episodes = [_episode("[Answer] Norway"), _episode("[Answer] x", hops=2)]
    split = evaluate.by_group(evaluate.table(episodes, PAPER), evaluate.labels([e.question for e in episodes], "hops"))
    assert (split["1"]["em"], split["2"]["em"], split["1"]["n"]) == (1.0, 0.0, 1)
