#!/usr/bin/env python
"""Build a Lucene index: python launch/index.py corpus=FOLDER_OR_FILE out=FOLDER [stemmer=porter] [threads=1] ..."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from smartrag.choices import Corpus, Stemmer
from smartrag.compose import composed, started
from smartrag.exits import BAD_INPUT


@dataclass
class Index:
    corpus: str = MISSING
    out: str = MISSING
    k1: float = MISSING
    b: float = MISSING
    stemmer: Stemmer = MISSING
    share: float = MISSING
    kind: Corpus = MISSING
    threads: int = MISSING


def index(config: Any) -> None:
    """`config`: an `Index`, values that are not given missing."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        sys.exit(_refused(f"{' and '.join(missing)} must be given; see python launch/index.py --help"))
    from cluster.index import build_index
    from smartrag.data.corpus import lines_of
    from smartrag.data.load import passages_of
    from smartrag.data.passages import Recipe

    out = Path(config.out).expanduser()
    recipe = Recipe(stemmer=config.stemmer, corpus=config.kind, share=config.share)
    try:
        with lines_of(passages_of(config.corpus), out.parent) as corpus:
            manifest = build_index(corpus, out, recipe, threads=config.threads, k1=config.k1, b=config.b)
    except (ValueError, RuntimeError, OSError) as error:  # bad data, an index in the way, no Java, a full disk
        sys.exit(_refused(str(error)))
    print(f"{out}: {manifest.rows:,} passages, fingerprint {manifest.fingerprint}")


def _refused(why: str) -> int:
    print(why, file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    ConfigStore.instance().store(name="index_schema", node=Index)
    started("index", lambda given: composed("index", given), lambda config: config, index)
