"""A critic on the policy's trunk: the numbers of two models out of one pass, the gradients of plain autograd."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GraniteConfig, GraniteForCausalLM

from smartrag import batch, model
from smartrag.actor_critic import Separate, Shared
from smartrag.choices import Critic
from smartrag.experience import gather
from smartrag.model import Policy, SharedTrunk
from smartrag.ranks import alone
from smartrag.types import Trajectory
from smartrag.update import Setup, imitate, update
from tests import tiny
from tests.smartrag.test_ppo_against_a_reference import reference_losses
from tests.smartrag.test_update import ALGORITHM, gap

C1 = 0.3
ONE_STEP = replace(ALGORITHM, critic=Critic.shared, value_coef=C1, epochs=1)


class Watched(tiny.PlainEngine):
    """Keeps the gradient of the last step."""

    def step(self) -> float:
        self.found = {name: p.grad.clone() for name, p in self.module.named_parameters() if p.grad is not None}
        return super().step()


def trunk(lm: Any = None) -> SharedTrunk:
    made = SharedTrunk(tiny.llama(0) if lm is None else lm)
    nn.init.normal_(made.head.weight, std=0.3, generator=torch.Generator().manual_seed(1))  # values that matter
    return made


def setup_of(engine: tiny.PlainEngine, **changes: Any) -> Setup:
    setup = Setup(
        models=Shared(engine, C1, Policy(tiny.llama(1))),
        algorithm=ONE_STEP,
        ranks=alone(),
        kl_coef=0.05,
        pad_id=0,
        micro_batch_tokens=150,
        train_policy=True,
        seed=3,
    )
    return replace(setup, **changes)


def values_alone(module: SharedTrunk, ids: Tensor) -> Tensor:
    """V after each token by transformers' own model, [R, L]."""
    return module.head(module.policy.lm.model(ids).last_hidden_state)[..., 0]


def autograd(module: SharedTrunk, episodes: Sequence[Trajectory], setup: Setup) -> dict[str, Tensor]:
    """Gradients of L_policy + c₁ L_value, from a pass for log-probs and another for values, one trajectory a time."""
    policy, critic = (
        SimpleNamespace(module=m) for m in (SimpleNamespace(lm=module.policy.lm), lambda ids: values_alone(module, ids))
    )
    policy_loss, value_loss = reference_losses(episodes, SimpleNamespace(setup=setup, policy=policy, critic=critic))  # type: ignore[arg-type]
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(policy_loss + C1 * value_loss, parameters), strict=True))


def test_the_gradients_are_those_of_autograd() -> None:
    episodes = tiny.trajectories(7)
    engine = Watched(trunk(), alone())
    setup = setup_of(engine)
    wanted = autograd(engine.module, episodes, setup)  # type: ignore[arg-type]
    update([episodes], setup)
    assert engine.found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.any(), name
        torch.testing.assert_close(engine.found[name], gradient, rtol=1e-4, atol=1e-6)


def test_both_outputs_are_those_of_two_models() -> None:
    """What an update knows beforehand is the same with policy and critic that are copies of the shared trunk."""
    module, critic = trunk(), model.Critic(tiny.llama(0))
    critic.head.load_state_dict(module.head.state_dict())
    b, reference = batch.collate(tiny.trajectories(8), 0), Policy(tiny.llama(1))
    shared, separate = (
        gather(b, models, ONE_STEP, alone(), kl_coef=0.05, micro_batch_tokens=150)
        for models in (
            Shared(tiny.PlainEngine(module, alone()), C1, reference),
            Separate(*(tiny.PlainEngine(m, alone()) for m in (Policy(tiny.llama(0)), critic)), reference),
        )
    )
    assert shared.values.abs().max() > 0.1
    for name in ("old", "values", "advantages", "returns"):
        torch.testing.assert_close(getattr(shared, name), getattr(separate, name), rtol=1e-5, atol=1e-6)


def test_a_model_that_scales_its_logits_shares_its_trunk_too() -> None:
    config = GraniteConfig(
        vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=4.0, initializer_range=0.5,
    )  # fmt: skip
    module = trunk(GraniteForCausalLM(config))
    ids, mask = torch.randint(200, (2, 6)), torch.tensor([[False] * 3 + [True] * 3] * 2)
    with torch.no_grad():
        logp, entropy, values = module(ids, mask, 0.7)
        assert torch.equal(logp, module.policy(ids, mask, 0.7)[0])
        assert torch.equal(entropy, module.policy(ids, mask, 0.7)[1])
        torch.testing.assert_close(values, values_alone(module, ids))


@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_micro_batches_do_not_change_the_update(budget: int) -> None:
    """Several steps, of policy and critic at once."""
    found = []
    for tokens in (170, budget):
        engine = tiny.PlainEngine(trunk(), alone())
        setup = setup_of(engine, algorithm=replace(ONE_STEP, epochs=2), micro_batch_tokens=tokens)
        metrics = update(batch.minibatches(tiny.trajectories(12), 2, seed=3), setup)
        found.append(list(engine.module.parameters()))
        assert metrics["first_ratio"] == pytest.approx(1, abs=1e-6)
        assert metrics["optimiser_steps"] == 4
        assert "critic_grad_norm" not in metrics  # there is one optimiser, and one norm
    assert gap(*found) < 1e-5


def test_critic_warmup_reaches_the_head_alone_and_imitation_all_but_the_head() -> None:
    """The others get a gradient of 0: none at all would be, under ZeRO 3, one of an earlier step."""
    engine = Watched(trunk(), alone())
    metrics = update([tiny.trajectories(6)], setup_of(engine, train_policy=False))
    assert metrics["value_loss"] > 0
    assert "policy_loss" not in metrics
    assert {name: bool(g.any()) for name, g in engine.found.items()} == {
        name: name.startswith("head.") for name, _ in engine.module.named_parameters()
    }
    imitate(engine, tiny.trajectories(6), alone(), pad_id=0, micro_batch_tokens=150)
    assert {name: bool(g.any()) for name, g in engine.found.items()} == {
        name: not name.startswith("head.") for name, _ in engine.module.named_parameters()
    }
