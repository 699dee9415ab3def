"""A critic on the policy's trunk, on real DeepSpeed and gloo: ranks, stages and adapters agree, all is resumed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from torch import nn

from cluster.learner import LearnerGroup
from cluster.rank import LearnerRank
from cluster.resume import shape
from cluster.zero import AdamW
from smartrag.choices import Critic
from smartrag.config import Lora, Run
from tests import tiny
from tests.cluster.test_learner import EPISODES, Life, changed, gap, settings, state
from tests.cluster.test_learner_lora import LORA

HEAD = {"SharedTrunk.head.weight", "SharedTrunk.head.bias"}


def run_of(ranks: int, stage: int, lora: Lora | None = None) -> Run:
    run = settings(ranks, stage)
    run.algorithm.critic, run.algorithm.value_coef, run.algorithm.critic_warmup_steps = Critic.shared, 0.5, 1
    run.learner.learning_rate = 1e-4
    run.learner.weight_decay = 0.1  # would show in a part that is not to be trained
    run.model.lora = lora
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def alone(ray_session: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Life]]:
    """One rank, no ZeRO; by whether there are adapters."""
    found = {bool(lora): Life(run_of(1, 0, lora), folder, tmp_path_factory.mktemp("alone")) for lora in (None, LORA)}
    yield found
    for life in found.values():
        life.group.close()


PAIRS = [
    pytest.param((2, None), id="zero2"),
    pytest.param((3, None), id="zero3", marks=pytest.mark.nightly),
    pytest.param((3, LORA), id="zero3-lora"),
]


@pytest.fixture(scope="module", params=PAIRS)
def pair(
    request: pytest.FixtureRequest, ray_session: None, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Life, Path]]:
    home = tmp_path_factory.mktemp("pair")
    life = Life(run_of(2, *request.param), folder, home)
    yield life, home
    life.group.close()


@pytest.mark.slow
def test_ranks_and_stages_agree(alone: dict[bool, Life], pair: tuple[Life, Path]) -> None:
    life, one = pair[0], alone[bool(pair[0].group.run.model.lora)]
    found = gap(one.parameters, life.parameters)
    print(f"parameters differ by at most {found:.1e}; update {life.seconds:.2f} s, alone {one.seconds:.2f}")
    assert found < 1e-5
    assert gap(one.weights, life.weights) < 1e-5
    assert gap(one.few_weights, life.few_weights) < 1e-5
    for ours, theirs in ((life.first, one.first), (life.second, one.second)):
        assert ours == pytest.approx(theirs | {"padding": ours["padding"]}, rel=2e-3, abs=2e-4)
    assert "policy_loss" not in life.first
    assert life.second["first_ratio_deviation"] < 1e-4
    assert abs(life.second["kl_ref"]) < 1e-5  # the policy has not moved before
    assert set(life.weights) == set(tiny.llama().state_dict()) - {"lm_head.weight"}  # tied; and no head of the critic
    metadata = ray.get(life.group.ranks[0].weight_metadata.remote())
    assert {name for name, _, _ in metadata} == set(life.weights)


@pytest.mark.slow
def test_everything_is_resumed_bit_for_bit_and_critic_warmup_moves_the_head_alone(
    pair: tuple[Life, Path], folder: Path
) -> None:
    life, home = pair
    if life.group.run.model.lora:  # in a new group, whose base is not yet folded
        life.group.close()
        life.group = LearnerGroup(life.group.run, folder)
    life.group.load(str(home / "fresh"))
    fresh = state(life.group)
    trained = {name for name, (trained, _) in fresh.items() if trained}
    assert tiny.timeless(life.group.update(tiny.trajectories(EPISODES, seed=2), 0)) == life.first
    assert life.group.param_hash() == life.saved_hash
    warm = state(life.group)
    assert changed(fresh, warm) == HEAD
    life.group.load(str(home / "fresh"))
    life.group.load(str(home / "learner"))
    assert not changed(warm, state(life.group))
    assert tiny.timeless(life.group.update(tiny.trajectories(EPISODES, seed=3), 1)) == life.second
    assert not changed(life.end, state(life.group))
    assert changed(warm, life.end) == trained


def test_a_group_of_rate_0_is_left_as_it_is() -> None:
    """Later it steps as if it had been there from the first."""
    early, late = (nn.Parameter(torch.ones(3)) for _ in range(2))
    adam = AdamW([{"params": [early]}, {"params": [late]}], lr=0.1, weight_decay=0.5)
    adam.param_groups[1]["lr"] = 0.0
    for _ in range(3):
        early.grad, late.grad = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
        adam.step()
    assert late.tolist() == [1, 1, 1]
    adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = 0.0, 0.1
    moved = early.clone()
    late.grad = torch.tensor([1.0, 2.0, 3.0])
    adam.step()
    assert torch.equal(early, moved)
    assert late.tolist() == pytest.approx([1 - 0.1 * 0.5 - 0.1] * 3)  # Adam's first step is the rate, whatever the size


def test_a_checkpoint_of_the_other_kind_is_refused_before_anything_is_read(tmp_path: Path, folder: Path) -> None:
    shared = run_of(2, 2)
    separate = replace(shared, algorithm=replace(shared.algorithm, critic=Critic.separate))
    for ours, theirs in ((shared, separate), (separate, shared)):
        (tmp_path / "learner.json").write_text(json.dumps(shape(theirs)))
        with pytest.raises(ValueError, match=rf"algorithm\.critic={theirs.algorithm.critic}; .* set these"):
            LearnerRank(ours, folder, 0).load(str(tmp_path))
