#!/usr/bin/env python
"""Serve a trained policy: decide, retrieve, answer, as an OpenAI-compatible endpoint with a page to try it.

python launch/serve.py runs/quickstart/latest
python launch/serve.py runs/quickstart/latest port=8080 retriever.k=4    # another port, more passages
curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8000/v1/models

RUN        folder of a run or of one of its checkpoints, or a model: a folder or an id on the hub
host       address that is listened on [127.0.0.1]
port       and its port [8000]
timeout_s  seconds from a request to the end of its answer, waiting included [60]
waiting    questions that may wait for an engine; whoever comes then gets 429 [256]
           everything else changes the run's own settings, as on the command line of train.py

Clients need the token in the environment variable SMARTRAG_SERVE_TOKEN; without one a token is made and printed.
Ctrl-C or SIGTERM ends everything. More: docs/serving.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments: list[str]) -> int:
    from smartrag.compose import understood
    from smartrag.serving.settings import settings

    chosen, overrides = understood(settings, arguments)
    from cluster.serving import serve_policy

    return serve_policy(chosen, overrides)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    sys.exit(main(sys.argv[1:]))
