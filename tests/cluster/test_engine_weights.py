"""A real vLLM engine against transformers: log-probs, seeds, stops, and weights that arrive and are proved."""

import copy
import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.exceptions import GetTimeoutError
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cluster.engine_args import engine_env
from cluster.learner import LearnerGroup
from cluster.rollout import RolloutPool
from cluster.weights import CanaryFailed, WeightPush, WeightSender
from cluster.worker import RolloutWorker
from smartrag import ROOT, adapters
from smartrag.actor_critic import Separate
from smartrag.batch import collate
from smartrag.choices import Critic
from smartrag.compose import load
from smartrag.config import LearnerGroup as LearnerSettings
from smartrag.config import Lora, Run
from smartrag.episode import run_episode
from smartrag.evaluation.evaluate import run_all
from smartrag.evaluation.uncertainty import entropy
from smartrag.experience import gather
from smartrag.model import Policy
from smartrag.ranks import alone
from smartrag.trajectory import to_trajectory
from smartrag.types import Completion, Episode, EpisodeFailed, EpisodeRequest, Gate, Hits, Question, Stop
from tests import tiny, toys
from tests.processes import titled

pytestmark = pytest.mark.slow

CONTEXT = 512
CANARY = list(range(3, 60))


class OpenWorker(RolloutWorker):
    """Lets the tests generate without an episode around it."""

    async def generate(self, ids: Sequence[int], tokens: int, temperature: float, seed: int) -> Completion:
        return await self.engine(
            ids, max_new_tokens=tokens, temperature=temperature, seed=seed, request_id=f"test-{seed}"
        )

    async def ask(self, request: EpisodeRequest, temperature: float) -> Episode:
        """An episode that finds passages whatever its query. A turn of 24 tokens counts as ended: random weights seldom
        end one, a search that does not end is none, and the longer it is the likelier it holds a second tag."""

        async def generate(ids: Sequence[int], **rest: Any) -> Completion:
            return dataclasses.replace(await self.engine(ids, **rest | {"max_new_tokens": 24}), stop=Stop.END)

        async def retrieve(query: str, k: int) -> Hits:
            return Hits((toys.OSLO, toys.BERGEN)[:k])

        return await run_episode(request, generate, retrieve, self.prompt, temperature=temperature)

    async def plant(self, planted: bool) -> None:
        await self.engine._llm.collective_rpc("forget_to_repack", args=(planted,))

    async def pid(self) -> int:
        return os.getpid()


class HfLearner:
    """Stands in for the DeepSpeed learner: a transformers model whose weights jump when told."""

    def __init__(self, path: str):
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.before = self.model  # what it was before the last jump
        self.breaks = 0  # sends that break off half-way
        self.sender = WeightSender()

    def weight_metadata(self) -> list[tuple[str, str, tuple[int, ...]]]:
        return [(name, "float32", tuple(p.shape)) for name, p in self.model.named_parameters()]

    def connect_weights(self, init_info: dict[str, Any]) -> None:
        self.sender.connect(init_info)

    def send_weights(self, bucket_mib: int) -> None:
        self.sender.send(self._stream(), bucket_mib)

    def _stream(self) -> Iterator[tuple[str, torch.Tensor]]:
        for i, item in enumerate(self.model.named_parameters()):
            if self.breaks and i == len(self.weight_metadata()) - 1:
                self.breaks -= 1
                raise RuntimeError("planted")
            yield item

    def break_off(self) -> None:
        self.breaks = 1

    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        return self.logprobs(token_ids, 1.0, False)

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int], temperature: float, before: bool) -> list[float]:
        """Of tokens 1.. given those before."""
        logits = (self.before if before else self.model)(torch.tensor([ids])).logits[0, :-1] / temperature
        return logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()

    def weights(self) -> Any:
        return self.model

    @torch.no_grad()
    def jump(self, seed: int) -> None:
        self.before = copy.deepcopy(self.model)
        generator = torch.Generator().manual_seed(seed)
        for p in self.model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


@dataclass
class World:
    tied: bool
    path: str
    pool: RolloutPool
    learner: Any
    push: WeightPush
    versions: Iterator[int]
    seeds: Iterator[int]
    end_id: int

    @property
    def worker(self) -> Any:
        return self.pool.handles()[0]

    def generate(self, ids: Sequence[int], tokens: int = 24, temperature: float = 1.0, seed: int = 1) -> Completion:
        return ray.get(self.worker.generate.remote(ids, tokens, temperature, seed), timeout=300)

    def gaps(
        self, ids: Sequence[int], completion: Completion, temperature: float = 1.0, *, before: bool = False
    ) -> torch.Tensor:
        """|engine - transformers| of a completion's log-probs, under the learner's weights or those before its jump."""
        all_ids = [*ids, *completion.token_ids]
        found = ray.get(self.learner.logprobs.remote(all_ids, temperature, before))
        return (torch.tensor(completion.logprobs) - torch.tensor(found[len(ids) - 1 :])).abs()


def run_of(workers: int = 1) -> Run:
    run = load([])
    model = dataclasses.replace(run.model, context_tokens=CONTEXT, new_tokens=48, passage_tokens=40, instruction="")
    # Few prompt tokens a step, so that prompts compete for them.
    extension = {"worker_extension_cls": "tests.cluster.faults.Faults", "max_num_batched_tokens": CONTEXT}
    engine = dataclasses.replace(
        run.cluster.engine, workers=workers, cpus=0.5, kv_cache_gib=0.25, concurrency=32, engine_args=extension
    )
    cluster = dataclasses.replace(
        run.cluster, engine=engine, bucket_mib=1, canary_tolerance=1e-3, placement_timeout_s=300.0, call_timeout_s=120.0
    )
    return dataclasses.replace(run, model=model, cluster=cluster)


def tiny_model(folder: Path, tied: bool) -> str:
    """Random weights with sharp enough distributions, and a chat tokenizer of bytes."""
    torch.manual_seed(0)
    tokenizer = toys.tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=304,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=5,  # not our end token: the engine must not heed it
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["tied", pytest.param("untied", marks=pytest.mark.nightly)])
def world(
    request: pytest.FixtureRequest, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    tied = request.param == "tied"
    path = tiny_model(tmp_path_factory.mktemp(request.param), tied)
    run = run_of()
    env = engine_env(run.cluster) | {"PYTHONPATH": str(ROOT)}
    learner = ray.remote(HfLearner).options(num_cpus=0.5).remote(path)
    pool = RolloutPool(run.cluster, OpenWorker, (run, path, toys.Shelf(toys.OSLO)), env=env)
    push = WeightPush(pool, [learner], run.cluster, CANARY)
    yield World(tied, path, pool, learner, push, itertools.count(3), itertools.count(100), toys.prompt().end_id)
    pool.close()
    ray.kill(learner)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_transformers(world: World, temperature: float) -> None:
    worst = 0.0
    for seed in range(6):
        ids = list(range(10 + seed, 70 + seed))
        completion = world.generate(ids, temperature=temperature, seed=seed)
        worst = max(worst, float(world.gaps(ids, completion, temperature).max()))
    print(f"engine against transformers, temperature {temperature}: {worst:.2g} nats")
    assert worst < 2e-4


def test_greedy_takes_the_best_token_and_tells_how_sure_it_is(world: World) -> None:
    ids = list(range(10, 40))
    completion = world.generate(ids, tokens=6, temperature=0.0)
    logprobs = [
        ray.get(world.learner.logprobs.remote([*ids, token], 1.0, False))[-1] for token in range(len(toys.tokenizer()))
    ]
    best = sorted(logprobs, reverse=True)
    assert completion.token_ids[0] == logprobs.index(best[0])
    assert completion.logprobs[0] == pytest.approx(best[0], abs=1e-3)
    assert completion.margins[0] == pytest.approx(best[0] - best[1], abs=1e-3)
    assert completion.entropies[0] == pytest.approx(entropy(best[:20]), abs=1e-3)
    assert len(completion.margins) == len(completion.entropies) == len(completion.token_ids)
    assert world.generate(ids, tokens=6).entropies == ()  # sampled: nothing beyond the sampled token is computed


def test_same_seed_same_tokens(world: World) -> None:
    ids = list(range(10, 40))
    assert world.generate(ids, seed=5) == world.generate(ids, seed=5)
    assert world.generate(ids, seed=5).token_ids != world.generate(ids, seed=6).token_ids


def test_prompts_that_do_not_fit_into_one_step_are_not_cut(world: World) -> None:
    """vLLM dies of a seeded request whose prompt it takes in two parts on a CPU."""
    prompts = [list(range(5 + i, 5 + i + CONTEXT // 2 - 3)) for i in range(12)]
    refs = [world.worker.generate.remote(ids, 4, 1.0, i) for i, ids in enumerate(prompts)]
    together = ray.get(refs, timeout=300)
    assert [c.token_ids for c in together] == [
        world.generate(ids, tokens=4, seed=i).token_ids for i, ids in enumerate(prompts)
    ]


def test_the_end_token_is_kept_and_nothing_else_ends(world: World) -> None:
    ids = list(range(10, 40))
    refs = [world.worker.generate.remote(ids, 200, 1.5, seed) for seed in range(32)]
    found = ray.get(refs, timeout=300)
    assert {completion.stop for completion in found} == {Stop.END, Stop.LENGTH}
    for completion in found:
        assert len(completion.logprobs) == len(completion.weight_versions) == len(completion.token_ids)
        assert world.end_id not in completion.token_ids[:-1]
        assert (completion.token_ids[-1] == world.end_id) == (completion.stop is Stop.END)
        assert (len(completion.token_ids) == 200) or completion.stop is Stop.END
    assert any(5 in completion.token_ids[:-1] for completion in found)  # the end token of the model's config


def test_a_push_of_changed_weights_arrives(world: World) -> None:
    ids = list(range(20, 180))  # five blocks of the prefix cache
    old = world.generate(ids)
    ray.get(world.learner.jump.remote(1))
    version = next(world.versions)
    report = world.push(version)
    print({name: round(value, 6) for name, value in report.items()})
    assert 0 <= report["canary_gap"] < 1e-3
    new = world.generate(ids)
    assert world.gaps(ids, new).max() < 1e-3
    assert world.gaps(ids, old).max() > 0.1  # they did change
    assert set(new.weight_versions) == {version}


def test_a_generation_goes_on_across_a_push(world: World) -> None:
    world.push(first := next(world.versions))
    ids = list(range(20, 60))
    refs = [world.worker.generate.remote(ids, CONTEXT - 60, 1.0, next(world.seeds)) for _ in range(8)]
    time.sleep(0.2)
    ray.get(world.learner.jump.remote(2))
    world.push(second := next(world.versions))
    completions = [c for c in ray.get(refs, timeout=300) if set(c.weight_versions) == {first, second}]
    assert completions, "no generation was under way; make them longer"
    for completion in completions:
        assert list(completion.weight_versions) == sorted(completion.weight_versions)
        new = torch.tensor(completion.weight_versions) == second
        assert world.gaps(ids, completion)[new].max() < 1e-3
        assert world.gaps(ids, completion, before=True)[~new].max() < 1e-3


def test_a_push_that_breaks_off_half_way_is_repeated(world: World) -> None:
    ray.get(world.learner.jump.remote(4))
    ray.get(world.learner.break_off.remote())  # in the second bucket; the first ends between the parts of one layer
    assert world.push(next(world.versions))["canary_gap"] < 1e-3
    ids = list(range(20, 60))
    assert world.gaps(ids, world.generate(ids)).max() < 1e-3


def test_episodes_run_through_the_pool(world: World) -> None:
    requests = [EpisodeRequest(f"{i:032d}", Question(f"q{i}", toys.QUESTION, ("Norway",)), 1, 1) for i in range(12)]
    episodes, again = (run_all(world.pool, requests) for _ in range(2))
    assert [episode.id for episode in episodes] == [request.id for request in requests]
    assert [e.turns[0].completion.token_ids for e in again] == [e.turns[0].completion.token_ids for e in episodes]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_ratio_is_one_for_every_policy_token_of_real_episodes(world: World, temperature: float) -> None:
    """Two turns with passages between: π_learner / π_engine as an update has it before its first step."""
    version = next(world.versions)
    world.push(version)
    asked = Question("q", toys.QUESTION, ("Norway",))
    requests = [EpisodeRequest(f"{i:032d}", asked, quota=1, k=1 + i % 2, gate=Gate.ALWAYS) for i in range(24)]
    episodes = ray.get([world.worker.ask.remote(request, temperature) for request in requests], timeout=300)
    searched = [e for e in episodes if e.retrievals]
    assert len(searched) >= 6
    assert all(len(e.turns) == 2 and "Norway" in passages_of(e) for e in searched)
    b = collate([to_trajectory(e, [0.0] * len(e.turns), i) for i, e in enumerate(episodes)], pad_id=0)
    policy = Policy(ray.get(world.learner.weights.remote()))
    algorithm = load(["algorithm=reinforce_pp", f"algorithm.temperature={temperature}"]).algorithm
    models = Separate(tiny.PlainEngine(policy, alone()), None, policy)
    old = gather(b, models, algorithm, alone(), kl_coef=0.0, micro_batch_tokens=2048).old
    off = ((old - b.logprobs).exp() - 1)[b.mask].abs()
    print(f"temperature {temperature}: |ratio - 1| of {len(off)} tokens is at most {off.max():.1e}")
    assert off.max() < 1e-4
    assert {v for e in episodes for t in e.turns for v in t.completion.weight_versions} == {version}
    wrong = dataclasses.replace(algorithm, temperature=temperature + 0.05)  # the tolerance tells temperatures apart
    other = gather(b, models, wrong, alone(), kl_coef=0.0, micro_batch_tokens=2048).old
    assert ((other - b.logprobs).exp() - 1)[b.mask].abs().max() > 0.01


def passages_of(episode: Episode) -> str:
    return toys.tokenizer().decode(list(episode.turns[1].context_ids))


def test_the_canary_catches_a_tied_head_that_kept_its_old_copy(world: World) -> None:
    if not world.tied:
        pytest.skip("an untied head is loaded like any other layer")
    world.push(next(world.versions))
    ids = list(range(20, 60))
    begun = [world.worker.generate.remote(ids, CONTEXT - 60, 1.0, next(world.seeds)) for _ in range(8)]
    time.sleep(0.2)
    ray.get(world.worker.plant.remote(True))
    ray.get(world.learner.jump.remote(3))
    with pytest.raises(CanaryFailed, match=r"engine 0 does not hold the learner's weights.*gap") as caught:
        world.push(next(world.versions))
    print(caught.value)
    voided = 0
    for ref in begun:
        try:
            ray.get(ref, timeout=60)
        except EpisodeFailed:
            voided += 1
    assert voided, "no generation was under way"
    waiting = world.worker.generate.remote(ids, 4, 1.0, 1)
    with pytest.raises(GetTimeoutError):
        ray.get(waiting, timeout=1.0)  # it does not serve weights that are not proved
    ray.get(world.worker.plant.remote(False))
    version = next(world.versions)
    assert world.push(version)["canary_gap"] < 1e-3
    assert set(ray.get(waiting, timeout=300).weight_versions) == {version}


def test_adapters_arrive_merged_and_the_canary_refuses_a_push_without_them(world: World) -> None:
    """The real learner, whose adapters jump: what the engine then holds is W + (α/r) B A, under W's name. A value head
    on the trunk stays at home."""
    run = run_of()
    model = dataclasses.replace(run.model, lora=Lora(rank=4, alpha=8, targets=["q_proj", "v_proj", "down_proj"]))
    algorithm = dataclasses.replace(run.algorithm, critic=Critic.shared)
    changed = dataclasses.replace(run, model=model, algorithm=algorithm, learner=one_rank(run))
    group = LearnerGroup(changed, Path(world.path))
    push = WeightPush(world.pool, group.ranks, run.cluster, CANARY)
    try:
        ids = list(range(20, 180))
        assert push(next(world.versions))["canary_gap"] < 1e-3
        old = world.generate(ids)
        group.ranks[0].__ray_call__.remote(shake_adapters)
        report = push(next(world.versions))
        print({name: round(value, 6) for name, value in report.items()})
        new = world.generate(ids)
        found = group.prompt_logprobs([*ids, *new.token_ids])[len(ids) - 1 :]
        assert new.logprobs == pytest.approx(found, abs=1e-3)
        found = group.prompt_logprobs([*ids, *old.token_ids])[len(ids) - 1 :]
        assert old.logprobs != pytest.approx(found, abs=0.1)  # they did change
        group.ranks[0].__ray_call__.remote(forget_adapters)
        with pytest.raises(CanaryFailed, match=r"engine 0 does not hold the learner's weights") as caught:
            push(next(world.versions))
        print(caught.value)
    finally:
        group.close()
        world.push._members = {}  # the engine has left its group
    assert world.push(next(world.versions))["canary_gap"] < 1e-3


def one_rank(run: Run) -> LearnerSettings:
    return dataclasses.replace(run.learner, ranks=1, cpus=0.5, zero_stage=0)


def shake_adapters(rank: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for p in rank._lm.parameters():
        if p.requires_grad:
            p.data.add_(0.2 * torch.randn(p.shape, generator=generator))


def forget_adapters(rank: Any) -> None:
    """A fault: the base goes out alone."""
    rank._weights = lambda: ((part.name, part.weight.detach()) for part in adapters.parts(rank._lm))


@pytest.mark.fault("R3", "vLLM's core stands still, its worker lives")
def test_a_core_that_hangs_tells_where_it_stands(world: World) -> None:
    """Stopped, it keeps the question until it is let go; a core that hangs by itself answers at once."""
    worker = psutil.Process(ray.get(world.worker.pid.remote()))
    [core] = titled(worker)["EngineCore"]
    core.suspend()
    check = world.worker.ping.remote()
    assert ray.wait([check], timeout=6)[0] == [], "it cannot have scored a token"
    core.resume()
    assert ray.get(check, timeout=60) == "pong"
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    [told] = [path.read_text(errors="replace") for path in logs.glob(f"worker-*-{worker.pid}.err")]
    assert f"vLLM's [{core.pid}] did not score a token in 3 s" in told
    assert "most recent call first" in told
    assert "run_busy_loop" in told, "the core's main thread"


@pytest.mark.fault("R2", "vLLM's core is killed, its worker lives")
def test_an_engine_that_dies_comes_back_with_the_current_weights(world: World) -> None:
    if not world.tied:
        pytest.skip("once is enough")
    version = next(world.versions)
    world.push(version)
    world.pool.on_restored = lambda workers: world.push(version)
    actor = psutil.Process(ray.get(world.worker.pid.remote()))
    requests = [EpisodeRequest(f"{i:032d}", Question(f"q{i}", toys.QUESTION, ("Norway",)), 1, 1) for i in range(40)]
    episodes: list[Episode] = []
    for episode in filter(None, world.pool(requests)):
        if not episodes:
            for child in actor.children(recursive=True):
                if "EngineCore" in child.name() or "EngineCore" in " ".join(child.cmdline()):
                    child.kill()
        episodes.append(episode)
    assert sorted(e.id for e in episodes) == [r.id for r in requests]
    assert {v for e in episodes for t in e.turns for v in t.completion.weight_versions} == {version}
    assert not actor.is_running()
