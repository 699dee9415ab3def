"""docs/bring-your-own.md does what it says: its files load, its functions and classes serve, two files train a run.

That its commands compose is for test_docs.py.
"""

import asyncio
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.retrieval import RetrievalReplica
from cluster.searcher import check_searcher, open_searcher, prepare, sound
from smartrag import ROOT, own_reward
from smartrag.compose import load
from smartrag.data import world
from smartrag.data.load import load as load_data
from smartrag.encoder import opened
from smartrag.types import Empty, Failed, Hits, Passage

PAGE = (ROOT / "docs" / "bring-your-own.md").read_text(encoding="utf-8")
MODULES = {"contains": "rewards", "letters": "encoders", "Shelf": "search"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's Python as the package that its commands name."""
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for code in blocks("python"):
        [name] = [name for name in MODULES if re.search(rf"^(def|class) {name}\b", code, re.MULTILINE)]
        (folder / f"{MODULES[name]}.py").write_text(code)
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_its_two_files_are_read(tmp_path: Path) -> None:
    questions, passages = blocks("csv")
    rows = [f"Which city is number {i}?,{i}\n" for i in range(200)]  # two questions are too few to divide
    (tmp_path / "q.csv").write_text(questions + "".join(rows))
    (tmp_path / "p.csv").write_text(passages)
    given = ["data=files", f"data.questions={tmp_path}/q.csv", f"data.corpus={tmp_path}/p.csv"]
    found = load_data(load(given).data, tmp_path / "cache")
    asked = {q.text: q.answers for q in (*found.train, *found.dev, *found.test)}
    assert asked["Which city, of all in Norway, is the largest?"] == ("Oslo",)
    assert len(asked) == 202
    assert found.corpus is not None
    contents = [json.loads(line)["contents"] for line in found.corpus.read_text().splitlines()]
    assert contents == ["Oslo\nOslo is the capital of Norway.", "Bergen\nBergen lies on the coast, west of Oslo."]
    [cell] = re.findall(r'`("\[""Oslo.*?)`', PAGE)
    assert json.loads(next(csv.reader([cell]))[0]) == ["Oslo", "Christiania"]


def test_its_reward_scores(package: Path) -> None:
    function = own_reward.check("my_package.rewards:contains")
    assert function(own_reward.PROBE) == 1.0
    fields = re.search(r"`Answered` is frozen: (.*?), all text", PAGE)
    assert fields is not None
    assert re.findall(r"`(\w+)`", fields[1]) == list(own_reward.Answered.__dataclass_fields__)


def test_its_encoder_encodes(package: Path) -> None:
    run = load(["retriever=dense", "retriever.dense.encoder=my_package.encoders:letters"])
    check_searcher(run.retriever)
    assert run.retriever.dense is not None
    assert opened(run.retriever.dense)(["Oslo", "soup"]).shape == (2, 26)


def test_its_searcher_searches_in_a_replica(package: Path) -> None:
    corpus = package / "corpus.jsonl"
    corpus.write_text('{"id": "1", "contents": "Oslo"}\n{"id": "2", "contents": "oslo soup"}\n')
    retriever = load(["retriever.searcher=my_package.search:Shelf"]).retriever
    check_searcher(retriever)
    place = prepare(retriever, corpus, package / "cache")
    replica = RetrievalReplica(retriever, str(place))
    assert replica.fingerprint() == "v1"

    async def ask() -> list[object]:
        return await asyncio.gather(*(replica.search(query, 1) for query in ("OSLO", "soup", "zebra")))

    oslo, soup, zebra = asyncio.run(ask())
    assert isinstance(oslo, Hits)
    assert isinstance(soup, Hits)
    assert [json.loads(hits.passages[0].contents)["id"] for hits in (oslo, soup)] == ["1", "2"]
    assert zebra == Empty()


P = Passage("p", "x", 1.0)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([], "gave 0 answers for 2 queries"),
        ([Empty(), None], "gave a NoneType; it must give Hits, Empty or Failed"),
        ([Empty(), Hits((P, P))], "gave 2 passages where 1 to 1 were asked for"),
        ([Empty(), Hits(())], "gave 0 passages where 1 to 1 were asked for"),
    ],
)
def test_what_a_searcher_may_not_give_is_a_failure(
    answers: list[object], said: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole batch, at once: nobody waits for an answer that never comes."""
    retriever = load(["retriever.searcher=my_package.search:Shelf"]).retriever
    replica = RetrievalReplica(retriever, None)
    monkeypatch.setattr(replica, "_searcher", type("Bad", (), {"search": lambda self, queries, ks: answers})())

    async def ask() -> list[object]:
        return await asyncio.gather(replica.search("a", 5), replica.search("b", 1))

    for answer in asyncio.run(asyncio.wait_for(ask(), 5)):
        assert answer == Failed(f"ValueError: the searcher {said}")
    assert sound([Empty(), Hits((P,))], [1, 1]) == [Empty(), Hits((P,))]
    assert open_searcher(retriever, None).search(["a"], [1]) == [Empty()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_step_is_trained_on_two_csv_files(package: Path, tmp_path: Path) -> None:
    """Through every real component, with the page's reward; questions and passages are the world's, as CSV."""
    asked = [q for members in world.questions().values() for q in members if q.meta["hops"] == 1][:400]
    passages = {row["id"]: row["contents"].partition("\n") for row in world.corpus()}
    with (tmp_path / "my_questions.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["Question", "answers"], *([q.text, json.dumps(q.answers)] for q in asked)])
    with (tmp_path / "my_passages.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["title", "text"], *([title, text] for title, _, text in passages.values())])
    own = ["data=files", f"data.questions={tmp_path}/my_questions.csv", f"data.corpus={tmp_path}/my_passages.csv"]
    own += ["reward.judge=function", "reward.function=my_package.rewards:contains"]
    small = ["+experiment=quickstart", "train.steps=1", "train.episodes=16", "train.gates=false", "log.wandb=disabled"]
    small += ["warmup.steps=1", "warmup.batch=8", "warmup.self_knowledge=0", "data.test_questions=8"]
    places = [f"runs={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}"]
    script = [sys.executable, str(ROOT / "launch" / "train.py")]
    path = {"PYTHONPATH": f"{ROOT}:{package}"}
    done = subprocess.run(
        [*script, *own, *small, *places],
        cwd=tmp_path,
        env=_environment() | path,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "runs" / "quickstart" / "latest"
    splits = json.loads((folder / "splits.json").read_text())
    sizes = {name: split["questions"] for name, split in splits["splits"].items()}
    assert sizes["ppo"] + sizes["dev"] + 8 <= len(asked)
    assert sizes["ppo"] > 250
    assert set(splits["overlaps"][pair] for pair in splits["overlaps"] if "dev" in pair or "test" in pair) == {0}
    [row] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert row["voided_episodes"] == 0
    assert json.loads((folder / "summary.json").read_text())["after"]["n"] == 8
    shown = {f"{title}\n{text}" for title, _, text in passages.values()}
    episodes = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    seen = [text for episode in episodes for turn in episode["turns"] for text in turn.get("passages", [])]
    assert set(seen) <= shown


def _environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
