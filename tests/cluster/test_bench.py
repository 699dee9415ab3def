"""`launch/bench.py` as people start it, made short; and that what peers play are the episodes of training."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.bench import peers
from smartrag import ROOT
from smartrag.compose import load
from smartrag.episode import run_episode
from smartrag.prompt import Budget, Prompt
from smartrag.types import Completion, EpisodeRequest, Gate, Passage, Question
from tests import toys
from tests.whole_run import SMALL

TINY = ROOT / "models" / "tiny"
SHELF = (Passage("p1", "Jonkoping\nJonkoping is a city in Sweden. It has 90 thousand people.", 2.0),)


def test_peers_play_the_episodes_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedily, side by side and one by one, with and without a search: what `run_episode` makes of a single one."""
    prompt = Prompt(AutoTokenizer.from_pretrained(TINY), "", Budget(512, 24, 96))
    model = AutoModelForCausalLM.from_pretrained(TINY)
    sampled = model.generate
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    monkeypatch.setattr(model, "generate", lambda ids, **settings: sampled(ids, **settings | greedy))
    requests = [
        EpisodeRequest(f"e{i}", Question(f"q{i}", text, ("x",)), 1, 2, gate=gate)
        for i, text in enumerate(("Which country is Oslo in?", "Which country is Jonkoping in?", "Who?"))
        for gate in (Gate.NEVER, Gate.ALWAYS)
    ]

    async def alone(prompt_ids: list[int], **_: object) -> Completion:
        return peers.write(model, [list(prompt_ids)], prompt)[0]

    expected = [
        asyncio.run(run_episode(request, alone, toys.Shelf(*SHELF), prompt, temperature=1.0)) for request in requests
    ]
    for at_once in (1, 2, len(requests)):
        played = peers.play(requests, model, prompt, toys.Shelf(*SHELF), lambda _, n=at_once: n)
        assert played == expected
    told = peers.told(played, load(["+experiment=quickstart"]))
    for i, episode in enumerate(played):
        ids = told["prompt_ids"][i] + told["completion_ids"][i]
        assert ids == [t for turn in episode.turns for t in (*turn.context_ids, *turn.completion.token_ids)]
        own = [t for t, mine in zip(told["completion_ids"][i], told["env_mask"][i], strict=True) if mine]
        assert own == [t for turn in episode.turns for t in turn.completion.token_ids]
    assert torch.tensor(told["score"]).isfinite().all()


@pytest.mark.slow
def test_a_benchmark_leaves_its_figures(tmp_path: Path) -> None:
    given = ["+experiment=quickstart", "only=[step,authors,trl]", "repeats=1", *SMALL, f"runs={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "launch/bench.py", *given], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads((tmp_path / "bench" / "latest" / "bench.json").read_text())
    whole = {"step_seconds", "orchestration", "overlap_efficiency"}
    assert set(figures) == whole | {"authors_episodes", "episodes_vs_authors", "trl_steps", "steps_vs_trl"}
    assert figures["orchestration"]["ratio"] < 1
    for name, figure in figures.items():
        assert figure["value"] > 0
        assert figure["n"] == 1
        assert name in done.stdout
        if figure["baseline"]:
            assert figure["ratio"] == pytest.approx(figure["value"] / figures[figure["baseline"]]["value"])
