"""The learner on a GPU: NCCL, bfloat16 and every ZeRO stage learn what the CPU's float32 learner does."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.learner import LearnerGroup
from smartrag.choices import Precision
from smartrag.config import Lora
from tests import tiny
from tests.cluster.test_learner import settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


@dataclass
class Life:
    """What a learner of one rank comes to in two updates."""

    metrics: list[dict[str, float]]
    weights: dict[str, torch.Tensor]
    hashes: tuple[str, str]  # after the second update; after it again, from the checkpoint between the two


def live(folder: Path, home: Path, stage: int, *, gpu: bool, bf16: bool = False, lora: Lora | None = None) -> Life:
    run = settings(1, stage, 4096)
    run.learner.gpus = 1.0 if gpu else 0.0
    run.model.precision = Precision.bfloat16 if bf16 else Precision.float32
    run.model.lora = lora
    group = LearnerGroup(run, folder)
    try:
        group.snapshot_reference()
        metrics = [tiny.timeless(group.update(tiny.trajectories(32, seed=2), 0))]
        group.save(str(home / "learner"))
        metrics.append(tiny.timeless(group.update(tiny.trajectories(32, seed=3), 1)))
        once = group.param_hash()
        group.export(str(home / "policy"))
        group.written(wait=True)
        group.load(str(home / "learner"))
        group.update(tiny.trajectories(32, seed=3), 1)
        return Life(metrics, load_file(str(home / "policy" / "model.safetensors")), (once, group.param_hash()))
    finally:
        group.close()


@pytest.fixture(scope="module")
def on_cpu(ray_session: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    return live(folder, tmp_path_factory.mktemp("cpu"), 0, gpu=False)


def gap(a: Life, b: Life) -> float:
    assert a.weights.keys() == b.weights.keys()
    return max((a.weights[n].float() - b.weights[n].float()).abs().max().item() for n in a.weights)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_float32_is_the_cpus(on_cpu: Life, folder: Path, tmp_path: Path, stage: int) -> None:
    life = live(folder, tmp_path, stage, gpu=True)
    print(f"ZeRO {stage}, float32: parameters are off the CPU's by at most {gap(life, on_cpu):.1e}")
    assert gap(life, on_cpu) < 1e-4  # four steps of 3e-4 each
    assert life.metrics[0] == pytest.approx(on_cpu.metrics[0], rel=5e-3, abs=1e-3)
    assert life.metrics[0]["first_ratio_deviation"] < 1e-4
    assert life.hashes[0] == life.hashes[1], "a resume is bit for bit"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_goes_the_same_way(on_cpu: Life, folder: Path, tmp_path: Path, stage: int) -> None:
    life = live(folder, tmp_path, stage, gpu=True, bf16=True)
    first, theirs = life.metrics[0], on_cpu.metrics[0]
    print(
        f"ZeRO {stage}, bfloat16: parameters are off float32's by at most {gap(life, on_cpu):.1e}, "
        f"first ratio off 1 by at most {first['first_ratio_deviation']:.1e}"
    )
    assert gap(life, on_cpu) < 2e-2  # weights reach 0.8, where numbers of bfloat16 are 0.004 apart
    assert first["value_loss"] == pytest.approx(theirs["value_loss"], rel=0.05)
    assert first["entropy"] == pytest.approx(theirs["entropy"], rel=0.05)
    assert first["first_ratio_deviation"] < 0.05
    assert all(m["skipped_steps"] == 0 and math.isfinite(m["policy_loss"]) for m in life.metrics)
    assert life.hashes[0] == life.hashes[1]


def test_adapters_learn_in_bfloat16(ray_session: None, folder: Path, tmp_path: Path) -> None:
    lora = Lora(rank=4, alpha=8, targets=["q_proj", "v_proj", "down_proj"])
    life = live(folder, tmp_path, 2, gpu=True, bf16=True, lora=lora)
    before = load_file(str(folder / "model.safetensors"))
    assert any(not torch.equal(before[n].bfloat16(), w.bfloat16()) for n, w in life.weights.items())
    assert life.metrics[1]["skipped_steps"] == 0
    assert life.hashes[0] == life.hashes[1]
