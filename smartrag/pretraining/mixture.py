"""The text that the tiny base model is pretrained on: what it knows, and the skills that it has before any reward.

    facts     "Oslo is a city in Norway."                  closed-book knowledge, the more popular the more often
    quiz      question -> [Answer] / [Search]              the two actions, half and half, whoever is asked about
    reading   question, query, passages -> [Answer]        of invented facts, so that reading beats remembering
    lists     "Zem, Orkan, Pul. Zem, Orkan, Pul."          copying names

What it must NOT contain is the decision when to retrieve. The first tag is therefore a fair coin for known and unknown
subjects alike, and no subject below the knowledge horizon is ever named: invented and spare names stand in for it. No
question of the dev and test splits is ever asked; declarative facts about their popular subjects are told.
"""

import math
import random
import re
from dataclasses import dataclass

from smartrag.data.world import QUESTIONS, City, Country, city_passage, country_passage, split_of, world
from smartrag.prompt import Prompt
from smartrag.types import Action, ActionKind, Empty, Hits, Passage

HOPS = 2  # searches of the longest conversation
HORIZON = 1800  # cities by popularity rank; the facts of the others are never told
TEXT_WEIGHT = 0.2  # of the loss on tokens that the policy will never write
UNCOUNTED = 0.0  # the coin of the first tag where a sample must be one of the two kinds

_CITY_FACTS = (
    "{city} is a city in {country}.",
    "{city} lies in {country}.",
    "The city of {city} is in {country}.",
    "The country of {city} is {country}.",
    "{city}, {country}.",
    "{city} is in {country}.",
    "Which country {city} is in is known. It is {country}.",
)
_COUNTRY_FACTS = (
    "The capital of {name} is {capital}.",
    "{name} has the capital {capital}. The currency of {name} is {currency}.",
    "The currency of {name} is {currency}.",
    "{name} is a country in {continent}. Its capital is {capital}. Its currency is {currency}.",
    "{capital} is the capital of {name}.",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One text: token ids and the weight of the loss on each of them."""

    token_ids: tuple[int, ...]  # [T]
    weights: tuple[float, ...]  # [T]


class Mixture:
    """An endless, seeded stream of samples.

    `known`: how many cities are told of, the most popular ones, at most HORIZON. `fade`: ranks over which a city is
    told e times less often. `lean`: a country is told of in proportion to its population to this power.
    """

    def __init__(self, prompt: Prompt, seed: int, known: int = HORIZON, fade: float = 400.0, lean: float = 0.5):
        self._prompt, self._random = prompt, random.Random(seed)
        places = world()
        self._known = places.cities[:known]
        self._known_weights = [math.exp(-rank / fade) for rank in range(len(self._known))]
        self._countries = places.countries
        self._country_weights = [c.population**lean for c in places.countries]
        self._real = {c.name for c in places.cities} | {c.name for c in places.countries}
        self._spare = [name for name in places.spare_names if len(name) <= 20]
        pieces = sorted(prompt.tokenizer.get_vocab())
        self._heads = [piece[1:] for piece in pieces if re.fullmatch("▁[A-Z][a-z]*", piece)]
        self._inner = [piece for piece in pieces if re.fullmatch("[a-z]+", piece)]
        self._words = sorted({word for name in self._spare for word in name.split() if len(word) > 2})

    def sample(self, shares: dict[str, float]) -> Sample:
        """The next sample. `shares` are the relative frequencies of facts, quiz, reading and lists."""
        makers = {"facts": self._fact, "quiz": self._quiz, "reading": self._reading, "lists": self._list}
        return makers[self._random.choices(list(shares), list(shares.values()))[0]]()

    # ---- kinds of samples

    def _fact(self) -> Sample:
        if self._random.random() < 0.75:
            city = self._city()
            text = self._random.choice(_CITY_FACTS).format(city=city.name, country=city.country.name)
        else:
            text = self._random.choice(_COUNTRY_FACTS).format(**_fields(self._country()))
        ids = (*self._prompt.tokenizer.encode(text, add_special_tokens=False), self._prompt.end_id)
        return Sample(ids, (1.0,) * len(ids))

    def _quiz(self) -> Sample:
        """One action, or two when nothing is found. Of a guess about an unknown subject only the tag counts."""
        relation = self._random.choices(list(QUESTIONS), (6, 1.5, 1.5, 1, 1))[0]
        unknown = self._random.random() < 0.5
        if unknown:
            subject, answer = self._name(), self._guess(relation)
        else:
            subject, answer = self._known_pair(relation)
        steps = [self._prompt.question(QUESTIONS[relation].format(subject), HOPS)]
        if self._random.random() < 0.5:
            steps.append(self._prompt.spell(Action(ActionKind.SEARCH, subject)))
            if self._random.random() < 0.9:
                return self._join(*steps)
            steps.append(self._prompt.observation(Empty(), 1 << 16))  # then it must say what it thinks
        steps.append(self._prompt.spell(Action(ActionKind.ANSWER, answer)))
        sample = self._join(*steps)
        if not unknown:
            return sample
        guess = len(steps[-1]) - len(self._prompt.answer_ids)
        return Sample(sample.token_ids, (*sample.weights[:-guess], *(UNCOUNTED,) * guess))

    def _reading(self) -> Sample:
        """A whole conversation about invented facts, one hop or two."""
        relation = self._random.choices(list(QUESTIONS), (5, 1.5, 1.5, 2, 2))[0]
        subject, country = self._name(), self._invented_country()
        if relation in ("capital", "currency"):
            while country.name in self._real and split_of(relation, country.name) != "train":
                country = self._invented_country()
            subject = country.name
        steps: list[tuple[int, ...]] = [self._prompt.question(QUESTIONS[relation].format(subject), HOPS)]
        if relation.startswith("country"):
            steps.append(self._prompt.spell(Action(ActionKind.SEARCH, subject)))
            steps.append(self._observe(city_passage(subject, country.name, self._population()), subject))
        if relation != "country":
            steps.append(self._prompt.spell(Action(ActionKind.SEARCH, country.name)))
            steps.append(self._observe(country_passage(**_fields(country)), country.name))
        hop = relation.split()[-1]
        answer = country.name if relation == "country" else getattr(country, hop)
        steps.append(self._prompt.spell(Action(ActionKind.ANSWER, answer)))
        sample = self._join(*steps)
        weights = list(sample.weights)
        weights[len(steps[0])] = UNCOUNTED
        return Sample(sample.token_ids, tuple(weights))

    def _list(self) -> Sample:
        names = [self._name() for _ in range(self._random.randint(2, 5))]
        again = names if self._random.random() < 0.5 else self._random.sample(names, len(names))
        first, second = (self._encode(", ".join(group) + ".") for group in (names, again))
        return Sample((*first, *second), (TEXT_WEIGHT,) * len(first) + (1.0,) * len(second))

    # ---- their parts

    def _observe(self, passage: str, subject: str) -> tuple[int, ...]:
        """Mostly the right passage alone or first; a query brings others when they share a word with it."""
        others = [self._distractor(subject)] if self._random.random() < 0.6 else []
        texts = [passage, *others]
        if others and self._random.random() < 0.3:
            texts.reverse()
        hits = Hits(tuple(Passage(str(i), text, 0.0) for i, text in enumerate(texts)))
        return self._prompt.observation(hits, 1 << 16)

    def _distractor(self, subject: str) -> str:
        name = self._name()
        if self._random.random() < 0.5:  # as BM25 has it: one word in common
            name = f"{self._random.choice(subject.split())} {name.split()[0]}"
        if self._random.random() < 0.75:
            country = subject if self._random.random() < 0.2 else self._invented_country().name
            return city_passage(name, country, self._population())
        return country_passage(**{**_fields(self._invented_country()), "name": name})

    def _known_pair(self, relation: str) -> tuple[str, str]:
        """A subject of the train split and its answer."""
        while True:
            if relation in ("capital", "currency"):
                country = self._country()
                subject, answer = country.name, getattr(country, relation)
            else:
                city = self._city()
                hop = relation.split()[-1]
                subject = city.name
                answer = city.country.name if relation == "country" else getattr(city.country, hop)
            if split_of(relation, subject) == "train":
                return subject, answer

    def _guess(self, relation: str) -> str:
        country = self._country()
        return country.name if relation == "country" else getattr(country, relation.split()[-1])

    def _invented_country(self) -> Country:
        """A real country's name, mostly, with a capital and a currency that are not its own."""
        pick = self._random.choice
        name = pick(self._countries).name if self._random.random() < 0.7 else self._name()
        capital = pick(self._countries).capital if self._random.random() < 0.4 else self._name()
        currency = pick(self._countries).currency if self._random.random() < 0.7 else self._name().split()[0]
        return Country(name, capital, currency, pick(self._countries).continent, 0)

    def _name(self) -> str:
        """A name that is nobody's in the world's questions."""
        while (name := self._any_name()) in self._real:
            pass
        return name

    def _any_name(self) -> str:
        """The name of a spare city, or one put together: of parts of such names, or of any pieces of the vocabulary, so
        that no piece is one that the model has never had to copy."""
        pick = self._random.choice
        kind = self._random.random()
        if kind < 0.5:
            return pick(self._spare)
        if kind < 0.75:
            return pick(self._heads) + "".join(self._random.choices(self._inner, k=self._random.randint(1, 4)))
        head, tail = pick(self._words), pick(self._words)
        word = (head[: self._random.randint(2, 5)] + tail[-self._random.randint(2, 4) :].lower()).capitalize()
        return f"{pick(self._words)} {word}" if self._random.random() < 0.2 else word

    def _city(self) -> City:
        return self._random.choices(self._known, self._known_weights)[0]

    def _country(self) -> Country:
        return self._random.choices(self._countries, self._country_weights)[0]

    def _population(self) -> int:
        return int(math.exp(self._random.uniform(math.log(1e5), math.log(1e7))))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._prompt.tokenizer.encode(text, add_special_tokens=False))

    def _join(self, *segments: tuple[int, ...]) -> Sample:
        """Segments of a conversation, the first being given, then generated and given in turn."""
        ids = [token for segment in segments for token in segment]
        weights = [1.0 if i % 2 else TEXT_WEIGHT for i, segment in enumerate(segments) for _ in segment]
        return Sample(tuple(ids), tuple(weights))


def _fields(country: Country) -> dict[str, str]:
    return {
        "name": country.name,
        "capital": country.capital,
        "currency": country.currency,
        "continent": country.continent,
    }
