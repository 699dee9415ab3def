"""What a run meets outside itself: Ray and its ports, the token, model, data, index, chat endpoints, W&B.

`cluster`, where a function takes it, is the address of the Ray that the run joins; "" when it starts one here.
`why` is why something does not answer; "" when it does. No value of a key, a token or a password comes in here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smartrag.choices import WandbMode
from smartrag.data.load import Place
from smartrag.doctor.finding import Finding, ok, problem, warning
from smartrag.origin import Origin

# What `ray start --head` takes unless its flag names another.
RAY_PORTS = {6379: "--port", 8265: "--dashboard-port", 52365: "--dashboard-agent-listen-port"}
_FETCH = "fetch it where the hub is in reach; a proxy goes into HTTPS_PROXY, a mirror into HF_ENDPOINT"


def ray(cluster: str, why: str, other: str, loopback: str) -> Finding:
    """`other`: address of a Ray that was started here, if any; `loopback`: what hinders a socket on it."""
    if cluster.startswith(("http://", "https://")):
        return warning(
            "Ray", f"{cluster} is where jobs are submitted, not what a run joins", "ray job submit, not python"
        )
    if cluster and why:
        todo = "start it (ray start --head), or unset RAY_ADDRESS and cluster.address for a Ray of the run's own"
        return problem("Ray", f"the run would join {cluster}: {why}", todo)
    if cluster:
        return ok("Ray", f"the run joins {cluster}, which answers")
    if loopback:
        return problem("Ray", f"no socket on loopback: {loopback}", "ip link set lo up")
    if other:
        return warning("Ray", f"the run starts one of its own beside that at {other}", f"RAY_ADDRESS={other} joins it")
    return ok("Ray", "the run starts one of its own, on loopback")


def ports(taken: Sequence[int], cluster: str, other: str) -> Finding:
    """`taken`: those of RAY_PORTS on which somebody listens here."""
    named = ", ".join(map(str, taken))
    if not taken:
        return ok("ports", f"{', '.join(map(str, RAY_PORTS))} free")
    if cluster or other:
        return ok("ports", f"{named} taken; the run needs none of them")
    flags = " ".join(f"{RAY_PORTS[port]}=OTHER" for port in taken)
    return warning("ports", f"{named} taken, which `ray start --head` would want", f"give it {flags}")


@dataclass(frozen=True, slots=True)
class Token:
    """What Ray's authentication finds here. `mode`: RAY_AUTH_MODE, "" when unset."""

    mode: str
    in_environment: bool  # RAY_AUTH_TOKEN
    file: Path  # RAY_AUTH_TOKEN_PATH, or Ray's own
    there: bool  # the file holds something
    bits: int  # of its mode
    shielded: bool  # a folder above keeps others out


def token(found: Token, cluster: str) -> Finding:
    """Whoever has the token runs code as its owner, and so does everybody where none is asked for."""
    check, file = "Ray token", found.file
    if found.mode not in ("", "token", "disabled"):
        return problem(check, f"RAY_AUTH_MODE={found.mode} is neither token nor disabled", "export RAY_AUTH_MODE=token")
    if found.mode == "disabled":
        return warning(check, "RAY_AUTH_MODE=disabled: who reaches Ray's ports runs code as you", "unset it")
    if found.mode == "" and cluster:
        return warning(
            check,
            f"RAY_AUTH_MODE is not set, so {cluster} is joined without a token",
            "start the cluster with RAY_AUTH_MODE=token, and set it here",
        )
    if found.in_environment:
        return ok(check, "in RAY_AUTH_TOKEN")
    if not found.there:
        if cluster:
            return problem(check, f"none in {file}", f"copy the cluster's to {file} and chmod 600 {file}")
        return ok(check, f"Ray will write one to {file}")
    if found.bits & 0o077 == 0:
        return ok(check, f"in {file}, which only you read")
    said = f"{file} has mode {found.bits:04o}"
    if found.shielded:
        return warning(check, f"{said}; only a folder above keeps others out", f"chmod 600 {file}")
    return problem(check, f"{said}: others can read it and run code as you", f"chmod 600 {file}")


def model(origin: Origin, fallback: Origin | None, hub: str) -> Finding:
    """`hub`: why the Hugging Face hub does not answer."""
    if origin.folder is not None:
        return ok("model", origin.told)
    if origin.repo is None:
        return ok("model", f"{origin.told}, unpacked at its first use")
    if not hub:
        return ok("model", f"{origin.told}, fetched at its first use")
    if fallback is not None and (fallback.repo is None or fallback.folder is not None):
        return warning("model", f"{origin.told}: {hub}; {fallback.told} takes its place", _FETCH)
    return problem("model", f"{origin.told}: {hub}", f"{_FETCH}; or give model.path=FOLDER")


def data(places: Mapping[str, Place], hub: str, kept: Iterable[str]) -> Finding:
    """`hub`: as for `model`; `kept`: repositories that the client of the hub has in its own cache."""
    said, lost, kept = [], [], set(kept)
    for name, place in places.items():
        if place.make is None:
            if place.lacks:
                lost_here = f"{place.folder} has no {', '.join(place.lacks)}"
                return problem("data", lost_here, "see docs/bring-your-own.md")
            said.append(f"{'the folder ' * place.folder.is_dir()}{place.folder}")
        elif place.folder.is_dir():
            said.append(f"{name}, in {place.folder}")
        elif place.repo is None:
            said.append(f"{name}, made at its first use")
        elif hub and place.repo not in kept:
            lost.append(f"{place.repo}: {hub}")
        else:
            said.append(f"{name}, fetched from {place.repo} at its first use")
    if lost:
        return problem("data", ", ".join(lost), f"{_FETCH}; or give data.source=FOLDER")
    return ok("data", ", ".join(said))


def index(given: str | None, rows: int, places: Mapping[str, Place]) -> Finding:
    """`given`: retriever.index; `rows`: passages in it."""
    if given is not None:
        return ok("index", f"{given}, {rows:,} passages")
    if bare := [name for name, place in places.items() if not place.passages]:
        return problem(
            "index",
            f"the data set {', '.join(bare)} brings no passages",
            "build an index with launch/index.py and give retriever.index=FOLDER",
        )
    return ok("index", "built from the data's passages, once")


def service(host: str, variable: str | None, has_key: bool, why: str) -> Finding:
    """retriever.http; `variable`: NAME of the one that should hold its key, None where none is sent."""
    wrong = [f"{variable} is not set"] * (not has_key) + [why] * bool(why)
    if not wrong:
        return ok("index", f"the service at {host}, which answers")
    todo = ["put its key into the variable, here and on the nodes"] * (not has_key)
    todo += ["start it, or name another with retriever.http.url"] * bool(why)
    return problem("index", ", ".join(wrong), "; ".join(todo))


def endpoint(setting: str, host: str, variable: str, has_key: bool, why: str) -> Finding:
    """`variable`: NAME of the one that should hold the key."""
    wrong = [f"{variable} is not set"] * (not has_key) + [why] * bool(why)
    if not wrong:
        return ok(setting, f"{host} answers, {variable} is set")
    todo = ["put its API key into the variable, or any word if it asks for none"] * (not has_key)
    todo += [f"start it, or name another with {setting}.base_url"] * bool(why)
    return problem(setting, ", ".join(wrong), "; ".join(todo))


def copies(uri: str | None, why: str) -> Finding:
    """`uri`: train.mirror; `why`: why it cannot be written."""
    if uri is None:
        return ok("copies", "none: train.mirror is not set")
    if why:
        return problem("copies", f"train.mirror={uri} cannot be written: {why}", "make the bucket, or see its keys")
    return ok("copies", f"{uri} can be written")


def wandb(mode: WandbMode, why: str) -> Finding:
    """`why`: why it cannot be online."""
    match mode:
        case WandbMode.disabled | WandbMode.offline:
            return ok("W&B", f"log.wandb={mode}")
        case _ if not why:
            return ok("W&B", "online")
        case WandbMode.online:
            return problem("W&B", f"log.wandb=online, but {why}", "log in, or choose log.wandb=auto")
        case _:
            return warning("W&B", f"offline: {why}", "nothing is lost: the run says how to sync it later")
