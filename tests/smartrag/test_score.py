import pytest

from smartrag.score import contains, exact_match, f1, normalise

# Worked out with the evaluation script of SQuAD 1.1 (Rajpurkar et al. 2016).
CASES = [
    ("Denver Broncos", ["Denver Broncos"], 1.0, 1.0),
    ("the Denver Broncos!", ["Denver Broncos"], 1.0, 1.0),
    ("Broncos", ["Denver Broncos"], 0.0, 2 / 3),
    ("Denver Broncos of Colorado", ["Denver Broncos"], 0.0, 2 * 0.5 * 1 / 1.5),
    ("Santa Clara, California", ["Levi's Stadium", "Santa Clara"], 0.0, 2 * (2 / 3) * 1 / (5 / 3)),
    ("a b b", ["b b c"], 0.0, 2 * (2 / 2) * (2 / 3) / (1 + 2 / 3)),
    ("1,000", ["1000"], 1.0, 1.0),
    ("U.S.A.", ["USA"], 1.0, 1.0),
    ("the", ["a"], 1.0, 1.0),  # both normalise to nothing
    ("", ["Paris"], 0.0, 0.0),
    ("an apple", ["apple a"], 1.0, 1.0),
]


# Worked out with the evaluation script of HotpotQA (Yang et al. 2018), whose F1 differs in these.
YES_OR_NO = [
    ("yes", ["yes"], 1.0, 1.0),
    ("No.", ["no"], 1.0, 1.0),
    ("yes", ["no"], 0.0, 0.0),
    ("yes it is", ["yes"], 0.0, 0.0),
    ("no", ["no man's land"], 0.0, 0.0),
    ("no land", ["no man's land"], 0.0, 2 * 1 * (2 / 3) / (1 + 2 / 3)),
    ("noanswer", ["answer"], 0.0, 0.0),
]


@pytest.mark.parametrize(("answer", "gold", "em", "overlap"), CASES + YES_OR_NO)
def test_cases_of_squad_and_hotpotqa(answer: str, gold: list[str], em: float, overlap: float) -> None:
    assert exact_match(answer, gold) == em
    assert f1(answer, gold) == pytest.approx(overlap)


def test_normalise_and_containment_go_by_whole_words() -> None:
    assert normalise("The  Cat's (a) Hat.") == "cats hat"
    assert contains("Oslo is a city in Norway.", ["norway"])
    assert not contains("Norwayish", ["Norway"])
    assert not contains("anything", ["the"])
