"""What must hold here and does not in the paper's released code. Each test is named after the property.

Two more properties stand where they belong: the supervised loss counts wanted tokens and no padding (test_update.py,
imitation), and malformed answers stay in the denominator of every score (test_evaluate.py, four kinds of episodes).
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smartrag import compose, loss
from smartrag.batch import collate, minibatches
from smartrag.choices import Precision
from smartrag.data import hub
from smartrag.episode import run_episode
from smartrag.experience import gather
from smartrag.model import load_critic, load_policy
from smartrag.ranks import alone
from smartrag.reward import episode_reward, gold_score
from smartrag.types import ActionKind, Completion, Episode, EpisodeRequest, Passage, Question, Stop, Trajectory
from smartrag.update import update
from smartrag.warmup import samples
from tests import tiny, toys
from tests.smartrag.test_data import read
from tests.smartrag.test_episode import paper_trajectory
from tests.smartrag.test_update import ALGORITHM, Side, gap, run
from tests.toys import PAPER, finished

PROMPT = toys.prompt(context=240, new_tokens=30)
ASKED = Question("q", toys.QUESTION, ("Norway",))
DIRECT, SEARCHING = ("[Answer] Norway",), ("[Search] Oslo", " Norway")


def episode(*texts: str, policy: toys.ScriptedPolicy | None = None, id: str = "e") -> Episode:
    policy, shelf = policy or toys.ScriptedPolicy(PROMPT, *texts), toys.Shelf(toys.OSLO)
    return asyncio.run(run_episode(EpisodeRequest(id, ASKED, 1, 1), policy, shelf, PROMPT, temperature=0.8))


def trajectory(*texts: str, policy: toys.ScriptedPolicy | None = None, id: str = "e") -> Trajectory:
    return paper_trajectory(episode(*texts, policy=policy, id=id))


@pytest.mark.parametrize(
    ("ratio", "advantage", "wanted"),
    [(2.0, 1.0, 0), (0.5, -1.0, 0), (2.0, -1.0, -1), (0.5, 1.0, 1)],  # sign of the step in the token's log-prob
)
def test_a_token_far_outside_the_clip_is_pulled_back_when_its_advantage_says_so(
    ratio: float, advantage: float, wanted: int
) -> None:
    logp = torch.tensor([[ratio]]).log().requires_grad_()
    one = torch.ones(1, 1)
    loss.clipped_surrogate(logp, 0 * one, advantage * one, one, one.bool(), clip=0.2).backward()
    assert logp.grad is not None
    assert -logp.grad.sign().item() == wanted


def test_each_log_prob_is_that_of_its_token_after_its_own_episode_though_episodes_interleave() -> None:
    def mark(ids: Sequence[int]) -> float:  # a "log-prob" that tells what stood before
        return -int.from_bytes(hashlib.sha256(str(list(ids)).encode()).digest()[:3], "big") / 2**24

    async def generate(prompt_ids: Sequence[int], *, request_id: str, **_: Any) -> Completion:
        number, turn = map(int, request_id.split("-"))
        text = (SEARCHING if number % 3 else DIRECT)[turn] + "!" * number
        ids = (*PROMPT.tokenizer.encode(text), PROMPT.end_id)
        for _pause in range((7 * number + turn) % 5):
            await asyncio.sleep(0)
        logprobs = tuple(mark([*prompt_ids, *ids[: i + 1]]) for i in range(len(ids)))
        return Completion(ids, logprobs, Stop.END, (0,) * len(ids))

    async def all_at_once() -> list[Episode]:
        shelf, wanted = toys.Shelf(toys.OSLO), [EpisodeRequest(str(i), ASKED, 1, 1) for i in range(9)]
        runs = [run_episode(r, generate, shelf, PROMPT, temperature=1.0) for r in wanted]
        return await asyncio.gather(*runs)

    for done in asyncio.run(all_at_once()):
        made = paper_trajectory(done)
        for t, chosen in enumerate(made.mask):
            assert made.logprobs[t] == (mark(made.token_ids[: t + 1]) if chosen else 0.0)


def test_an_episode_that_retrieved_ends_with_its_answer_whatever_others_still_do() -> None:
    short, longer = trajectory(*SEARCHING), trajectory("[Search] Oslo" + " x" * 8, " Norway" + "!" * 20)
    assert short.token_ids[-1] == PROMPT.end_id
    assert not short.truncated
    setup = Side(alone()).setup
    critic = setup.models.critic.module  # type: ignore[attr-defined]
    torch.nn.init.normal_(critic.head.weight)  # values that would show if they leaked into the end
    found = [
        gather(collate(ts, PROMPT.end_id), setup.models, ALGORITHM, alone(), kl_coef=0.0, micro_batch_tokens=9999)
        for ts in ([short], [short, longer])
    ]
    n = len(short.token_ids)
    for name in ("values", "advantages", "returns"):
        by_itself, beside = (getattr(exp, name)[0] for exp in found)
        assert torch.allclose(beside[:n], by_itself, atol=1e-5)
        assert not beside[n:].any()
    assert found[1].returns[0, n - 1].item() == pytest.approx(2.0)  # the answer's score and nothing behind it


def test_padding_with_the_end_token_adds_no_step_and_no_format_error() -> None:
    texts = [DIRECT, SEARCHING, ("hm",), ("[Search] Rome", " Italy, I think")]
    made = [trajectory(*t, id=str(i)) for i, t in enumerate(texts)]
    assert [sum(t.rewards) for t in made] == pytest.approx([2.0, 1.8, -1.0, -0.2])  # a search costs 0.2, not 1.2
    batch = collate(made, PROMPT.end_id)
    assert batch.rewards.sum(1).tolist() == pytest.approx([2.0, 1.8, -1.0, -0.2])
    assert batch.mask.sum(1).tolist() == [sum(t.mask) for t in made]
    padded_with_end, metrics = run(made, pad_id=PROMPT.end_id)
    padded_with_other, other = run(made, pad_id=3)
    assert gap(padded_with_end.parameters(), padded_with_other.parameters()) < 1e-6
    assert metrics == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_what_the_learner_scores_is_what_was_sampled_at_any_length_beside_any_other() -> None:
    lm = tiny.llama(0)

    class Sampler(toys.ScriptedPolicy):
        """Log-probs of the whole vocabulary at the sampling temperature, one token at a time, nothing padded."""

        async def __call__(self, prompt_ids: Sequence[int], *, temperature: float, **rest: Any) -> Completion:  # type: ignore[override]
            said = await super().__call__(prompt_ids, temperature=temperature, **rest)
            ids, logprobs = list(prompt_ids), []
            for token in said.token_ids:
                with torch.no_grad():
                    logits = lm(torch.tensor([ids])).logits[0, -1]
                logprobs.append((logits / temperature).log_softmax(-1)[token].item())
                ids.append(token)
            return replace(said, logprobs=tuple(logprobs))

    texts = [DIRECT, SEARCHING, ("hm",), ("[Search] Rome", " Italy"), ("[Search] Oslo and Rome", " N...")]
    made = [trajectory(policy=Sampler(PROMPT, *t), id=str(i)) for i, t in enumerate([*texts, *texts])]
    for budget in (250, 10_000):
        _, metrics = run(made, micro_batch_tokens=budget)
        assert metrics["engine_gap_max"] < 2e-5
        assert metrics["ess"] == pytest.approx(1, abs=1e-6)
        assert metrics["first_ratio_deviation"] < 2e-5


def test_long_observations_push_out_neither_the_instruction_nor_the_question() -> None:
    told = 'Write "[Answer] " and the answer, or "[Search] " and a query.'
    prompt = toys.prompt(context=260, new_tokens=24, passage=200, instruction=told)
    passages = [Passage(str(i), f"Oslo {i} " + "x" * 500, 1.0) for i in range(4)]
    policy = toys.ScriptedPolicy(prompt, "[Search] Oslo", " Norway")
    request = EpisodeRequest("e", ASKED, 1, 4)
    asyncio.run(run_episode(request, policy, toys.Shelf(*passages), prompt, temperature=1.0))
    opening = f"<|user|>{told}\n\n{toys.QUESTION}<|assistant|>"
    assert [prompt.tokenizer.decode(list(p)).startswith(opening) for p in policy.prompts] == [True, True]
    assert prompt.tokenizer.decode(list(policy.prompts[1])).endswith("x<|assistant|>[Answer]")


def test_a_minibatch_of_two_keeps_the_size_of_its_advantages(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    surrogate = loss.clipped_surrogate

    def watched(logp: Any, old: Any, advantages: torch.Tensor, weights: Any, mask: torch.Tensor, clip: float) -> Any:
        seen.append(advantages[mask])
        return surrogate(logp, old, advantages, weights, mask, clip)

    monkeypatch.setattr(loss, "clipped_surrogate", watched)
    side, episodes = Side(alone()), tiny.trajectories(12)
    setup = replace(side.setup, algorithm=replace(ALGORITHM, epochs=1))
    update(minibatches(episodes, 6, seed=0), setup)
    assert len(seen) == 6
    together = torch.cat(seen)
    assert together.mean().item() == pytest.approx(0, abs=1e-5)
    assert together.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    spreads = [part.std(correction=0).item() for part in seen]
    assert max(spreads) > 1.5 * min(spreads)  # whitened two by two, they would all be 1
    assert max(abs(part.mean().item()) for part in seen) > 0.1  # and these 0


def test_every_parameter_of_policy_and_critic_gets_a_gradient_and_moves(tmp_path: Path) -> None:
    class Watched(tiny.PlainEngine):
        """No weight decay: only a gradient moves anything."""

        def __init__(self, module: torch.nn.Module):
            super().__init__(module, alone())
            self.adam = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
            self.start = {name: p.detach().clone() for name, p in module.named_parameters()}

        def still(self) -> list[str]:
            return [n for n, p in self.module.named_parameters() if torch.equal(p, self.start[n])]

    folder = tiny.folder(tmp_path / "model")
    policy, critic = load_policy(folder, Precision.float32), load_critic(folder, Precision.float32)
    assert all(p.requires_grad for module in (policy, critic) for p in module.parameters())
    engines = Watched(policy), Watched(critic)
    setup = Side(alone()).setup
    models = replace(setup.models, policy=engines[0], critic=engines[1])
    update([tiny.trajectories(4)], replace(setup, models=models))
    assert [engine.still() for engine in engines] == [[], []]


def test_no_label_of_the_data_says_whether_to_retrieve() -> None:
    """What a search is worth, and which first move warm-up teaches, follows from episodes and knowledge alone."""
    yes, no = (
        [Question(f"q{i}", f"Where is Oslo {i}?", ("Norway",), {"retrieval": label}) for i in range(40)]
        for label in (True, False)
    )
    for texts in (DIRECT, SEARCHING):
        of_yes, of_no = (replace(episode(*texts), question=questions[0]) for questions in (yes, no))
        assert episode_reward(of_yes, PAPER) == episode_reward(of_no, PAPER)
    warmup = replace(compose.load([]).warmup, steps=10, batch=8, direct=0.5, search=0.5, read=0, self_knowledge=1)
    known = {f"q{i}" for i in range(0, 40, 3)}
    own = {f"q{i}": "Norway" if f"q{i}" in known else "Peru" for i in range(40)}

    def made(questions: list[Question], seed: int) -> list[Trajectory]:
        shelf = toys.Shelf(toys.OSLO)
        return asyncio.run(samples(questions, warmup, PROMPT, shelf, quotas=[1], k=1, seed=seed, own=own))

    for seed in (0, 1):
        assert made(yes, seed) == made(no, seed)
        for sample in made(yes, seed):
            text = PROMPT.tokenizer.decode(list(sample.token_ids))
            number = text.split("Oslo ")[1].split("?")[0]
            assert ("[Answer]" in text) is (f"q{number}" in known)


def test_whole_gold_answers_and_all_aliases_reach_the_reward(tmp_path: Path) -> None:
    """Of a gold answer that is a string, the first character is no answer."""
    context = {"title": ["Film"], "sentences": [["A film."]]}
    hotpot = {"id": "h", "question": "Who?", "answer": "Debbie Reynolds", "context": context}
    others = [{**hotpot, "id": f"t{i}", "question": f"Who {i}?"} for i in range(60)]
    hub.write_rows("hotpotqa", others, [hotpot], tmp_path / "h")
    aliases = json.dumps(["Norway", "Kingdom of Norway", "NO"])
    popqa = {"prop": "country", "subj": "Oslo", "s_pop": 9, "possible_answers": aliases}
    rows = [{**popqa, "id": i, "question": f"Where is Oslo {i}?"} for i in range(60)]
    hub.write_rows("popqa", None, rows, tmp_path / "p")
    (tmp_path / "p" / "corpus.jsonl").write_text('{"id": "1", "contents": "Oslo"}\n')

    def reward(folder: str, said: str) -> list[float]:
        answered = finished(0, ActionKind.ANSWER, said)
        return [gold_score(replace(answered, question=q), PAPER) for q in read(tmp_path / folder).test]

    assert reward("h", "Debbie Reynolds") == [2.0]
    assert reward("h", "D") == [0.0]
    for said in ("Norway", "the kingdom of Norway", "NO"):
        assert set(reward("p", said)) == {2.0}
    assert set(reward("p", "N")) == {0.0}
