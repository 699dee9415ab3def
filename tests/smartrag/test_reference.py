"""What the page of settings says, against Hydra's own composition; comments, by hand."""

import re
from enum import StrEnum
from typing import Any

import pytest
import yaml

from smartrag.comments import Written, headline, notes, written
from smartrag.compose import load
from smartrag.reference import page

PYTHON = '''
class A:
    """What A is,
    in two lines."""

    # Above, and
    # in two lines.
    a: int
    b: int  # behind "#1"
    c: int

class B(StrEnum):
    x = "x y"  # a word

    @property
    def d(self): ...  # no member
'''
YAML = """\
# The first sentence, of Wang et
# al. 2022 (a.b). The second.
a: 1.0e-4   # why, and
            # why not
b: {c: [1, 2], d: "#x"}  # both
# of e
e:          # of the block
  f: ???
  g: >-
    folded
    text
"""


def test_comments_of_python() -> None:
    found = notes(PYTHON)
    assert found["A"].docstring == "What A is, in two lines."
    assert found["A"].members == {"a": "Above, and in two lines.", "b": 'behind "#1"', "c": ""}
    assert found["B"].members == {"x": "a word"}


def test_comments_of_yaml() -> None:
    assert written(YAML, "p.") == {
        "p.a": Written("1.0e-4", "why, and why not"),
        "p.b": Written('{c: [1, 2], d: "#x"}', "both"),
        "p.b.c": Written("[1, 2]", ""),
        "p.b.d": Written('"#x"', ""),
        "p.e.f": Written("???", ""),
        "p.e.g": Written("folded text", ""),
    }
    assert headline(YAML) == "The first sentence, of Wang et al. 2022 (a.b)."


def rows() -> list[tuple[str, str]]:
    """(setting, default) of a run's groups."""
    run, _, _ = page().partition("## launch/evaluate.py")
    return re.findall(r"^\| `([\w.]+)` \| (?:`(.*?)`)? \|", run, re.MULTILINE)


@pytest.mark.parametrize(
    ("prefix", "overrides"),
    [("", []), ("reward.budget.", ["reward=budget"]), ("reward.endpoint.", ["reward=judge"])],
    ids=["defaults", "budget", "judge"],
)
def test_defaults_are_those_that_hydra_composes(prefix: str, overrides: list[str]) -> None:
    run, seen = load(overrides), 0
    for name, default in rows():
        if not name.startswith(prefix) or "oc.env" in default:
            continue
        value: Any = run
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None or default == "null":
            seen += 1
            assert plain(value) == yaml.safe_load(default), name
    assert seen >= (4 if prefix else 90)


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return [plain(x) for x in value]
    return str(value) if isinstance(value, StrEnum) else value
