"""The embedded data set: the same everywhere, unambiguous, and without a test question in training."""

import json
from collections import Counter

from smartrag.data.world import CITIES, PER_COUNTRY, QUESTIONS, corpus, questions, split_of, world, write_world
from smartrag.score import contains, exact_match


def every_question():
    return [q for members in questions().values() for q in members]


def test_names_are_unique_and_no_city_is_called_like_a_country():
    places = world()
    cities = {city.name.lower() for city in places.cities}
    assert len(cities) == len(places.cities) == CITIES
    assert not cities & {country.name.lower() for country in places.countries}
    assert not cities & {name.lower() for name in places.spare_names}
    assert all(name.isascii() and name.isprintable() for name in cities)


def test_cities_go_from_popular_to_rare_and_no_country_dominates():
    places = world()
    populations = [city.population for city in places.cities]
    assert populations == sorted(populations, reverse=True)
    assert max(Counter(city.country.name for city in places.cities).values()) == PER_COUNTRY
    assert 190 <= len(places.countries) <= 230


def test_known_facts_stand_in_it():
    answers = {q.text: q.answers for q in every_question()}
    assert answers["Which country is Mumbai in?"] == ("India",)
    assert answers["What is the capital of Kazakhstan?"] == ("Astana", "Nur-Sultan")
    assert "USA" in answers["Which country is Chicago in?"]
    assert answers["What is the currency of Japan?"] == ("Yen",)


def test_splits_are_disjoint_and_hold_what_evaluation_needs():
    splits = questions()
    texts = {split: {q.text for q in members} for split, members in splits.items()}
    assert not texts["train"] & texts["dev"]
    assert not texts["train"] & texts["test"]
    assert not texts["dev"] & texts["test"]
    hops = Counter(q.meta["hops"] for q in splits["test"])
    assert hops[1] >= 600
    assert hops[2] >= 60
    everything = every_question()
    assert 0.12 < sum(q.meta["hops"] == 2 for q in everything) / len(everything) < 0.18
    assert all(split_of(q.meta["type"], q.meta["subject"]) == split for split, qs in splits.items() for q in qs)


def test_ids_are_unique_and_meta_is_complete():
    everything = every_question()
    assert len({q.id for q in everything}) == len({q.text for q in everything}) == len(everything)
    for q in everything:
        assert set(q.meta) == {"dataset", "hops", "type", "subject", "popularity", "queries"}
        assert q.text == QUESTIONS[q.meta["type"]].format(q.meta["subject"])
        assert len(q.meta["queries"]) == q.meta["hops"]
        assert q.meta["queries"][0] == q.meta["subject"]
        assert q.meta["popularity"] > 0


def test_the_gold_queries_are_titles_of_passages_that_lead_to_the_answer():
    passages = {row["contents"].split("\n")[0]: row["contents"] for row in corpus()}
    assert len(passages) == len(corpus())
    for q in every_question():
        trail = [passages[query] for query in q.meta["queries"]]
        assert contains(trail[-1], q.answers), q
        if q.meta["hops"] == 2:
            assert contains(trail[0], [q.meta["queries"][1]]), q


def test_the_sentence_that_answers_comes_first():
    for row in corpus():
        title, text = row["contents"].split("\n")
        assert text.startswith(f"{title} is a c")


def test_aliases_count_as_exact_matches():
    question = next(q for q in every_question() if "Myanmar" in q.answers)
    assert exact_match("burma", question.answers) == 1.0


def test_writing_twice_gives_the_same_bytes_in_the_folder_form(tmp_path):
    for name in ("one", "two"):
        write_world(tmp_path / name)
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "corpus.jsonl"):
        written = (tmp_path / "one" / name).read_bytes()
        assert written == (tmp_path / "two" / name).read_bytes()
        fields = set(json.loads(written.splitlines()[0]))
        assert fields == ({"id", "contents"} if name == "corpus.jsonl" else {"id", "question", "answers", "meta"})
