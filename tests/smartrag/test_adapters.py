"""LoRA on real (tiny) models, against transformers with the merged weights loaded into it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from smartrag import adapters, batch
from smartrag.actor_critic import Separate
from smartrag.choices import Precision
from smartrag.compose import load
from smartrag.config import Lora
from smartrag.model import load_critic, load_policy
from smartrag.ranks import alone
from smartrag.update import Setup, update
from tests import tiny

LORA = Lora(rank=4, alpha=8, targets=["q_proj", "v_proj", "down_proj"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


def frozen(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}


def trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def score(module: nn.Module) -> Tensor:
    ids = torch.randint(200, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    with torch.no_grad():
        return module(ids, mask, 1.0)[0]


def shake(module: nn.Module) -> None:
    """Adapters as training might leave them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))


def test_merging_by_hand() -> None:
    weight, a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [0.5]])
    assert adapters.merged(weight, a, b, 0.5).tolist() == [[2.0, 1.0], [3.25, 3.75]]
    assert adapters.merged(weight.bfloat16(), a.bfloat16(), b.bfloat16(), 2**-9).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert torch.equal(adapters.merged(weight, a, 0 * b, 0.5), weight)


def test_a_fresh_adapter_changes_nothing_and_is_the_same_on_every_rank(folder: Path) -> None:
    plain = load_policy(folder, Precision.float32)
    torch.manual_seed(1)
    policy = load_policy(folder, Precision.float32, LORA)
    torch.manual_seed(2)
    again = load_policy(folder, Precision.float32, LORA)
    assert torch.equal(score(policy), score(plain))
    ours, theirs = trained(policy), trained(again)
    assert len(ours) == 2 * 3 * tiny.LAYERS
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    draws = [a for name, a in ours.items() if "lora_A" in name and "q_proj" in name]
    assert not torch.equal(*draws)


def test_merged_parts_are_the_model_under_its_own_names(folder: Path) -> None:
    plain, policy = load_policy(folder, Precision.float32), load_policy(folder, Precision.float32, LORA)
    shake(policy)
    before, parts = frozen(policy), adapters.parts(policy)
    assert [part.name for part in parts] == [name for name, _ in plain.named_parameters()]
    assert sum(part.adapter is not None for part in parts) == 3 * tiny.LAYERS
    with torch.no_grad():
        for part, p in zip(parts, plain.parameters(), strict=True):
            p.copy_(part.merged())
    assert plain.lm.lm_head.weight is plain.lm.model.embed_tokens.weight
    assert torch.allclose(score(policy), score(plain), atol=1e-4)
    assert (score(policy) - score(load_policy(folder, Precision.float32))).abs().max() > 0.1
    assert all(torch.equal(p, before[name]) for name, p in frozen(policy).items())


def test_without_its_adapters_the_policy_is_the_base(folder: Path) -> None:
    policy = load_policy(folder, Precision.float32, LORA)
    base, names = score(policy), trained(policy).keys()
    shake(policy)
    with adapters.disabled(policy):
        assert torch.equal(score(policy), base)
    assert (score(policy) - base).abs().max() > 0.1
    assert trained(policy).keys() == names


def test_an_update_trains_every_adapter_and_nothing_else(folder: Path) -> None:
    """Fault 13 of the authors' code: an adapter loaded frozen, so that only the value head learned."""
    ranks, algorithm = alone(), load(["algorithm.minibatches=2", "algorithm.epochs=2"]).algorithm
    policy, critic = (make(folder, Precision.float32, LORA) for make in (load_policy, load_critic))
    engines = [tiny.PlainEngine(module, ranks) for module in (policy, critic)]
    reached: set[int] = set()
    for p in (*policy.parameters(), *critic.parameters()):
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: reached.add(id(p)) if p.grad.any() else None)  # type: ignore[union-attr]
    before = [(frozen(module), trained(module)) for module in (policy, critic)]
    models = Separate(*engines, load_policy(folder, Precision.float32))
    setup = Setup(
        models=models,
        algorithm=algorithm,
        ranks=ranks,
        kl_coef=0.05,
        pad_id=0,
        micro_batch_tokens=10_000,
        train_policy=True,
        seed=3,
    )
    metrics = update(batch.minibatches(tiny.trajectories(12), 2, seed=3), setup)
    assert metrics["first_ratio_deviation"] < 1e-5
    for module, (kept, learned) in zip((policy, critic), before, strict=True):
        assert all(torch.equal(p, kept[name]) for name, p in frozen(module).items())
        for name, p in module.named_parameters():
            if p.requires_grad:
                assert id(p) in reached, f"{name} received no gradient"
                assert not torch.equal(p, learned[name]), f"{name} did not change"


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "input_layernorm", "qproj"])
def test_a_target_that_is_no_layer_of_its_own_is_refused(name: str, folder: Path) -> None:
    """lm_head is tied here: its adapter would change the embedding too once it is merged."""
    with pytest.raises(ValueError, match=f"no linear layer of its own called {name}; choose among down_proj, gate"):
        load_policy(folder, Precision.float32, Lora(rank=2, alpha=2, targets=["q_proj", name]))
