"""Makes the tiny base model: tokenizer, random Llama, two stages of the mixture, and the checks of what it has learned.

    broad    from nothing: language, reading, copying, and facts that fade with popularity
    deep     from there: facts of the better-known cities and all countries, told well, so that it knows what it knows

The result stands in for a pretrained language model where none can be had: it knows the popular part of the embedded
world, reads passages, copies names into queries and writes both actions, but does not know when to retrieve.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from smartrag.data.world import world
from smartrag.pretraining.mixture import HORIZON, Mixture, Sample
from smartrag.pretraining.skills import check_skills
from smartrag.prompt import ANSWER_TAG, SEARCH_TAG, Budget, Prompt

VOCABULARY = 4096
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{{ m.content }}<|end|>"
    "{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CONTROLS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
Shares = dict[str, float]  # of the kinds of samples, see mixture.py


@dataclass(frozen=True, slots=True)
class Plan:
    """One stage. BROAD and then DEEP made models/tiny."""

    seed: int = 0
    onward: bool = False  # from the weights in the folder, not from nothing
    known: int = HORIZON  # cities told of, the most popular ones
    fade: float = 400.0  # ranks over which a city is told e times less often
    lean: float = 0.5  # a country is told of in proportion to its population to this power
    shares_first: Shares = field(default_factory=lambda: {"facts": 0.2, "quiz": 0.3, "reading": 0.2, "lists": 0.3})
    shares_last: Shares = field(default_factory=lambda: {"facts": 0.3, "quiz": 0.35, "reading": 0.3, "lists": 0.05})
    steps: int = 4000
    rows: int = 8  # of one step
    row_tokens: int = 256  # samples are packed into rows of this length and do not see each other
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 512
    check_every_s: float = 240.0
    threads: int = 2


_DEEP_SHARES = {"facts": 0.5, "quiz": 0.3, "reading": 0.15, "lists": 0.05}
BROAD = Plan()
DEEP = Plan(
    seed=1, onward=True, steps=1500, learning_rate=2e-3, known=1200, fade=1500.0, lean=0.0,
    shares_first=_DEEP_SHARES, shares_last=_DEEP_SHARES,
)  # fmt: skip


def pretrain(folder: Path, plan: Plan) -> dict[str, float]:
    """Pretrain by `plan` and write model and tokenizer to `folder`, the model at every check.

    Returns the last check's figures: shares in 0..1.
    """
    torch.manual_seed(plan.seed)
    torch.set_num_threads(plan.threads)
    tokenizer = make_tokenizer()
    prompt = Prompt(tokenizer, "", Budget(context=plan.row_tokens, new_tokens=24, passage=32))
    model = LlamaForCausalLM.from_pretrained(folder) if plan.onward else make_model(plan, tokenizer)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, plan))
    rows = _rows(Mixture(prompt, plan.seed, plan.known, plan.fade, plan.lean), plan)
    started = checked = time.monotonic()
    tokenizer.save_pretrained(folder)  # before the work: the folder can be written
    bar = tqdm(range(plan.steps), unit="step", mininterval=5)
    for step in bar:
        loss = _loss(model, [next(rows) for _ in range(plan.rows)], plan.row_tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        last = step + 1 == plan.steps
        if last or time.monotonic() - checked >= plan.check_every_s:
            figures = {"step": step + 1, "seconds": round(time.monotonic() - started), "loss": round(loss.item(), 4)}
            figures |= check_skills(model, prompt, limit=10_000 if last else 150)
            tqdm.write(json.dumps(figures))
            _save(folder, model, tokenizer, figures | {"plan": asdict(plan)})
            checked = time.monotonic()
    return figures


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE of VOCABULARY pieces over the world's names, in which a popular name is one piece and a rare one several.

    A word is one piece sequence wherever it stands (start of a line, after a space or a tag), so copying is copying.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"[.,;:?!()\"0-9]"), "isolated"),
        ]
    )
    tags = [AddedToken(text, special=False, normalized=False) for text in (SEARCH_TAG, ANSWER_TAG, "\n")]
    octets = [f"<0x{i:02X}>" for i in range(256)]  # spell what no piece can
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = split
    size = VOCABULARY - len(_CONTROLS) - len(tags) - len(octets)
    learned.train_from_iterator(_spelling_text(), trainers.BpeTrainer(vocab_size=size, show_progress=False))
    pieces = json.loads(learned.to_str())["model"]
    vocabulary = {piece: i for i, piece in enumerate((*_CONTROLS, *octets, *pieces["vocab"]))}
    merges = [tuple(pair) for pair in pieces["merges"]]
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    bpe.pre_tokenizer = split
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _CONTROLS])
    bpe.add_tokens(tags)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights in float32; embedding and output layer are one."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden,
        intermediate_size=plan.intermediate,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


# ---- training


def _rate(step: int, plan: Plan) -> float:
    rise = min(1.0, (step + 1) / plan.warmup_steps)
    return plan.learning_rate * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / plan.steps)))


def _rows(mixture: Mixture, plan: Plan) -> Iterator[list[Sample]]:
    """Rows of whole samples, together at most `row_tokens` long; the shares glide from the first to the last."""
    total, made = plan.steps * plan.rows, 0
    row: list[Sample] = []
    room = plan.row_tokens
    while True:
        done = min(1.0, 2 * made / total)
        shares = {name: (1 - done) * x + done * plan.shares_last[name] for name, x in plan.shares_first.items()}
        sample = mixture.sample(shares)
        if len(sample.token_ids) > plan.row_tokens:
            continue
        if len(sample.token_ids) > room:
            yield row
            made, row, room = made + 1, [], plan.row_tokens
        row.append(sample)
        room -= len(sample.token_ids)


def _loss(model: LlamaForCausalLM, rows: Sequence[Sequence[Sample]], length: int) -> torch.Tensor:
    """Weighted mean next-token loss. Every sample stands alone: own positions, no sight of its neighbours."""
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    owner = torch.full((len(rows), length), -1)
    for r, row in enumerate(rows):
        start = 0
        for s, sample in enumerate(row):
            end = start + len(sample.token_ids)
            ids[r, start:end] = torch.tensor(sample.token_ids)
            weights[r, start + 1 : end] = torch.tensor(sample.weights[1:])  # nothing foretells a first token
            positions[r, start:end] = torch.arange(end - start)
            owner[r, start:end] = s
            start = end
    mask = (owner[:, :, None] == owner[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    hidden = model.model(input_ids=ids, attention_mask=mask[:, None], position_ids=positions).last_hidden_state
    counted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][counted])
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    kept = weights[:, 1:][counted]
    return (losses * kept).sum() / kept.sum()


def _spelling_text() -> Iterator[str]:
    """The tokenizer's training text: names as often as they are popular, so that popular ones become one piece."""
    places = world()
    for rank, city in enumerate(places.cities):
        yield from [city.name] * (2 + round(150 * math.exp(-rank / 500)))
    for country in places.countries:
        yield from [f"{country.name} {country.capital} {country.currency} {country.continent}"] * 200
    yield from places.spare_names
    words = "Which country is in What is the capital of currency where city It has Its thousand million"
    words += " people a nothing found"
    yield from [words + " . , ? ( ) 0 1 2 3 4 5 6 7 8 9"] * 1000
    yield from "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-'\"/:;!&%+=_*#@$"


def _save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, figures: dict) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(figures, indent=1) + "\n")
