"""report.html: a run on one page that needs nothing else, no network and no script.

Passages, questions and what a model wrote are untrusted. Jinja escapes them, and the page's Content-Security-Policy
allows one style sheet, named by its hash, and nothing besides.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from smartrag.log import run_and_checkpoint
from smartrag.report import contrast, figures, prose, studies, tables
from smartrag.report.figures import Picture, Spot
from smartrag.report.plot import CURVES
from smartrag.report.record import Record, differences, read, read_study

_HERE = Path(__file__).parent
_MORE_CURVES = (("entropy", "entropy, nats a token"), ("retrieval_price", "price of a retrieval"))


def write(run: Path, out: Path | None = None, others: Sequence[Path] = ()) -> Path:
    """Writes the report of a run's folder, by default as report.html into it, and returns where it is.

    `others`: files of sweeps, ablations or further evaluations to go with it.

    Raises FileNotFoundError when `run` is not the folder of a run, ValueError for an unusable file among `others`.
    """
    record = read(run)
    given = {path: read_study(path) for path in others}
    html = render(record, {"/".join(path.parts[-3:]): found for path, found in given.items()})
    out = out or run_and_checkpoint(run)[0] / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    part.write_text(html, encoding="utf-8")
    os.replace(part, out)
    return out


def render(record: Record, others: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of a record and of what else was found out, by name."""
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    sweeps = [found for found in others.values() if isinstance(found.get("points"), list)]
    kinds = contrast.kinds(record.asked.get("before", []), record.asked.get("after", []))
    gaps = differences(record)
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        finalize=prose.spelled_out,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": prose.number, "interval": prose.interval}
    return environment.get_template("page.html.j2").render(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        record=record,
        subject=prose.subject(record),
        verdict=prose.verdict(record, gaps),
        settings=prose.settings(record),
        headline=tables.headline(record) if record.systems else None,
        differences=tables.differences(gaps),
        overview=_overview(record, gaps),
        keys=[figures.key(name) for name in record.systems],
        curves=_curves(record),
        training=tables.training(record.rows) if record.rows else None,
        health=tables.health(record.rows) if record.rows else None,
        popularity=tables.popularity(record),
        popularity_picture=_popularity(record),
        decisions=[*tables.own_groups(record), tables.transitions(record), tables.need(record)],
        evaluations=[studies.evaluation(found, name, sweeps) for name, found in record.evaluations.items()],
        others=[studies.study(found, name) for name, found in others.items()],
        kinds=kinds,
        sampled=[] if kinds else _sampled(record),
        splits=tables.splits(record),
        versions=tables.versions(record),
        seconds=tables.seconds(record),
        cost=tables.cost(record),
        limits=prose.limits(record, episodes_chosen=bool(kinds)),
    )


def _overview(record: Record, gaps: Mapping[str, Mapping[str, Any]]) -> list[Picture]:
    """Where the systems stand by cost and accuracy, and the paired differences in reward."""
    found = []
    spots = [
        Spot(figures.ink_of(name), of["retrievals_per_question"], of["em"])
        for name in record.systems
        if (of := record.summary[name]).get("em") and of.get("retrievals_per_question")
    ]
    if spots:
        found.append(figures.standing(spots, "Exact match against retrievals, test questions", "exact match"))
    lines = [(f"minus {other}", of["reward"], figures.ink_of(other)) for other, of in gaps.items() if of["reward"]]
    if lines:
        found.append(
            figures.forest(lines, "Reward after PPO, minus the others, paired", "difference in reward", zero=True)
        )
    return found


def _curves(record: Record) -> list[Picture]:
    wanted = [*CURVES, *_MORE_CURVES]
    if len({row.get("retrieval_price") for row in record.rows}) < 2:  # a price that stands still needs no curve
        wanted.pop()
    found = []
    for name, title in wanted:
        if any(row.get(name) is not None for row in record.rows):
            tests = {system: record.summary[system].get(name) for system in record.systems}
            known = {system: of for system, of in tests.items() if of}
            found.append(figures.training_curve(record.rows, name, title, known))
    return found


def _popularity(record: Record) -> Picture | None:
    key = "retrieval_rate_by_popularity_fifth"
    shares = {name: record.summary[name].get(key) for name in ("before", "after") if name in record.systems}
    known: dict[str, Any] = {name: values for name, values in shares.items() if values}
    return figures.popularity(known, "Share that retrieves, by fifth of popularity") if known else None


def _sampled(record: Record, each: int = 4) -> list[contrast.Shown]:
    """Training episodes of the first and of the last step, where no test question was asked twice."""
    steps = [row.get("step") for row in record.sampled]
    chosen = []
    for step in dict.fromkeys([*steps[:1], *steps[-1:]]):
        chosen += [row for row in record.sampled if row.get("step") == step][:each]
    return [contrast.shown(row) for row in chosen]
