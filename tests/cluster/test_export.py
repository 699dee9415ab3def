"""An exported folder is the policy and nothing but it: for transformers, for vLLM, and for who follows its card."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cluster.asking import ask
from cluster.checkpoint import Checkpoints
from cluster.engine_args import engine_env
from cluster.export import export
from launch.export import main
from smartrag import ROOT
from smartrag.commands import Export
from smartrag.compose import as_yaml, load
from smartrag.config import Run
from smartrag.data import world
from smartrag.episode import run_episode
from smartrag.exits import BAD_INPUT, NOTHING_TO_RESUME, USAGE_ERROR
from smartrag.prompt import Budget, Prompt
from smartrag.report import terminal
from smartrag.types import Completion, Episode, EpisodeRequest, Generate, Passage, Question, Retrieved, Stop
from tests import run_folder, toys
from tests.processes import free_port, until

TINY = ROOT / "models" / "tiny"
TOLD = "Answer in a word. You may search {quota} times."
QUESTIONS = (
    "Which country is Oslo in?",
    "Which country is Jonkoping in?",
    "What is the currency of Norway?",
    "Röthis?",
)
SHELF = (
    Passage("p1", "Jonkoping\nJonkoping is a city in Sweden. It has 90 thousand people.", 2.0),
    Passage("p2", "Oslo\nOslo is a city in Norway. It has 1 million people.", 1.0),
    Passage("p3", "Norway\nNorway is a country in Europe. Its capital is Oslo. Its currency is Krone.", 1.0),
)


def _policy(folder: Path, noise: float) -> None:
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


def _run(home: Path, steps: Sequence[int] = (run_folder.STEPS,), told: str = "", noise: float = 0.02) -> Run:
    """A finished run with checkpoints after `steps`, the later the noisier."""
    run_folder.write_run(home, np.random.default_rng(0))
    run = load(["+experiment=quickstart", f"train.steps={run_folder.STEPS}", f"model.instruction='{told}'"])
    (home / "config.yaml").write_text(as_yaml(run))
    for step in steps:
        with Checkpoints(home / "checkpoints", keep=9).publish(step, {"steps_done": step}) as draft:
            (draft / "learner").mkdir()
            (draft / "learner" / "optimiser.pt").write_bytes(b"never read, never shipped")
            _policy(draft / "policy", noise * step)
    return run


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Run]:
    """(home of a run, what was exported of it, its settings)."""
    folder = tmp_path_factory.mktemp("shipped")
    run = _run(folder / "capitals" / "one", steps=(4, run_folder.STEPS), told=TOLD)
    out = folder / "out" / "policy"
    assert main([f"run={folder / 'capitals' / 'one'}", f"out={out}"]) == 0
    return folder / "capitals" / "one", out, run


def _prompt(folder: Path, run: Run) -> Prompt:
    budget = Budget(run.model.context_tokens, run.model.new_tokens, run.model.passage_tokens)
    return Prompt(AutoTokenizer.from_pretrained(folder), run.model.instruction, budget)


class Recorded:
    """A model that keeps the token ids it is asked to go on from."""

    def __init__(self, model: Any):
        self.model, self.prompts = model, []  # type: ignore[var-annotated]

    def generate(self, ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        self.prompts.append(ids.tolist())
        return self.model.generate(ids, **settings)


def test_transformers_load_the_very_policy(shipped: tuple[Path, Path, Run]) -> None:
    home, out, run = shipped
    weights = home / "checkpoints" / f"step_{run_folder.STEPS:08d}" / "policy"
    assert sorted(p.name for p in out.parent.iterdir()) == ["policy"]  # no draft is left
    assert sorted(p.name for p in out.iterdir()) == sorted([*(p.name for p in weights.iterdir()), "README.md"])
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False) for folder in (out, weights))
    ids = torch.tensor([_prompt(weights, run).question(text, 2) for text in QUESTIONS[:1]])
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
        assert not torch.equal(ours(ids).logits, AutoModelForCausalLM.from_pretrained(TINY)(ids).logits)
    habits = ours.generation_config
    assert (habits.do_sample, habits.max_new_tokens, habits.eos_token_id) == (False, run.model.new_tokens, 1)
    assert (habits.top_p, habits.repetition_penalty) in ((None, None), (1.0, 1.0))


def test_the_template_opens_a_conversation_as_training_did(shipped: tuple[Path, Path, Run]) -> None:
    _, out, run = shipped
    tokenizer = AutoTokenizer.from_pretrained(out)
    for quota in (1, 2):
        told = f"Answer in a word. You may search {quota} times.\n\n"
        for question in QUESTIONS:
            message = [{"role": "user", "content": told + question}]
            rendered = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
            assert tuple(rendered) == _prompt(out, run).question(question, quota)


def test_who_follows_the_card_runs_the_episode_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path / "run", noise=0.0)
    assert export(Export(run=str(tmp_path / "run"), out=str(tmp_path / "policy"), overwrite=False)) == 0
    [program] = re.findall(r"```python\n(.*?)```", (tmp_path / "policy" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    card: dict = {}
    exec(program, card)
    prompt, read = _prompt(tmp_path / "policy", run), Recorded(card["model"])
    card["model"] = Recorded(card["model"])

    generate = _generate(lambda ids: _greedily(read, ids, run), prompt)
    searched = 0
    for quota in (0, 1, 2):
        for i, text in enumerate(QUESTIONS):
            shelf = toys.Shelf(*SHELF)
            request = EpisodeRequest(f"e{i}", Question(f"q{i}", text, ("x",)), quota, 2, greedy=True)
            episode = asyncio.run(run_episode(request, generate, shelf, prompt, temperature=1.0))
            asked: list[str] = []

            def search(query: str, asked: list[str] = asked) -> list[str]:
                asked.append(query)
                found = asyncio.run(toys.Shelf(*SHELF)(query, 2))
                return [passage.contents for passage in getattr(found, "passages", ())]

            assert card["ask"](text, search, quota) == episode.turns[-1].action.text
            assert asked == shelf.queries
            assert card["model"].prompts == read.prompts
            searched += len(asked)
    assert searched > 2  # or nothing was shown
    capsys.readouterr()


def test_a_checkpoint_can_be_named(shipped: tuple[Path, Path, Run], tmp_path: Path) -> None:
    home, newest, _ = shipped
    old = home / "checkpoints" / "step_00000004"
    assert main([f"run={old}", f"out={tmp_path / 'old'}"]) == 0
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "old", old / "policy"))
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    told = (tmp_path / "old" / "README.md").read_text()
    assert f"after step 4 of {run_folder.STEPS}" in told
    assert "**None of the columns is of these weights**" in told
    assert f"after step {run_folder.STEPS} of {run_folder.STEPS}" in (newest / "README.md").read_text()


def _damage(home: Path) -> None:
    with (home / "checkpoints" / "step_00000001" / "policy" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")


def _seal(home: Path, change: Callable[[Path], object]) -> None:
    """The checkpoint again, with something in it that no learner writes."""
    made = home / "checkpoints" / "step_00000001"
    made.rename(home / "policy-was")
    with Checkpoints(home / "checkpoints", keep=9).publish(1, {"steps_done": 1}) as draft:
        shutil.copytree(home / "policy-was" / "policy", draft / "policy")
        change(draft / "policy")


def _remote_code(policy: Path) -> None:
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "x.py"}}))


def _in_the_way(home: Path) -> None:
    (home / "out").mkdir()
    (home / "out" / "notes").write_text("mine")


def _nothing(_: Path) -> None:
    pass


def _pickle(policy: Path) -> None:
    (policy / "pytorch_model.bin").write_bytes(b"x")


STEP = "checkpoints/step_00000001"
# what is done to the run's folder, settings of the export in it, exit code, message
REFUSED: dict[str, tuple[Any, dict[str, Any], int, str]] = {
    "damaged": (_damage, {}, NOTHING_TO_RESUME, "all 1 there are damaged"),
    "damaged and named": (_damage, {"run": STEP}, BAD_INPUT, "model.safetensors is damaged"),
    "pickle": (lambda home: _seal(home, _pickle), {}, BAD_INPUT, "pytorch_model.bin; only safetensors, JSON and text"),
    "code": (lambda home: _seal(home, _remote_code), {}, BAD_INPUT, "asks for code"),
    "no run": (_nothing, {"run": "nowhere"}, NOTHING_TO_RESUME, "is not the folder of a run"),
    "a model": (_nothing, {"run": str(TINY)}, NOTHING_TO_RESUME, "is not the folder of a run"),
    "no checkpoint": (lambda home: shutil.rmtree(home / "checkpoints"), {}, NOTHING_TO_RESUME, "no checkpoint in"),
    "in the way": (_in_the_way, {}, BAD_INPUT, "is there already; name another folder, or say overwrite=true"),
    "not ours": (_in_the_way, {"overwrite": True}, BAD_INPUT, "holds what no export writes (notes)"),
    "a file": (lambda home: (home / "out").write_text("x"), {"overwrite": True}, BAD_INPUT, "is a file"),
    "a checkpoint": (_nothing, {"out": f"{STEP}/policy", "overwrite": True}, BAD_INPUT, "is among the checkpoints"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("whole") / "run"
    _run(home, steps=(1,))
    return home


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_why_and_leaves_everything_as_it_was(
    case: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, changes, code, said = REFUSED[case]
    home = tmp_path / "run"
    shutil.copytree(whole, home)
    spoil(home)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    chosen = {"run": ".", "out": "out", "overwrite": False, **changes}
    settings = Export(run=str(home / chosen["run"]), out=str(home / chosen["out"]), overwrite=chosen["overwrite"])
    assert export(settings) == code
    assert said in capsys.readouterr().err
    left = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert [path for path, _ in left] == [path for path, _ in before]
    assert [of for of in left if of[0] != str(home)] == [of for of in before if of[0] != str(home)]


def test_an_export_is_replaced_whole(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # empty: nobody has to be asked
    assert export(Export(run=str(whole), out=str(out), overwrite=False)) == 0
    (out / "model-00002-of-00002.safetensors").write_bytes(b"of an older, larger one")
    assert export(Export(run=str(whole), out=str(out), overwrite=True)) == 0
    assert not (out / "model-00002-of-00002.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_command_line_is_checked_before_anything_heavy_is_imported() -> None:
    script = str(ROOT / "launch" / "export.py")
    blocked = "import sys, runpy; sys.modules |= {'ray': None, 'torch': None}"
    command = [sys.executable, "-c", f"{blocked}; runpy.run_path({script!r}, run_name='__main__')"]
    done = subprocess.run([*command, "rn=x", "out=y", "z"], capture_output=True, text=True, timeout=120)
    assert done.returncode == USAGE_ERROR, done.stderr
    assert "run=... must be given" in done.stderr
    assert "rn=x: there is no setting 'rn'; did you mean 'run'?" in done.stderr
    assert "'z' is not of the form name=value" in done.stderr
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=120)
    assert (helped.returncode, "overwrite" in helped.stdout) == (0, True)


@pytest.mark.slow
def test_vllm_serves_it_and_says_what_transformers_say(tmp_path: Path) -> None:
    """50 questions from decision to answer, the same tokens by both; the loop is that of training and of `ask`."""
    run, out = _run(tmp_path / "run", noise=0.0), tmp_path / "policy"
    assert export(Export(run=str(tmp_path / "run"), out=str(out), overwrite=False)) == 0
    asked = _fifty()
    assert len(asked) == 50
    prompt, model = _prompt(out, run), AutoModelForCausalLM.from_pretrained(out)
    ids = list(prompt.question(QUESTIONS[0], 2))
    message = [{"role": "user", "content": prompt.opening(QUESTIONS[0], 2)}]
    greedy = {"model": "policy", "temperature": 0, "return_token_ids": True}
    with _served(out, run, tmp_path / "log") as client:

        def through_vllm(ids: list[int]) -> list[int]:
            reply = client.post("/v1/completions", json={**greedy, "prompt": ids, "max_tokens": run.model.new_tokens})
            return reply.raise_for_status().json()["choices"][0]["token_ids"]

        chat = client.post("/v1/chat/completions", json={**greedy, "messages": message}).raise_for_status().json()
        served = [_episode(question, through_vllm, prompt) for question in asked]

    assert chat["prompt_token_ids"] == ids
    assert chat["choices"][0]["token_ids"] == _greedily(model, ids, run)
    plain = [_episode(question, lambda ids: _greedily(model, ids, run), prompt) for question in asked]
    assert [_written(episode) for episode in served] == [_written(episode) for episode in plain]
    assert len({episode.turns[-1].action.text for episode in plain}) > 10
    assert sum(len(episode.turns) - 1 for episode in plain) > 10, "hardly a search"


@pytest.mark.usefixtures("ray_session")
def test_ask_says_what_the_exported_folder_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 questions through all of `ask`, engine and Lucene; what it found is what transformers are shown."""
    run, out = _run(tmp_path / "run", noise=0.0), tmp_path / "policy"
    assert export(Export(run=str(tmp_path / "run"), out=str(out), overwrite=False)) == 0
    prompt, model = _prompt(out, run), AutoModelForCausalLM.from_pretrained(out)
    asked: list[Episode] = []

    def seen(episode: Episode) -> str:
        asked.append(episode)
        return ""

    monkeypatch.setattr(terminal, "conversation", seen)
    assert ask(str(tmp_path / "run"), [question.text for question in _fifty()]) == 0
    for episode in asked:
        found = {turn.action.text: turn.retrieved for turn in episode.turns if turn.retrieved is not None}

        async def retrieve(query: str, k: int, found: dict = found) -> Retrieved:
            return found[query]

        request = EpisodeRequest(episode.id, episode.question, run.algorithm.quota, run.retriever.k, greedy=True)
        write = _generate(lambda ids: _greedily(model, ids, run), prompt)
        plain = asyncio.run(run_episode(request, write, retrieve, prompt, temperature=1.0))
        assert _written(plain) == _written(episode), episode.question.text
    assert len(asked) == 50
    assert sum(len(episode.turns) - 1 for episode in asked) > 10, "hardly a search"


def _fifty() -> list[Question]:
    return [question for members in world.questions().values() for question in members][::80][:50]


def _episode(question: Question, write: Callable[[list[int]], list[int]], prompt: Prompt) -> Episode:
    request = EpisodeRequest(question.id, question, 2, 2, greedy=True)
    return asyncio.run(run_episode(request, _generate(write, prompt), toys.Shelf(*SHELF), prompt, temperature=1.0))


def _generate(write: Callable[[list[int]], list[int]], prompt: Prompt) -> Generate:
    async def generate(ids: Sequence[int], **_: object) -> Completion:
        written = write(list(ids))
        stop = Stop.END if written[-1] == prompt.end_id else Stop.LENGTH
        return Completion(tuple(written), (0.0,) * len(written), stop, (0,) * len(written))

    return generate


def _greedily(model: Any, ids: list[int], run: Run) -> list[int]:
    """What transformers write; the folder's own habits are greedy."""
    return model.generate(torch.tensor([ids]), max_new_tokens=run.model.new_tokens)[0, len(ids) :].tolist()


def _written(episode: Episode) -> list[tuple[int, ...]]:
    return [turn.completion.token_ids for turn in episode.turns]


@contextmanager
def _served(policy: Path, run: Run, log: Path) -> Iterator[httpx.Client]:
    """A client of what `vllm serve` starts; the CPU build's own command looks for a package called vllm, and fails."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", str(run.model.context_tokens), "--dtype", "float32", "--served-model-name", "policy"]
    command += ["--enforce-eager", "--block-size", "32", "--kv-cache-memory-bytes", str(1 << 28)]
    with log.open("wb") as said:
        env = os.environ | engine_env(run.cluster)
        server = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            until(lambda: _healthy(client), server, log, timeout_s=400)
            yield client
    finally:
        server.terminate()
        server.wait(60)


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False
