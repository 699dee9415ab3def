"""Questions out of rows, and which of them are trained on where a file does not say.

A file of its own, `data.questions`, is divided by its column `split`; without one by a hash of each question's text, in
one spelling: of a hundred 80 are trained on, 10 are for dev and 10 for test. No seed is in it and no other row, so a
question stays where it is whatever is added, on every machine, and one that comes twice comes twice to the same side.
"""

from smartrag.data.rows import Problems, answers_of, identity, meta_of, show, text_of
from smartrag.data.splits import bucket
from smartrag.data.tables import QUESTIONS, Part, Row, parts
from smartrag.types import Question

SPLITS = ("train", "dev", "test")
DEV_FROM, TEST_FROM = 80, 90  # of a hundred
_WORDS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}

Asked = dict[str, Question]  # by where it stands, "file:line"


def read_split(source: str, found: Problems) -> Asked:
    """The questions of one split; what is wrong goes to `found`."""
    already, asked, seen = found.count, {}, {}  # type: ignore[var-annotated]
    for part in parts(source, QUESTIONS, found):
        for number, row in part.rows(found):
            where = f"{part.place}:{number}"
            if (question := _question(row, where, seen, found)) is not None:
                asked[where] = question
    if not asked and found.count == already:
        found.add(f"{source}: the split has no questions; write one {{'id', 'question', 'answers'}} a line")
    return asked


def divided(source: str, found: Problems) -> dict[str, Asked]:
    """The questions of one file, by split."""
    already, seen = found.count, {}  # type: ignore[var-annotated]
    by_name: dict[str, Asked] = {split: {} for split in SPLITS}
    unnamed: Asked = {}
    for part in parts(source, QUESTIONS, found):
        for number, row in part.rows(found):
            where, before = f"{part.place}:{number}", found.count
            split = _named_split(row, part, where, found)
            question = _question(row, where, seen, found)
            if question is not None and found.count == before:
                (unnamed if split is None else by_name[split])[where] = question
    if unnamed and any(by_name.values()):
        for where in unnamed:
            found.add(f'{where}: field "split" is missing, which other rows have; add it, or leave it out of all')
    by_hash = bool(unnamed)
    for where, question in unnamed.items():
        by_name[_split_of(question.text)][where] = question
    empty = [split for split in SPLITS if not by_name[split]]
    if empty and found.count == already:
        said = "by the hash of their texts" if by_hash else 'by their "split"'
        cure = (
            'add questions, or a column "split" (train, dev, test)'
            if by_hash
            else "each of train, dev, test needs some"
        )
        count = sum(len(asked) for asked in by_name.values())
        found.add(f"{source}: of {count} question(s) none comes to {' and '.join(empty)} {said}; {cure}")
    return by_name


def _split_of(text: str) -> str:
    place = bucket(text)
    return "train" if place < DEV_FROM else "dev" if place < TEST_FROM else "test"


def _named_split(row: Row, part: Part, where: str, found: Problems) -> str | None:
    """None where neither the row nor its part says."""
    said = row.get("split", part.split or None)
    if "split" not in row and said is None:
        return None
    split = _WORDS.get(said.strip().casefold()) if isinstance(said, str) else None
    if split is None:
        found.add(f'{where}: field "split" must be one of {", ".join(_WORDS)}, got {show(said)}')
    return split


def _question(row: Row, where: str, seen: dict[str, str], found: Problems) -> Question | None:
    before = found.count
    text = text_of(row, "question", where, found)
    name = identity(row, where, seen, found, made_of=" ".join(text.casefold().split()))
    answers, meta = answers_of(row, where, found), meta_of(row, where, found)
    return Question(name, text.strip(), answers, meta) if found.count == before else None
