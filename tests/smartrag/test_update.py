"""The update on real (tiny) models: what must not depend on how a batch is cut, and what each metric must say."""

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from smartrag import batch, experience, loss, model, packing
from smartrag.actor_critic import Separate
from smartrag.choices import KL, Advantage, Critic, Importance, KLIn, Mean, Role
from smartrag.config import Algorithm
from smartrag.model import Policy
from smartrag.ranks import Ranks, alone
from smartrag.types import Trajectory
from smartrag.update import Setup, imitate, update
from tests import tiny

ALGORITHM = Algorithm(
    quota=1,
    trains=list(Role),
    advantage=Advantage.gae,
    critic=Critic.separate,
    kl=KL.k1,
    kl_in=KLIn.reward,
    loss_mean=Mean.token,
    importance=Importance.token,
    temperature=0.8,
    gamma=0.99,
    lam=0.95,
    clip=0.2,
    samples=1,
    value_clip=None,
    value_coef=1.0,
    entropy_coef=0.01,
    kl_coef=0.05,
    kl_target=None,
    epochs=2,
    minibatches=2,
    whiten_advantages=True,
    importance_cap=2.0,
    critic_warmup_steps=0,
)


BY_ROLE = replace(ALGORITHM, loss_mean=Mean.role)


class Side:
    """Policy, critic and reference of one rank."""

    def __init__(self, ranks: Ranks):
        self.policy = tiny.PlainEngine(Policy(tiny.llama(0)), ranks)
        self.critic = tiny.PlainEngine(model.Critic(tiny.llama(0)), ranks)
        self.setup = Setup(
            models=Separate(self.policy, self.critic, Policy(tiny.llama(1))),
            algorithm=ALGORITHM,
            ranks=ranks,
            kl_coef=0.05,
            pad_id=0,
            micro_batch_tokens=10_000,
            train_policy=True,
            seed=3,
        )

    def parameters(self) -> list[torch.Tensor]:
        modules: Sequence[nn.Module] = (self.policy.module, self.critic.module)
        return [p.detach().clone() for m in modules for p in m.parameters()]


def run(trajectories: Sequence[Trajectory], **changes: Any) -> tuple[Side, dict[str, float]]:
    side = Side(alone())
    parts = batch.minibatches(trajectories, 2, seed=3)
    return side, update(parts, replace(side.setup, **changes))


def same_but_padding(a: dict[str, float], b: dict[str, float]) -> bool:
    """How a batch is cut into micro-batches may change how much of them is padding, and no other metric."""
    return a == pytest.approx({**b, "padding": a["padding"]}, rel=1e-4, abs=1e-5)


def gap(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def on_threads(count: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """`work` once a rank, with an all-reduce through memory."""
    slots: list[torch.Tensor] = [torch.zeros(0)] * count
    meet = threading.Barrier(count, timeout=60)

    def reducer(rank: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def all_reduce_sum(x: torch.Tensor) -> torch.Tensor:
            slots[rank] = x
            meet.wait()
            total = torch.stack(slots).sum(0)
            meet.wait()
            return total

        return all_reduce_sum

    with ThreadPoolExecutor(count) as pool:
        made = [Ranks(rank, count, torch.device("cpu"), reducer(rank)) for rank in range(count)]
        return list(pool.map(work, made))


def test_micro_batches_do_not_change_the_update() -> None:
    episodes = tiny.trajectories(12)
    whole, metrics = run(episodes)
    for budget in (1, 100, 170):  # one row at a time, and two uneven cuts
        cut, cut_metrics = run(episodes, micro_batch_tokens=budget)
        assert gap(whole.parameters(), cut.parameters()) < 1e-5
        assert same_but_padding(cut_metrics, metrics)


@pytest.mark.parametrize("budget", [1, 150, 10_000])
def test_packing_does_not_change_the_update(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trajectory at a time; a few, padded; all, padded."""
    episodes = tiny.trajectories(12)
    packed, metrics = run(episodes)
    monkeypatch.setattr(packing, "plan", tiny.unpacked_plan)
    unpacked, its_metrics = run(episodes, micro_batch_tokens=budget)
    assert gap(packed.parameters(), unpacked.parameters()) < 1e-5
    assert same_but_padding(its_metrics, metrics)
    assert (its_metrics["padding"] == 0) == (budget == 1)


GRPO = replace(ALGORITHM, advantage=Advantage.grpo, kl=KL.k3, kl_in=KLIn.loss, importance=Importance.sequence)


@pytest.mark.parametrize(
    ("ranks", "algorithm"), [(2, GRPO), (3, ALGORITHM), (2, BY_ROLE)], ids=["grpo-2", "ppo-3", "roles-2"]
)
def test_ranks_do_not_change_the_update(ranks: int, algorithm: Algorithm) -> None:
    """Uneven on purpose: 11 trajectories, small micro-batches, so ranks run out at different times; the samples of a
    question lie on several ranks."""
    episodes = tiny.trajectories(11)
    one, metrics = run(episodes, algorithm=algorithm)
    built = [Side(alone()) for _ in range(ranks)]  # the global seed is no business of threads

    def work(me: Ranks) -> dict[str, float]:
        side = built[me.rank]
        side.policy.ranks = side.critic.ranks = me
        parts = [batch.shards(part, ranks)[me.rank] for part in batch.minibatches(episodes, 2, seed=3)]
        return update(parts, replace(side.setup, ranks=me, micro_batch_tokens=90, algorithm=algorithm))

    for rank, found in enumerate(on_threads(ranks, work)):
        assert gap(one.parameters(), built[rank].parameters()) < 1e-5
        assert same_but_padding(found, metrics)


def test_a_mean_over_roles_is_the_mean_of_each_roles_mean() -> None:
    """Two decisions, three tokens of queries and one of an answer, of which one rank holds a part."""
    one = batch.collate([tiny.trajectories(1)[0]], 0)
    roles = torch.tensor([[-1, 0, 1, 1, 1, -1, 0, 2]])
    own = replace(one, roles=roles, mask=roles >= 0)
    losses = torch.randn(roles.shape, generator=torch.Generator().manual_seed(0))
    weights = experience.role_weights(own, alone())
    by_hand = sum(losses[roles == role].mean() for role in (0, 1, 2)) / 3
    assert (weights * losses).sum() / 6 == pytest.approx(by_hand.item(), abs=1e-6)
    assert weights[~own.mask].sum() == 0

    elsewhere = torch.tensor([3, 0, 0], dtype=torch.float64)  # decisions of another rank: 5 + 3 + 1 tokens, three roles
    two = Ranks(0, 2, torch.device("cpu"), lambda x: x + elsewhere)
    found = experience.role_weights(own, two)[0]
    assert found.tolist() == pytest.approx([0, 9 / 15, 1, 1, 1, 0, 9 / 15, 3])


@pytest.mark.parametrize(("count", "algorithm"), [(1, ALGORITHM), (2, GRPO)], ids=["ppo", "grpo"])
def test_ranks_without_a_trajectory_take_part_and_change_nothing(count: int, algorithm: Algorithm) -> None:
    """Where only some roles are trained, few episodes of a step may teach anything."""
    episodes = [replace(t, group=0) for t in tiny.trajectories(count)]
    side = Side(alone())
    one = update([[t] for t in episodes], replace(side.setup, algorithm=algorithm))
    built = [Side(alone()) for _ in range(3)]

    def work(me: Ranks) -> dict[str, float]:
        mine = built[me.rank]
        mine.policy.ranks = mine.critic.ranks = me
        parts = [batch.shards([t], 3)[me.rank] for t in episodes]
        return update(parts, replace(mine.setup, ranks=me, algorithm=algorithm))

    for rank, found in enumerate(on_threads(3, work)):
        assert gap(side.parameters(), built[rank].parameters()) < 1e-5
        assert same_but_padding(found, one)


def test_the_first_ratio_is_one_and_later_ones_are_not() -> None:
    _, metrics = run(tiny.trajectories(8), micro_batch_tokens=100)
    assert metrics["first_ratio"] == pytest.approx(1, abs=1e-6)
    assert metrics["first_ratio_deviation"] < 1e-5
    assert metrics["approx_kl"] > 1e-7
    assert metrics["optimiser_steps"] == 4
    assert metrics["skipped_steps"] == 0


def test_engine_gap_vanishes_when_the_engine_says_what_the_learner_says() -> None:
    episodes = tiny.trajectories(6)
    _, far = run(episodes)
    assert far["engine_gap_k3"] > 0.1
    assert far["ess"] < 0.9
    policy = Policy(tiny.llama(0))
    b = batch.collate(episodes, 0)
    with torch.no_grad():
        logp, _ = policy(b.token_ids, b.mask, ALGORITHM.temperature)
    agreed = [replace(t, logprobs=tuple(logp[i, : len(t.mask)].tolist())) for i, t in enumerate(episodes)]
    _, near = run(agreed)
    assert near["engine_gap_k3"] < 1e-9
    assert near["engine_gap_max"] < 1e-5
    assert near["ess"] == pytest.approx(1)
    assert near["is_clipped_fraction"] == 0


def test_metrics_have_the_meaning_they_claim() -> None:
    episodes = tiny.trajectories(10)
    side, metrics = run(episodes)
    assert 0 <= metrics["padding"] < 0.3
    assert metrics["policy_tokens"] == sum(sum(t.mask) for t in episodes)
    assert metrics["kl_ref_episode"] == pytest.approx(metrics["kl_ref"] * metrics["policy_tokens"] / 10)
    assert metrics["kl_coef"] == 0.05
    assert metrics["advantage_std"] > 0
    assert 0 < metrics["entropy"] < 6
    # With itself as reference there is no KL, and no penalty.
    same = replace(side.setup.models, reference=Policy(tiny.llama(0)))
    _, still = run(episodes, models=replace(same, policy=Side(alone()).policy, critic=Side(alone()).critic))
    assert abs(still["kl_ref"]) < 1e-6


@pytest.mark.parametrize("advantage", [Advantage.reinforce_pp, Advantage.rloo, Advantage.grpo])
def test_estimators_without_a_critic_need_none(advantage: Advantage) -> None:
    side = Side(alone())
    models = replace(side.setup.models, critic=None)
    episodes = tiny.trajectories(8)
    changed = replace(side.setup, models=models, algorithm=replace(ALGORITHM, advantage=advantage))
    metrics = update(batch.minibatches(episodes, 2, seed=3), changed)
    assert not {"value_loss", "critic_grad_norm", "explained_variance"} & set(metrics)
    assert gap(list(side.policy.module.parameters()), list(Side(alone()).policy.module.parameters())) > 0
    assert metrics["first_ratio"] == pytest.approx(1, abs=1e-6)


def test_a_kl_in_the_loss_moves_the_policy_towards_the_reference() -> None:
    """Equal returns: no advantage, so the KL term is all there is, and without it nothing moves."""
    episodes = [replace(t, rewards=(0.0,) * len(t.rewards)) for t in tiny.trajectories(8)]
    b = batch.collate(episodes, 0)

    def distance(side: Side) -> float:
        with torch.no_grad():
            ours, theirs = (m(b.token_ids, b.mask, 0.8)[0] for m in (side.policy.module, Policy(tiny.llama(1))))
        return loss.masked_sum(loss.k3(ours, theirs), b.mask).item()

    changes = {"algorithm": replace(GRPO, importance=Importance.none, entropy_coef=0.0)}
    start = distance(Side(alone()))
    assert distance(run(episodes, kl_coef=0.0, **changes)[0]) == pytest.approx(start, rel=0.02)  # weight decay only
    assert distance(run(episodes, kl_coef=1.0, **changes)[0]) < 0.9 * start


def test_critic_warmup_leaves_the_policy_alone() -> None:
    side, metrics = run(tiny.trajectories(8), train_policy=False)
    fresh = Side(alone())
    assert gap(list(side.policy.module.parameters()), list(fresh.policy.module.parameters())) == 0
    assert gap(list(side.critic.module.parameters()), list(fresh.critic.module.parameters())) > 0
    assert "policy_loss" not in metrics


def test_the_policy_climbs_and_the_critic_comes_to_expect_it() -> None:
    """One choice an episode, reward 1 for an even token: on-policy PPO makes even tokens likelier."""
    side = Side(alone())
    setup = replace(side.setup, algorithm=replace(ALGORITHM, kl_coef=0.0), kl_coef=0.0)
    prompt, g = (1, 2, 3), torch.Generator().manual_seed(0)

    def probabilities() -> torch.Tensor:
        with torch.no_grad():
            logits = side.policy.module.lm(torch.tensor([prompt])).logits[0, -1]
        return (logits / ALGORITHM.temperature).softmax(-1)

    def episode(i: int, token: int, logp: float) -> Trajectory:
        rewards = (0.0, 0.0, 0.0, float(token % 2 == 0))
        mask, first = (False, False, False, True), (-1, -1, -1, 0)  # of the only version, by the first role
        return Trajectory(f"{i}", (*prompt, token), mask, (0.0, 0.0, 0.0, logp), rewards, first, False, i, first)

    before, value_losses = probabilities()[::2].sum().item(), []
    for step in range(10):
        p = probabilities()
        draws = torch.multinomial(p, 64, replacement=True, generator=g).tolist()
        episodes = [episode(i, token, p[token].log().item()) for i, token in enumerate(draws)]
        metrics = update(batch.minibatches(episodes, 2, step), setup)
        assert metrics["ess"] == pytest.approx(1, abs=1e-4)
        value_losses.append(metrics["value_loss"])
    assert before < 0.7
    assert probabilities()[::2].sum() > 0.9
    assert value_losses[-1] < 0.5 * value_losses[0]


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    episodes = tiny.trajectories(8)
    rewards = list(episodes[0].rewards)
    rewards[-1] = float("inf")
    side, metrics = run([replace(episodes[0], rewards=tuple(rewards)), *episodes[1:]])
    assert metrics["skipped_steps"] > 0
    assert all(torch.isfinite(p).all() for p in side.parameters())


def test_imitation_is_cross_entropy_on_the_mask() -> None:
    episodes = tiny.trajectories(6)
    engine = tiny.PlainEngine(Policy(tiny.llama(0)), alone())
    reference = copy.deepcopy(engine.module)
    found = imitate(engine, episodes, alone(), pad_id=0, micro_batch_tokens=60)
    total, count = 0.0, 0
    for t in episodes:
        ids = torch.tensor([t.token_ids])
        with torch.no_grad():
            logits = reference.lm(ids).logits[0, :-1]
        nll = nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        chosen = torch.tensor(t.mask[1:])
        total, count = total + nll[chosen].sum().item(), count + int(chosen.sum())
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    losses = [imitate(engine, episodes, alone(), pad_id=0, micro_batch_tokens=1000)["loss"] for _ in range(30)]
    assert losses[-1] < 0.7 * found["loss"]
