"""A reward function of one's own: what it is shown, what it may return, and what is said of one that will not do."""

import inspect
import pickle
import textwrap
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from smartrag import own_reward
from smartrag.choices import Judge
from smartrag.compose import load
from smartrag.feedback import Feedback, scores
from smartrag.own_reward import PROBE, Answered, RewardFailed, check, shares, shown
from smartrag.types import ActionKind, Hits
from tests.toys import BERGEN, OSLO, PAPER, finished

NOWHERE = Path("/nowhere")
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module of one's own; its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    count = iter(range(99))

    def module(text: str) -> str:
        name = f"mine_{tmp_path.name.replace('-', '_')}_{next(count)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return module


def by(name: str, **changes: float) -> own_reward.Any:
    return replace(PAPER, judge=Judge.function, function=name, **changes)


def test_it_scores_answers_in_units_of_a_right_one(write: Write) -> None:
    name = (
        write("def contains(seen): return any(g.lower() in seen.answer.lower() for g in seen.gold) / 2") + ":contains"
    )
    episodes = [
        finished(0, ActionKind.ANSWER, "in norway"),
        finished(1, ActionKind.ANSWER, "Sweden"),
        finished(0, ActionKind.MALFORMED),
        finished(0, ActionKind.CUT),
    ]
    assert scores(episodes, by(name), 1, NOWHERE) == [1.0, 0.0, 0.0, 0.0]  # half of EM + F1 = 2; no answer, no call
    assert scores(episodes, by(name, exact_match=4.0), 1, NOWHERE) == [2.5, 0.0, 0.0, 0.0]
    run = load(["reward.judge=function", f"reward.function={name}", "train.episodes=4", "algorithm.minibatches=1"])
    trajectories, told = Feedback(run)(episodes, 0)
    assert [sum(t.rewards) for t in trajectories] == pytest.approx([1.0, -0.2, -1.0, -1.0])
    assert told["voided_episodes"] == 0


def test_what_it_is_shown() -> None:
    one = finished(2, ActionKind.ANSWER, " Norway ")
    first, second, last = one.turns
    turns = (
        replace(first, retrieved=Hits((OSLO, BERGEN)), action=replace(first.action, text="Oslo")),
        replace(second, retrieved=Hits((BERGEN,)), action=replace(second.action, text="Bergen")),
        last,
    )
    seen = shown(replace(one, turns=turns))
    assert seen == Answered(
        "Which country is Oslo in?", ("Norway",), " Norway ", ("Oslo", "Bergen"), (OSLO.contents, BERGEN.contents)
    )
    assert pickle.loads(pickle.dumps(seen)) == seen
    with pytest.raises(FrozenInstanceError):
        seen.answer = "x"  # type: ignore[misc, union-attr]


@pytest.mark.parametrize("value", ["True", "False", "0", "1", "0.25", "__import__('numpy').float32(0.5)"])
def test_what_it_may_return(write: Write, value: str) -> None:
    name = write(f"def f(seen): return {value}") + ":f"
    assert shares([finished(0, ActionKind.ANSWER)], name) == [float(eval(value))]
    check(name)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1.5", "must return a finite number from 0 to 1, got 1.5"),
        ("-0.1", "got -0.1"),
        ("float('nan')", "got nan"),
        ("None", "got None, a NoneType"),
        ("'1'", "got '1', a str"),
        ("[1]", "got [1], a list"),
        ("__import__('numpy').ones(1)", "got array([1.]), a ndarray"),
        ("1 / 0", "ZeroDivisionError: division by zero, "),
    ],
)
def test_what_it_may_not_return_is_told_before_a_run_and_in_one(write: Write, value: str, said: str) -> None:
    """In a run with the name of the function and the episode."""
    name = write(
        f"from smartrag.own_reward import PROBE\ndef f(seen): return {value}\ndef late(seen): return 1 if seen == "
        f"PROBE else {value}"
    )
    with pytest.raises(ValueError, match=r"reward\.function=") as before:
        check(f"{name}:f")
    assert said in str(before.value)
    check(f"{name}:late")
    episode = replace(finished(0, ActionKind.ANSWER), id="e7")
    with pytest.raises(RewardFailed, match=f"reward.function={name}:late on episode e7, question q: ") as within:
        shares([episode], f"{name}:late")
    assert said in str(within.value)
    assert "resume=latest" in str(within.value)
    assert str(pickle.loads(pickle.dumps(within.value))) == str(within.value)


@pytest.mark.parametrize(
    ("text", "attribute", "said"),
    [
        ("def f(): return 1", "f", "must take one argument, an Answered (too many positional arguments)"),
        (
            "def f(answer, gold): return 1",
            "f",
            "must take one argument, an Answered (missing a required argument: 'gold')",
        ),
        ("def g(seen): return 1", "f", "has no 'f'; it has g"),
        ("f = 0.5", "f", "is a float, which cannot be called; name a function"),
        ("import nowhere_to_be_found", "f", "imports nowhere_to_be_found, which is not installed"),
        ("1 / 0", "f", "failed (ZeroDivisionError: division by zero, "),
        ("def f(", "f", "failed (SyntaxError: '(' was never closed"),
        ("async def f(seen): return 1", "f", "must be a plain function, not an async one"),
        ("class f:\n  def __init__(self, seen): pass", "f", ", a f"),
    ],
)
def test_what_cannot_be_called_is_told(write: Write, text: str, attribute: str, said: str) -> None:
    name = f"{write(text)}:{attribute}"
    with pytest.raises(ValueError, match=f"reward.function={name}: ") as caught:
        check(name)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.at_all:f", "there is no module 'nowhere' to import; install it, or put the folder"),
        ("smartrag.nowhere:f", "there is no module 'smartrag.nowhere' to import"),
        ("os:system", "failed on Answered("),
        ("contains", "must be the name of something to import, package.module:name, got 'contains'"),
        ("__import__('os').system:f", "must be the name of something to import"),
    ],
)
def test_names_that_lead_nowhere(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"reward\.function") as caught:
        check(name)
    assert said in str(caught.value)


def test_the_example_of_the_docstring_works(write: Write) -> None:
    example = inspect.getdoc(own_reward) or ""
    code = textwrap.dedent(example[example.index("    from smartrag") : example.index("It gets one")])
    function = check(f"{write(code)}:contains")
    assert function(PROBE) == 1.0
    assert function(replace(PROBE, answer="Sweden")) == 0.0
