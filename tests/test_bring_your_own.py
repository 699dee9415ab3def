"""docs/bring-your-own.md does what it says: its files load, its functions and classes serve.

That its commands compose is for test_docs.py; a run is trained on two CSV files and the page's reward in test_run.py.
"""

import asyncio
import csv
import json
import re
import sys
from pathlib import Path

import pytest

from cluster.replica import RetrievalReplica
from cluster.searcher import check_searcher, open_searcher, prepare, sound
from smartrag import own_reward
from smartrag.compose import load
from smartrag.data.load import load as load_data
from smartrag.encoder import opened
from smartrag.types import Empty, Failed, Hits, Passage
from tests.own_files import PAGE, blocks, write_package


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's Python as the package that its commands name."""
    write_package(tmp_path)
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
