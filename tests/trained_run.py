"""A finished run with checkpoints of models/tiny, for tests of what asks or ships a trained policy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cluster.checkpoint import Checkpoints
from smartrag import ROOT
from smartrag.compose import as_yaml, load
from smartrag.config import Run
from tests import run_folder

TINY = ROOT / "models" / "tiny"


def policy(folder: Path, noise: float) -> None:
    """models/tiny with `noise` on its weights, written as the learner writes it, with the sampling habits of a base."""
    model = AutoModelForCausalLM.from_pretrained(TINY)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights += noise * torch.randn(weights.shape, generator=drawn)
    folder.mkdir()
    save_torch_state_dict({n: p.detach().clone() for n, p in model.named_parameters()}, folder)
    model.config.save_pretrained(folder)
    habits = GenerationConfig(do_sample=True, top_p=0.5, repetition_penalty=1.5, eos_token_id=[0, 7])
    habits.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)


def write(
    home: Path,
    steps: Sequence[int] = (run_folder.STEPS,),
    told: str = "",
    noise: float = 0.02,
    changes: Sequence[str] = (),
) -> Run:
    """A finished run with checkpoints after `steps`, the later the noisier."""
    run_folder.write_run(home, np.random.default_rng(0))
    run = load(["+experiment=quickstart", f"train.steps={run_folder.STEPS}", f"model.instruction='{told}'", *changes])
    (home / "config.yaml").write_text(as_yaml(run))
    for step in steps:
        with Checkpoints(home / "checkpoints", keep=9).publish(step, {"steps_done": step}) as draft:
            (draft / "learner").mkdir()
            (draft / "learner" / "optimiser.pt").write_bytes(b"never read, never shipped")
            policy(draft / "policy", noise * step)
    return run
