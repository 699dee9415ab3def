"""The folder of many runs that belong together, an ablation's or a sweep's: a new one, or one to go on with."""

from pathlib import Path

from cluster.system import BadInput
from smartrag.compose import as_yaml, different, from_yaml
from smartrag.config import Run
from smartrag.files import new_folder

# Where things are, what is shown and looked after, and how much is done at a time.
_MAY_DIFFER = (
    *("resume", "runs", "cache", "cluster.", "log.", "learner.check_every", "train.mirror"),
    *(f"retriever.{name}" for name in ("replicas", "threads", "cpus", "heap", "max_batch", "batch_wait_ms")),
    *(f"retriever.{name}" for name in ("timeout_s", "attempts", "remember")),
)


def find(run: Run, kind: str) -> Path:
    """runs/<name>/<kind>s/<id>, with the run it varies in config.yaml: that of `run.resume`, which must vary the same
    run, or a new one. Raises FileNotFoundError, BadInput, Unreadable."""
    parent = Path(run.runs).resolve() / run.name / f"{kind}s"
    if run.resume is None:
        home = new_folder(parent)
        (home / "config.yaml").write_text(as_yaml(run), encoding="utf-8")
        return home
    home = (parent / "latest" if run.resume == "latest" else Path(run.resume)).resolve()
    if not (home / "config.yaml").is_file():
        raise FileNotFoundError(f"resume={run.resume}: no {kind} in {home}; leave out `resume` to start a new one")
    changed = [name for name in different(from_yaml(home / "config.yaml"), run) if not name.startswith(_MAY_DIFFER)]
    if changed:
        raise BadInput(f"{home} is a {kind} of a run with other {', '.join(changed)}; see its config.yaml")
    return home
