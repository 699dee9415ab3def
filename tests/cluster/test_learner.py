"""The learner on real DeepSpeed and gloo: ranks, ZeRO stages and how a batch is cut must not change what is learned."""

import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file

from cluster import zero
from cluster.learner import LearnerGroup, LearnerLost
from cluster.rank import LearnerRank
from cluster.weights import gather
from cluster.wire import broadcast, buckets, empty, gloo_group, unpack
from cluster.zero import _interface, _merged
from smartrag import compose, packing
from smartrag.choices import Precision
from smartrag.config import Run
from smartrag.model import load_policy
from tests import tiny
from tests.fault_table import Row
from tests.processes import free_port

PROMPT = [5, 6, 7, 8, 9, 10]
EPISODES = 32  # two minibatches, two ranks: eight trajectories a rank and step
WHOLE = 4096  # tokens of a micro-batch that holds everything


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


def settings(ranks: int, stage: int, micro_batch_tokens: int = 120) -> Run:
    changes = {
        "learner.ranks": ranks,
        "learner.zero_stage": stage,
        "learner.cpus": 0.1,
        "learner.micro_batch_tokens": micro_batch_tokens,
        "learner.learning_rate": 3e-4,
        "learner.critic_learning_rate": 5e-4,
        "algorithm.kl_coef": 0.05,
        "algorithm.minibatches": 2,
        "train.episodes": EPISODES,
        "warmup.batch": 12,
        "cluster.call_timeout_s": 120,
    }
    run = compose.load([f"{name}={x}" for name, x in changes.items()])
    if stage == 3:  # split even parameters as small as these
        run.learner.deepspeed = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    return run


def weights(group: LearnerGroup, path: Path) -> dict[str, torch.Tensor]:
    group.export(str(path))
    assert group.written(wait=True)
    return load_file(str(path / "model.safetensors"))


def raw(rank: Any) -> dict[str, tuple[bool, torch.Tensor]]:
    """Every parameter of policy and critic as it is, adapters and base apart: (whether it is trained, whole)."""
    found = {}
    for engine in rank._engines.values():
        for name, p in engine.module.named_parameters():
            with zero.whole([p]):
                found[f"{type(engine.module).__name__}.{name}"] = (p.requires_grad, p.detach().clone())
    return found


def state(group: LearnerGroup) -> dict[str, tuple[bool, torch.Tensor]]:
    ranks = ray.get([rank.__ray_call__.remote(raw) for rank in group.ranks])
    for other in ranks[1:]:
        assert all(torch.equal(p, other[name][1]) for name, (_, p) in ranks[0].items())
    return ranks[0]


def changed(before: dict[str, tuple[bool, torch.Tensor]], after: dict[str, tuple[bool, torch.Tensor]]) -> set[str]:
    return {name for name, (_, p) in before.items() if not torch.equal(p, after[name][1])}


def gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_settings_of_the_user_have_the_last_word() -> None:
    ours = {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}
    both = _merged(ours, {"zero_optimization": {"overlap_comm": False}, "gradient_clipping": 2.0})
    assert both == {"zero_optimization": {"stage": 2, "overlap_comm": False}, "gradient_clipping": 2.0}


def test_the_interface_of_an_address() -> None:
    assert _interface("127.0.0.1") == _interface("127.0.0.2")
    with pytest.raises(RuntimeError, match="no network interface"):
        _interface("192.0.2.1")


# ---------------------------------------------------------------------------------------------------------------------


def begin(run: Run, folder: Path, *, packed: bool = True) -> LearnerGroup:
    group = LearnerGroup(run, folder)
    if not packed:
        ray.get([rank.__ray_call__.remote(leave_unpacked) for rank in group.ranks])
    return group


def leave_unpacked(_rank: Any) -> None:
    packing.plan = tiny.unpacked_plan


class Life:
    """What one group came to: warm-up, snapshot, two updates, with a checkpoint in between."""

    def __init__(self, run: Run, folder: Path, home: Path, *, packed: bool = True):
        self.packed = packed
        self.group = begin(run, folder, packed=packed)
        try:
            self._live(home)
        except BaseException:
            self.group.close()
            raise

    def _live(self, home: Path) -> None:
        group = self.group
        warm = [group.imitate(tiny.trajectories(12, seed=s), 3e-3)["loss"] for s in (1, 1)]
        assert warm[1] < warm[0]
        group.snapshot_reference()
        group.save(str(home / "fresh"))  # as every run does before PPO: the critic has never stepped
        self.first = tiny.timeless(group.update(tiny.trajectories(EPISODES, seed=2), 0))
        group.save(str(home / "learner"))
        self.saved_hash = group.param_hash()
        start = time.monotonic()
        self.second = tiny.timeless(group.update(tiny.trajectories(EPISODES, seed=3), 1))
        self.seconds = time.monotonic() - start
        self.hash, self.weights = group.param_hash(), weights(group, home / "policy")
        self.end = state(group)
        self.parameters = {name: p for name, (_, p) in self.end.items()}
        self.few = tiny.timeless(group.update(tiny.trajectories(1, seed=4), 2))  # fewer than minibatches, or ranks
        self.few_weights = weights(group, home / "few")


@pytest.fixture(scope="module")
def alone(ray_session: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """One rank, no ZeRO, one micro-batch a step: what every other arrangement must agree with."""
    life = Life(settings(1, 0, WHOLE), folder, tmp_path_factory.mktemp("alone"))
    yield life
    life.group.close()


# Two ranks: ZeRO stage, tokens of a micro-batch, whether trajectories are packed. 16 tokens hold one row.
PAIRS = [
    pytest.param((0, 16, True), id="zero0-rows", marks=pytest.mark.nightly),
    pytest.param((1, WHOLE, False), id="zero1-padded", marks=pytest.mark.nightly),
    pytest.param((2, 16, False), id="zero2-eight"),
    pytest.param((3, 120, True), id="zero3-packed"),
]


@pytest.fixture(scope="module", params=PAIRS)
def pair(
    request: pytest.FixtureRequest, ray_session: None, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Life, Path]]:
    stage, tokens, packed = request.param
    home = tmp_path_factory.mktemp(f"zero{stage}")
    life = Life(settings(2, stage, tokens), folder, home, packed=packed)
    yield life, home
    life.group.close()


@pytest.mark.slow
def test_ranks_and_stages_agree(alone: Life, pair: tuple[Life, Path], folder: Path) -> None:
    life, home = pair
    found = gap(alone.parameters, life.parameters)
    print(
        f"{home.name}: parameters differ by at most {found:.1e}; update {life.seconds:.2f} s, alone {alone.seconds:.2f}"
    )
    assert gap(alone.weights, load_file(str(folder / "model.safetensors"))) > 1e-3
    assert found < 1e-5
    assert gap(alone.few_weights, life.few_weights) < 1e-5
    assert gap(life.weights, life.few_weights) > 1e-5
    for ours, theirs in ((life.first, alone.first), (life.second, alone.second), (life.few, alone.few)):
        shape = {"padding": ours["padding"]}  # how rows fill up is each rank's own affair
        assert ours == pytest.approx(theirs | shape, rel=2e-3, abs=2e-4)
    if not life.packed:  # one trajectory a micro-batch has no padding; all of a rank in one has much
        alone_in_its_row = life.group.run.learner.micro_batch_tokens == 16
        assert life.first["padding"] == 0 if alone_in_its_row else life.first["padding"] > 0.2
    assert life.first["first_ratio_deviation"] < 1e-4
    assert life.first["skipped_steps"] == 0
    assert abs(life.first["kl_ref"]) < 1e-5  # the reference is the policy at the start of PPO ...
    assert abs(life.second["kl_ref"]) > 1e-5  # ... and stays it
    assert life.second["kl_coef"] != 0.05  # the controller has moved


@pytest.mark.slow
def test_load_takes_everything_back(pair: tuple[Life, Path]) -> None:
    """Load what was saved before each update, and make the update again: bit for bit the same."""
    life, home = pair
    life.group.load(str(home / "fresh"))
    assert tiny.timeless(life.group.update(tiny.trajectories(EPISODES, seed=2), 0)) == life.first
    life.group.load(str(home / "learner"))
    assert life.group.param_hash() == life.saved_hash
    assert tiny.timeless(life.group.update(tiny.trajectories(EPISODES, seed=3), 1)) == life.second
    assert life.group.param_hash() == life.hash


@pytest.mark.slow
def test_a_new_group_resumes_bit_for_bit(pair: tuple[Life, Path], folder: Path) -> None:
    life, home = pair
    run = life.group.run
    if run.learner.zero_stage not in (2, 3):
        pytest.skip("the stages that configurations use")
    group = begin(run, folder, packed=life.packed)
    try:
        group.load(str(home / "fresh"))
        assert tiny.timeless(group.update(tiny.trajectories(EPISODES, seed=2), 0)) == life.first
        group.load(str(home / "learner"))
        assert group.param_hash() == life.saved_hash
        assert tiny.timeless(group.update(tiny.trajectories(EPISODES, seed=3), 1)) == life.second
        assert group.param_hash() == life.hash
    finally:
        group.close()


@pytest.mark.fault("L5", "a gradient is infinite, on one rank")
@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_by_all(pair: tuple[Life, Path]) -> None:
    life, _ = pair
    episodes = tiny.trajectories(12, seed=4)
    rewards = (*episodes[0].rewards[:-1], float("inf"))
    before = life.group.param_hash()
    metrics = life.group.update([replace(episodes[0], rewards=rewards), *episodes[1:]], 2)
    # Whitening spreads one infinity over every advantage; the critic meets it in one minibatch of each epoch only.
    epochs = 2
    assert metrics["skipped_steps"] == 2 * epochs + epochs
    assert life.group.param_hash() == before
    assert life.group.update(episodes, 3)["skipped_steps"] == 0
    assert life.group.param_hash() != before


@pytest.mark.slow
def test_weights_leave_whole_and_under_their_hugging_face_names(pair: tuple[Life, Path], tmp_path: Path) -> None:
    """Receives a push as an engine would, and compares with the export; then the canary with transformers."""
    life, _ = pair
    group, exported = life.group, weights(life.group, tmp_path / "now")
    metadata = ray.get(group.ranks[0].weight_metadata.remote())
    assert {name: tuple(shape) for name, _, shape in metadata} == {n: tuple(t.shape) for n, t in exported.items()}
    assert "lm_head.weight" not in exported  # tied
    port = free_port()
    common = {"backend": "gloo", "host": "127.0.0.1", "port": port, "world_size": 2, "timeout_s": 60.0}
    connecting = [rank.connect_weights.remote(common | {"metadata": metadata, "engines": []}) for rank in group.ranks]
    engine = gloo_group("127.0.0.1", port, 1, 2, 60.0)
    gather("connect", connecting, 60)
    sending = [rank.send_weights.remote(1) for rank in group.ranks]
    received: dict[str, torch.Tensor] = {}
    for bucket in buckets(metadata, 1):
        flat = empty(bucket)
        broadcast(engine, flat)
        received |= unpack(bucket, flat)
    gather("send", sending, 60)
    assert gap(received, exported) == 0

    policy = load_policy(tmp_path / "now", Precision.float32)
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        logp = policy.lm(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    assert group.prompt_logprobs(PROMPT) == pytest.approx(logp.tolist(), abs=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_other_ranks_is_refused_before_anything_is_read(alone: Life, pair: tuple[Life, Path]) -> None:
    _, home = pair
    if home.name.startswith("zero0"):
        with pytest.raises(ValueError, match=r"learner\.ranks=2 learner\.zero_stage=0"):
            alone.group.load(str(home / "learner"))
        with pytest.raises(LearnerLost, match="has ended"):
            alone.group.param_hash()


@pytest.mark.fault("L1", "a learner rank is killed")
@pytest.mark.slow
def test_a_dead_rank_ends_the_group_at_once(ray_session: None, folder: Path, row: Row) -> None:
    group = LearnerGroup(settings(2, 2), folder)
    group.snapshot_reference()
    pids = ray.get([rank.__ray_call__.remote(lambda _: os.getpid()) for rank in group.ranks])
    os.kill(pids[1], signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(LearnerLost, match="update"):
        group.update(tiny.trajectories(12), 0)
    took = time.monotonic() - start
    assert took < 60
    row.trial(recovery_s=took)
    assert group.ranks == []
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pids[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{pids[0]}").exists()


@pytest.mark.fault("L6", "one rank's parameters are no longer the others'")
@pytest.mark.slow
def test_ranks_that_drift_apart_are_told_and_a_restarted_group_agrees(ray_session: None, folder: Path) -> None:
    def spoil(rank: Any) -> None:
        with torch.no_grad():
            next(rank._lm.parameters()).view(-1)[0] += 0.01

    run = settings(2, 0)
    group = LearnerGroup(replace(run, learner=replace(run.learner, check_every=2)), folder)
    try:
        for spoiled in (False, True):
            group.snapshot_reference()
            group.update(tiny.trajectories(12), 0)  # is not compared
            if spoiled:
                ray.get(group.ranks[1].__ray_call__.remote(spoil))
                with pytest.raises(LearnerLost, match=r"after step 2 .* different parameters \(rank 0: .*, rank 1: "):
                    group.update(tiny.trajectories(12), 1)
                assert group.ranks == []
            else:
                group.update(tiny.trajectories(12), 1)
                group.restart()
    finally:
        group.close()


class Frail(LearnerRank):
    """Ends as it starts, as often as the file `ends` beside its model says."""

    def start(self, host: str, port: int) -> None:
        left = int((self._path / "ends").read_text())
        if left:
            (self._path / "ends").write_text(str(left - 1))
            os._exit(1)
        super().start(host, port)


@pytest.mark.fault("L2", "a rank ends as it starts")
@pytest.mark.slow
def test_a_rank_that_ends_as_it_starts_is_started_again_twice(
    ray_session: None, tmp_path: Path, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.learner.LearnerRank", Frail)
    plain = tiny.folder(tmp_path)
    (plain / "ends").write_text("3")
    with pytest.raises(LearnerLost, match="failed in start"):
        LearnerGroup(settings(1, 0), plain)
    (plain / "ends").write_text("1")
    start = time.monotonic()
    group = LearnerGroup(settings(1, 0), plain)
    row.trial(recovery_s=time.monotonic() - start)
    assert len(group.param_hash()) == 64
    group.close()
    with pytest.raises(LearnerLost, match="the learner has ended"):  # and did not write what it was told to
        group.written(wait=True)


@pytest.mark.slow
def test_bad_input_keeps_its_own_error(ray_session: None, tmp_path: Path) -> None:
    plain = tiny.folder(tmp_path)
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        LearnerGroup(settings(1, 0), plain)


@pytest.mark.slow
def test_an_update_needs_a_reference_and_critic_warmup_leaves_the_policy(ray_session: None, folder: Path) -> None:
    run = settings(1, 1)
    run.algorithm.critic_warmup_steps = 1
    group = LearnerGroup(run, folder)
    try:
        group.snapshot_reference()
        before = group.param_hash()
        assert math.isfinite(group.update(tiny.trajectories(4), 0)["value_loss"])
        assert group.param_hash() == before
        assert "policy_loss" in group.update(tiny.trajectories(4), 1)
        assert group.param_hash() != before
        with pytest.raises(ValueError, match="no trajectories"):
            group.update([], 2)
    finally:
        group.close()
