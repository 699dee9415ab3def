"""Loading data: every problem of a folder at once, with file, line and cure; limits, overlap, and the hub's schemas."""

import json
from pathlib import Path

import pytest

from smartrag.config import Data
from smartrag.data import hub
from smartrag.data.corpus import check_corpus
from smartrag.data.load import DataError, load


def row(name: str = "q1", question: str = "Which country is Oslo in?", **fields) -> dict:
    return {"id": name, "question": question, "answers": ["Norway"], **fields}


def write_lines(path: Path, lines: list) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """A sound data folder; tests damage it."""
    for split in ("train", "dev", "test"):
        write_lines(tmp_path / f"{split}.jsonl", [row(f"{split}{i}", f"{split} question {i}?") for i in range(10)])
    write_lines(tmp_path / "corpus.jsonl", [{"id": "p1", "contents": "Oslo\nOslo is a city in Norway."}])
    return tmp_path


def read(source, train=None, dev=None, test=None, cache=Path("unused")):
    return load_sets({"folder": 1.0}, source, train, dev, test, cache)


def load_sets(mix, source, train=None, dev=None, test=None, cache=Path("unused"), allow_overlap=False):
    limits = {"train_questions": train, "dev_questions": dev, "test_questions": test}
    return load(
        Data(source=str(source), mix=mix, questions=None, corpus=None, allow_overlap=allow_overlap, **limits), cache
    )


def problems_of(folder) -> str:
    with pytest.raises(DataError) as caught:
        read(folder)
    return str(caught.value)


def test_a_sound_folder_loads(folder):
    dataset = read(folder)
    assert [len(split) for split in (dataset.train, dataset.dev, dataset.test)] == [10, 10, 10]
    assert dataset.train[0].answers == ("Norway",)
    assert dataset.corpus == folder / "corpus.jsonl"


def test_the_world_is_made_in_the_cache_once(tmp_path):
    first = read("world", cache=tmp_path)
    stamp = first.corpus.stat().st_mtime_ns
    again = read("world", test=50, cache=tmp_path)
    assert first.corpus == again.corpus
    assert again.corpus.stat().st_mtime_ns == stamp
    assert len(again.test) == 50
    assert check_corpus(first.corpus) > 3000
    assert [p.name for p in tmp_path.iterdir()] == [first.corpus.parent.name]


def test_limits_pick_the_same_questions_and_grow_without_change(folder):
    small, again, large = (read(folder, train=n).train for n in (3, 3, 6))
    assert small == again
    assert len(small) == 3
    assert set(q.id for q in small) <= set(q.id for q in large)
    assert [q.id for q in large] == sorted(q.id for q in large)  # the file's order


def test_all_problems_come_at_once_and_are_counted(folder):
    write_lines(folder / "train.jsonl", [{"id": f"t{i}", "question": "", "answers": []} for i in range(15)])
    (folder / "dev.jsonl").write_text("")
    message = problems_of(folder)
    assert message.startswith("31 problem(s)")
    assert message.count("\n") == 21
    assert message.endswith("... and 11 more")


def test_missing_and_empty_files_are_told(folder):
    (folder / "dev.jsonl").write_text("\n\n")
    (folder / "test.jsonl").unlink()
    (folder / "corpus.jsonl").unlink()
    message = problems_of(folder)
    assert f"{folder / 'dev.jsonl'}: the split has no questions" in message
    assert f"{folder / 'test.jsonl'}: no such file" in message
    assert f"{folder / 'corpus.jsonl'}: no such file" in message


def test_a_source_that_does_not_exist_names_what_would():
    with pytest.raises(DataError, match=r"does not exist.*world.*hotpotqa.*train.jsonl"):
        read("nowhere/at/all")


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_question_of_train_in_dev_or_test_is_an_error_unless_allowed(folder, split):
    write_lines(folder / f"{split}.jsonl", [row("e1", "TRAIN  question 3?")])
    told = f'{folder / split}.jsonl:1: the same question is in train.jsonl:4 (ids "e1" and "train3": '
    assert told in problems_of(folder)
    with pytest.warns(UserWarning, match=rf"1 question\(s\) of .*{split}.jsonl are in train.jsonl"):
        load_sets({"folder": 1.0}, folder, allow_overlap=True)


def joined(tmp_path, folder, extra_train=(), hotpot_test="Which band is older?"):
    """The folder and a HotpotQA whose files are in the cache already."""
    train = [{**HOTPOT, "id": f"q{i}", "question": f"Which band {i}?"} for i in range(40)]
    train += [{**HOTPOT, "id": f"x{i}", "question": text} for i, text in enumerate(extra_train)]
    cached = tmp_path / "cache" / "hotpotqa-v1"
    hub.write_rows("hotpotqa", train, [{**HOTPOT, "question": hotpot_test}], cached)
    return load_sets({"hotpotqa": 1.0, "folder": 3.0}, folder, train=5, cache=tmp_path / "cache")


def test_several_sets_are_joined_under_their_names_and_limits_count_for_each(tmp_path, folder):
    dataset = joined(tmp_path, folder)
    assert [q.meta["dataset"] for q in dataset.train] == ["hotpotqa"] * 5 + ["folder"] * 5
    assert all(q.id.startswith(f"{q.meta['dataset']}/") for q in (*dataset.train, *dataset.dev, *dataset.test))
    assert [q.id for q in dataset.test] == ["hotpotqa/5a7a", *(f"folder/test{i}" for i in range(10))]


def test_several_sets_may_lie_in_one_folder(tmp_path, folder):
    for name in ("popqa", "musique"):
        (folder / name).mkdir()
        for split in ("train", "dev", "test"):
            write_lines(
                folder / name / f"{split}.jsonl", [row(f"{split}{i}", f"{name} {split} {i}?") for i in range(3)]
            )
        write_lines(folder / name / "corpus.jsonl", [{"id": "p1", "contents": f"Oslo\n{name}."}])
    dataset = load_sets({"popqa": 1.0, "musique": 1.0}, folder, cache=tmp_path / "cache")
    assert [q.id for q in dataset.test] == [f"{name}/test{i}" for name in ("popqa", "musique") for i in range(3)]
    assert check_corpus(dataset.corpus) == 2


def test_the_joined_corpus_holds_equal_passages_once_and_is_made_once(tmp_path, folder):
    write_lines(
        folder / "corpus.jsonl", [{"id": "p1", "contents": "Ember\nFormed 1980."}, {"id": "p2", "contents": "x"}]
    )
    corpus = joined(tmp_path, folder).corpus
    passages = [json.loads(line) for line in corpus.read_text().splitlines()]
    assert [p["contents"] for p in passages] == ["Arctic Owls\nFormed 1970. In Oslo.", "Ember\nFormed 1980.", "x"]
    assert [p["id"].split("/")[0] for p in passages] == ["hotpotqa", "hotpotqa", "folder"]
    assert check_corpus(corpus) == 3
    stamp = corpus.stat().st_mtime_ns
    again = joined(tmp_path, folder).corpus
    assert (again, again.stat().st_mtime_ns) == (corpus, stamp)


def test_what_one_set_tests_no_other_trains(tmp_path, folder):
    write_lines(folder / "train.jsonl", [row("t0", "which BAND is older?"), row("t1", "Which band is it?")])
    with pytest.warns(UserWarning, match=r"1 train question\(s\) left out that another data set asks in dev or test"):
        dataset = joined(tmp_path, folder)
    assert [q.id for q in dataset.train if q.meta["dataset"] == "folder"] == ["folder/t1"]


def test_a_set_without_passages_leaves_the_joined_ones_without_a_corpus(tmp_path, folder, monkeypatch):
    rows = [{**POPQA, "id": i, "question": f"In what country is {i}?"} for i in range(200)]
    monkeypatch.setattr("smartrag.data.load.write_hub", lambda name, folder: hub.write_rows(name, None, rows, folder))
    assert load_sets({"popqa": 1.0, "folder": 1.0}, folder, cache=tmp_path / "cache").corpus is None


def test_a_sound_corpus_is_counted(folder):
    assert check_corpus(folder / "corpus.jsonl") == 1


def test_an_empty_corpus_is_told(tmp_path):
    (tmp_path / "corpus.jsonl").write_text("")
    with pytest.raises(DataError, match="no passages"):
        check_corpus(tmp_path / "corpus.jsonl")


# ---- the hub's schemas, one hand-made row each

HOTPOT = {
    "id": "5a7a",
    "question": "Which band is older?",
    "answer": "Arctic Owls",
    "type": "comparison",
    "level": "easy",
    "supporting_facts": {"title": ["Arctic Owls"], "sent_id": [0]},
    "context": {"title": ["Arctic Owls", "Ember"], "sentences": [["Formed 1970.", " In Oslo."], ["Formed 1980."]]},
}
MUSIQUE = {
    "id": "3hop1__1_2_3",
    "question": "Who?",
    "answer": "Ann",
    "answer_aliases": ["Anna", "Ann"],
    "paragraphs": [{"idx": 0, "title": "Ann", "paragraph_text": "Ann is.", "is_supporting": True}],
}
TRIVIA = {
    "question_id": "tc_1",
    "question": "Who?",
    "answer": {"value": "Ann", "aliases": ["Ann", "Anna"]},
    "entity_pages": {"title": ["Ann"], "wiki_context": [" ".join(["word"] * 250)]},
}
POPQA = {
    "id": 42,
    "subj": "Oslo",
    "prop": "country",
    "s_pop": 99,
    "question": "In what country is Oslo?",
    "possible_answers": '["Norway", "Kingdom of Norway"]',
}


def test_hotpot_rows():
    question, paragraphs = hub.hotpot_row(HOTPOT, "")
    assert (question.id, question.answers, question.meta["type"]) == ("5a7a", ("Arctic Owls",), "comparison")
    assert paragraphs == [("Arctic Owls", "Formed 1970. In Oslo."), ("Ember", "Formed 1980.")]
    pairs = [["Arctic Owls", ["Formed 1970.", " In Oslo."]], ["Ember", ["Formed 1980."]]]
    assert hub.hotpot_row({**HOTPOT, "context": pairs}, "")[1] == paragraphs


def test_musique_rows():
    question, paragraphs = hub.musique_row(MUSIQUE, "")
    assert (question.answers, question.meta) == (("Ann", "Anna"), {"hops": 3, "type": "3hop1"})
    assert paragraphs == [("Ann", "Ann is.")]


def test_trivia_pages_are_cut_into_passages():
    question, paragraphs = hub.trivia_row(TRIVIA, "")
    assert (question.id, question.answers) == ("tc_1", ("Ann", "Anna"))
    assert [len(text.split()) for _, text in paragraphs] == [100, 100, 50]


def test_popqa_rows():
    question, paragraphs = hub.popqa_row(POPQA, "")
    assert (question.id, question.answers) == ("42", ("Norway", "Kingdom of Norway"))
    assert (question.meta["subject"], question.meta["popularity"]) == ("Oslo", 99)
    assert paragraphs == []


def test_nq_rows():
    question, paragraphs = hub.nq_row({"question": "who", "answer": ["Ann"]}, "nq_open-test-0")
    assert (question.id, question.answers, paragraphs) == ("nq_open-test-0", ("Ann",), [])


@pytest.mark.parametrize(
    ("annotations", "answers", "kind"),
    [
        (
            {"type": ["singleAnswer"], "answer": [["Ann", "Anna"]], "qaPairs": [{"question": [], "answer": []}]},
            ("Ann", "Anna"),
            "singleAnswer",
        ),
        (
            {
                "type": ["multipleQAs"],
                "answer": [[]],
                "qaPairs": [{"question": ["Who in 1990?", "Who in 1991?"], "answer": [["Ann"], ["Bo", "Ann"]]}],
            },
            ("Ann", "Bo"),
            "multipleQAs",
        ),
    ],
)
def test_ambignq_rows_take_an_answer_to_any_reading(annotations, answers, kind):
    question, paragraphs = hub.ambignq_row({"id": "-1", "question": "Who?", "annotations": annotations}, "")
    assert (question.id, question.answers, question.meta["type"], paragraphs) == ("-1", answers, kind, [])


def test_hub_rows_become_a_folder_that_loads(tmp_path):
    train = [{**HOTPOT, "id": f"t{i}", "question": f"Which band {i}?"} for i in range(100)]
    test = [{**HOTPOT, "id": "x", "question": "which band  7?"}, {**HOTPOT, "id": "y", "answer": ""}]
    hub.write_rows("hotpotqa", train, test, tmp_path)
    dataset = read(tmp_path)
    assert len(dataset.train) + len(dataset.dev) == 99  # one is asked by test
    assert 0 < len(dataset.dev) < 15
    assert [q.id for q in dataset.test] == ["x"]  # the other has no answer
    assert check_corpus(dataset.corpus) == 2
    assert dataset.train[0].meta["dataset"] == "hotpotqa"


def test_a_set_of_one_split_is_divided_and_brings_no_corpus(tmp_path, monkeypatch):
    rows = [{**POPQA, "id": i, "question": f"In what country is {i}?"} for i in range(200)]
    monkeypatch.setattr("smartrag.data.load.write_hub", lambda name, folder: hub.write_rows(name, None, rows, folder))
    dataset = read("popqa", cache=tmp_path)
    assert min(len(dataset.train), len(dataset.dev), len(dataset.test)) > 0
    assert len(dataset.train) + len(dataset.dev) + len(dataset.test) == 200
    assert dataset.corpus is None


def test_a_hub_out_of_reach_is_told_with_the_way_out(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match=r"hotpotqa/hotpot_qa cannot be had .*Couldn't reach.*train.jsonl"):
        read("hotpotqa", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
