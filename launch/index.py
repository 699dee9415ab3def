#!/usr/bin/env python
"""Build an index: python launch/index.py corpus=FOLDER_OR_FILE out=FOLDER [stemmer=porter | encoder=FOLDER] ..."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from smartrag.commands import Index
from smartrag.compose import composed, started
from smartrag.exits import BAD_INPUT


def index(config: Any) -> None:
    """`config`: an `Index`, values that are not given missing."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        sys.exit(_refused(f"{' and '.join(missing)} must be given; see python launch/index.py --help"))
    from cluster import dense
    from cluster.index import build_index
    from smartrag.config import Dense
    from smartrag.data.corpus import lines_of
    from smartrag.data.load import passages_of
    from smartrag.data.passages import Recipe

    out = Path(config.out).expanduser()
    recipe = Recipe(stemmer=config.stemmer, corpus=config.kind, share=config.share)
    try:
        with lines_of(passages_of(config.corpus), out.parent) as corpus:
            if config.encoder is None:
                lucene = build_index(corpus, out, recipe, threads=config.threads, k1=config.k1, b=config.b)
                rows, told = lucene.rows, f"fingerprint {lucene.fingerprint}"
            else:
                own = {name: config[name] for name in ("encoder", "passage_prefix", "max_tokens", "batch", "cosine")}
                made = dense.build(corpus, out, Dense(query_prefix="", **own), recipe)
                rows, told = made.rows, f"{made.dimension} numbers each"
    except (ValueError, RuntimeError, OSError) as error:  # bad data, an index in the way, no Java, a full disk
        sys.exit(_refused(str(error)))
    print(f"{out}: {rows:,} passages, {told}")


def _refused(why: str) -> int:
    print(why, file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    ConfigStore.instance().store(name="index_schema", node=Index)
    started("index", lambda given: composed("index", given), lambda config: config, index)
