"""Adapters on real DeepSpeed and gloo, two ranks: only they are trained, the base is the reference, all is resumed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from cluster.learner import LearnerGroup
from smartrag.config import Lora, Run
from tests import tiny
from tests.cluster.test_learner import PROMPT, changed, gap, settings, state, weights

pytestmark = pytest.mark.slow

LORA = Lora(rank=4, alpha=8, targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])


def run_of(stage: int) -> Run:
    run = settings(2, stage)
    run.model.lora = LORA
    return run


class Life:
    """Warm-up, snapshot, two updates, with checkpoints before each."""

    def __init__(self, stage: int, folder: Path, home: Path):
        self.home, self.run, self.folder = home, run_of(stage), folder
        group = self.group = LearnerGroup(self.run, folder)
        self.born = state(group)
        warm = [group.imitate(tiny.trajectories(12, seed=s), 1e-2)["loss"] for s in (1, 1, 1, 1)]
        assert warm[-1] < warm[0]
        self.warm, self.warm_weights = state(group), weights(group, home / "warm")
        group.snapshot_reference()
        self.fresh, self.fresh_weights = state(group), weights(group, home / "reference")
        group.save(str(home / "fresh"))
        self.first = tiny.timeless(group.update(tiny.trajectories(12, seed=2), 0))
        group.save(str(home / "learner"))
        self.middle = state(group)
        self.second = tiny.timeless(group.update(tiny.trajectories(12, seed=3), 1))
        self.end, self.weights = state(group), weights(group, home / "policy")


STAGES = [
    pytest.param(0, id="zero0", marks=pytest.mark.nightly),
    pytest.param(2, id="zero2", marks=pytest.mark.nightly),
    pytest.param(3, id="zero3"),
]


@pytest.fixture(scope="module", params=STAGES)
def life(request: pytest.FixtureRequest, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    made = Life(
        request.param, tiny.folder(tmp_path_factory.mktemp("tiny")), tmp_path_factory.mktemp(f"lora{request.param}")
    )
    yield made
    made.group.close()


def test_only_adapters_and_the_value_head_are_trained(life: Life) -> None:
    adapters = {name for name in life.born if "lora_" in name}
    assert len(adapters) == 2 * 2 * len(LORA.targets) * tiny.LAYERS
    assert {name for name, (trained, _) in life.born.items() if trained} == adapters | {
        "Critic.head.weight",
        "Critic.head.bias",
    }
    assert changed(life.born, life.warm) == {name for name in adapters if name.startswith("Policy")}
    assert changed(life.fresh, life.middle) == adapters | {"Critic.head.weight", "Critic.head.bias"}


def test_the_snapshot_moves_the_adapters_into_the_base(life: Life) -> None:
    moved = changed(life.warm, life.fresh)
    assert moved == {name for name in life.born if name.startswith("Policy") and ("base_layer" in name or "_B" in name)}
    assert all(not p.any() for name, (_, p) in life.fresh.items() if name.startswith("Policy") and "lora_B" in name)
    assert gap(life.warm_weights, life.fresh_weights) == 0  # the engines see no difference
    assert life.first["kl_ref"] == 0  # base and policy are one model before the first step ...
    assert life.first["first_ratio_deviation"] < 1e-4
    assert abs(life.second["kl_ref"]) > 1e-5  # ... and then part


@pytest.mark.nightly
def test_stages_agree(life: Life, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With each other: each leaves its weights for the next."""
    kept = tmp_path_factory.getbasetemp() / "lora-weights.pt"
    if kept.exists():
        theirs = torch.load(kept)
        found = gap(theirs, life.weights)
        print(f"{life.home.name}: parameters differ by at most {found:.1e}")
        assert found < 1e-5
        assert gap(theirs, life.fresh_weights) > 1e-3
    else:
        torch.save(life.weights, kept)


def test_an_export_is_a_plain_model_of_equal_logprobs(life: Life) -> None:
    path = life.home / "policy"
    assert set(life.weights) == set(tiny.llama().state_dict()) - {"lm_head.weight"}  # tied
    lm = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        logp = lm(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    assert life.group.prompt_logprobs(PROMPT) == pytest.approx(logp.tolist(), abs=1e-5)
    metadata = ray.get(life.group.ranks[0].weight_metadata.remote())
    assert {name: tuple(shape) for name, _, shape in metadata} == {n: tuple(t.shape) for n, t in life.weights.items()}


def test_everything_is_resumed_bit_for_bit(life: Life) -> None:
    """By the group itself and by a new one, whose base is not yet folded."""
    life.group.load(str(life.home / "fresh"))
    assert not changed(life.fresh, state(life.group))
    assert tiny.timeless(life.group.update(tiny.trajectories(12, seed=2), 0)) == life.first
    life.group.close()
    life.group = LearnerGroup(life.run, life.folder)
    life.group.load(str(life.home / "learner"))
    assert not changed(life.middle, state(life.group))
    assert tiny.timeless(life.group.update(tiny.trajectories(12, seed=3), 1)) == life.second
    assert not changed(life.end, state(life.group))


def test_a_checkpoint_with_adapters_is_refused_without_them(life: Life) -> None:
    life.group.close()
    life.group = LearnerGroup(settings(2, life.run.learner.zero_stage), life.folder)
    with pytest.raises(ValueError, match=r"model\.lora=\{rank: 4, alpha: 8, targets: \[q_proj, "):
        life.group.load(str(life.home / "fresh"))
