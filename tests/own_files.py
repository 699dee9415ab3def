"""What docs/bring-your-own.md shows: its code as the package that its commands name, and files such as it describes."""

import csv
import json
import re
from pathlib import Path

from smartrag import ROOT
from smartrag.data import world

PAGE = (ROOT / "docs" / "bring-your-own.md").read_text(encoding="utf-8")
_MODULES = {"contains": "rewards", "letters": "encoders", "Shelf": "search"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def write_package(folder: Path) -> None:
    """The page's Python as `my_package`, below `folder`."""
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    for code in blocks("python"):
        [name] = [name for name in _MODULES if re.search(rf"^(def|class) {name}\b", code, re.MULTILINE)]
        (package / f"{_MODULES[name]}.py").write_text(code)


def write_csv(folder: Path, count: int) -> tuple[list[str], set[str]]:
    """`count` questions of the world and all its passages as CSV files in `folder`; the overrides that name them, and
    every passage as it is shown."""
    questions, corpus = folder / "my_questions.csv", folder / "my_passages.csv"
    asked = [q for members in world.questions().values() for q in members if q.meta["hops"] == 1][:count]
    passages = [row["contents"].split("\n", 1) for row in world.corpus()]
    with questions.open("w", newline="") as out:
        csv.writer(out).writerows([["Question", "answers"], *([q.text, json.dumps(q.answers)] for q in asked)])
    with corpus.open("w", newline="") as out:
        csv.writer(out).writerows([["title", "text"], *passages])
    given = ["data=files", f"data.questions={questions}", f"data.corpus={corpus}"]
    return given, {f"{title}\n{text}" for title, text in passages}
