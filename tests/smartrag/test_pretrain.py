"""The shipped base model and the text it came from: no test question, no rare city, no leaning on when to retrieve."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from smartrag.data.world import QUESTIONS, questions, world
from smartrag.pretraining.mixture import HORIZON, Mixture, Sample
from smartrag.pretraining.pretrain import Plan, _loss, make_model, make_tokenizer, pretrain
from smartrag.prompt import Budget, Prompt
from smartrag.types import Action, ActionKind, Stop

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "tiny"


def world_cities() -> set[str]:
    return {city.name for city in world().cities}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def prompt(tokenizer):
    return Prompt(tokenizer, "", Budget(context=256, new_tokens=20, passage=40))


@pytest.fixture(scope="module")
def texts(tokenizer, prompt):
    mixture = Mixture(prompt, seed=1)
    shares = {"facts": 1, "quiz": 1, "reading": 1, "lists": 1}
    return [tokenizer.decode(mixture.sample(shares).token_ids) for _ in range(4000)]


def test_every_name_of_the_world_is_spelled_and_read_back(prompt):
    names = {city.name for city in world().cities}
    for country in world().countries:
        names |= {country.name, country.capital, country.currency}
    for name in names:
        for kind in (ActionKind.SEARCH, ActionKind.ANSWER):
            ids = prompt.spell(Action(kind, name))
            assert prompt.parse(ids, Stop.END) == Action(kind, name)
            assert len(ids) <= prompt.budget.new_tokens


def test_text_beyond_the_alphabet_survives(prompt):
    action = Action(ActionKind.ANSWER, "Jonas Gahr Støre, 東京 1999")
    assert prompt.parse(prompt.spell(action), Stop.END) == action


def test_popular_names_are_short_and_rare_ones_long(tokenizer):
    lengths = [len(tokenizer.encode(city.name)) for city in world().cities]
    assert sum(lengths[:300]) / 300 < 1.7
    assert sum(lengths[-300:]) / 300 > 3


def test_a_name_has_the_same_pieces_wherever_it_stands(tokenizer):
    alone = tokenizer.encode("Garanhuns")
    for text in (
        "[Search] Garanhuns",
        "Recife\nGaranhuns is a city",
        "Which country is Garanhuns in?",
        "in Garanhuns.",
    ):
        ids = tokenizer.encode(text)
        assert any(ids[i : i + len(alone)] == alone for i in range(len(ids))), text


def test_the_mixture_asks_no_question_of_dev_and_test(texts):
    held_out = {q.text for split in ("dev", "test") for q in questions()[split]}
    asked = {text.removeprefix("<|user|>").split("<|assistant|>")[0].strip() for text in texts}
    assert any(q.text in asked for q in questions()["train"])
    assert not held_out & asked


def test_the_mixture_tells_nothing_about_rare_cities(texts):
    rare = {city.name for city in world().cities[HORIZON:]}
    subjects = {
        text.split(cue)[0] for text in texts for cue in (" is a city in", " lies in", " is in", ",") if cue in text
    }
    assert len(subjects & world_cities()) > 200
    assert not subjects & rare


def test_the_mixture_is_a_function_of_its_seed(prompt):
    one, two, other = (Mixture(prompt, seed) for seed in (3, 3, 4))
    shares = {"facts": 1, "quiz": 1, "reading": 1, "lists": 1}
    first, again, different = ([m.sample(shares) for _ in range(20)] for m in (one, two, other))
    assert first == again
    assert first != different


def test_the_first_action_is_a_fair_coin_for_known_and_unknown_subjects(prompt, tokenizer):
    mixture = Mixture(prompt, seed=2)
    known = world_cities() | {country.name for country in world().countries}
    starts = {QUESTIONS[kind].split("{}")[0] for kind in QUESTIONS}
    counts: Counter = Counter()
    for _ in range(3000):
        sample = mixture.sample({"quiz": 1, "reading": 1})
        tags = [i for i, token in enumerate(sample.token_ids) if token in (*prompt.search_ids, *prompt.answer_ids)]
        if sample.weights[tags[0]] == 0:
            continue  # nothing is learned from it
        question = tokenizer.decode(sample.token_ids[1 : tags[0] - 1]).strip()
        start = max((s for s in starts if question.startswith(s)), key=len)
        subject = question.removeprefix(start).removesuffix("?").removesuffix(" in").removesuffix(" is").strip()
        counts[subject in known, sample.token_ids[tags[0]] in prompt.search_ids] += 1
    for familiar in (True, False):
        searches, answers = counts[familiar, True], counts[familiar, False]
        assert searches + answers > 500
        assert 0.42 < searches / (searches + answers) < 0.58


def test_packed_samples_do_not_see_each_other(tokenizer):
    torch.manual_seed(0)
    model = make_model(Plan(hidden=32, layers=2, heads=1, intermediate=32), tokenizer)
    one = Sample((5, 300, 301, 302), (1.0,) * 4)
    two = Sample((6, 400, 300, 401), (1.0,) * 4)
    together = _loss(model, [[one, two]], 16)
    apart = (_loss(model, [[one]], 16) + _loss(model, [[two]], 16)) / 2
    torch.testing.assert_close(together, apart)


def test_a_short_run_writes_a_model_that_loads(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plan = Plan(steps=2, rows=1, hidden=32, layers=1, heads=1, intermediate=32)
    figures = pretrain(tmp_path, plan)
    assert figures["step"] == 2
    assert 0 <= figures["searches_1"] <= 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.tie_word_embeddings
    Prompt(AutoTokenizer.from_pretrained(tmp_path), "", Budget(256, 20, 40))


def test_the_shipped_tokenizer_is_the_one_that_this_code_makes(tokenizer):
    from transformers import AutoTokenizer

    shipped = AutoTokenizer.from_pretrained(SHIPPED)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.chat_template == tokenizer.chat_template
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 10_000_000
