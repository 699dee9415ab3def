"""What each part costs beside the limit of what it is built on."""

import logging
from collections.abc import Callable
from pathlib import Path

from cluster.bench import corpora, learner, peers, push, retrieval, rollout, step
from cluster.refusal import REFUSALS, refused, show_log
from cluster.system import connect
from smartrag.choices import Part
from smartrag.commands import Bench
from smartrag.compose import as_yaml
from smartrag.config import Run
from smartrag.experiments.bench import Figure, as_json, show
from smartrag.files import new_folder, write_whole
from smartrag.origin import resolve

logger = logging.getLogger("smartrag")

_PARTS: dict[Part, Callable[[Run, Path, int], dict[str, Figure]]] = {
    Part.rollout: rollout.bench,
    Part.retrieval: retrieval.bench,
    Part.corpora: corpora.bench,
    Part.learner: learner.bench,
    Part.push: push.bench,
    Part.step: step.bench,
    Part.authors: peers.authors,
    Part.trl: peers.trl,
}


def bench(settings: Bench, run: Run) -> int:
    """Measures, prints the table, writes bench.json and returns the exit code."""
    show_log()
    try:
        return _bench(settings, run)
    except REFUSALS as error:
        return refused(error)


def _bench(settings: Bench, run: Run) -> int:
    path = resolve(run.model, Path(run.cache).expanduser() / "models")
    connect(run)
    home = new_folder(Path(run.runs).resolve() / "bench")
    (home / "config.yaml").write_text(as_yaml(run), encoding="utf-8")
    figures: dict[str, Figure] = {}
    for part in settings.only:
        if part in (Part.authors, Part.trl) and run.learner.gpus:
            logger.info("%s: compared on CPUs alone, and left out", part)
            continue
        logger.info("measuring the %s", part)
        figures |= _PARTS[part](run, path, settings.repeats)
        write_whole(home / "bench.json", as_json(figures))
    show(figures)
    logger.info("all of it is in %s", home)
    return 0
