"""What a command line says, judged word by word: before Hydra composes anything, and all that is wrong at once.

    name=value      a setting of the schema, of its type; or a group and one of its options
    +name=value     likewise: Hydra's way to add what conf/train.yaml leaves out, as in +experiment=quickstart

No word may reach beyond the run's own settings: nothing is instantiated from them, no resolver is called by them (it
could bring a secret into config.yaml and W&B), and Hydra's launchers, callbacks and search path stay as they are.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from smartrag import ROOT
from smartrag.config import Run
from smartrag.data.rows import listed

CONF = ROOT / "conf"
_FREE = ("learner.deepspeed.", "cluster.engine.engine_args.", "data.mix.")  # their keys have no fields
_SEVERAL = "data"  # the group whose options add up
# Of Hydra's flags those that only show something, or run what the others mean. Not among them: --config-dir and its
# like, which bring in files that Hydra instantiates from, and --experimental-rerun, which unpickles.
_FLAGS: tuple[str, ...] = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package")
_FLAGS += ("-r", "--run", "-m", "--multirun", "-sc", "--shell-completion", "-i", "--info")


class ConfigError(ValueError):
    """Everything wrong with a command line, one problem a line."""


def refuse(problems: Sequence[str]) -> None:
    """Raises ConfigError when there are any; so many of them that they would fill a screen are counted."""
    if problems:
        raise ConfigError("\n".join(listed(problems, len(problems))))


def problems(overrides: Sequence[str], known: Sequence[str] = ()) -> dict[str, str]:
    """Override -> what is wrong with it, for those that are wrong.

    `known`: names that the command line may hold beside a run's, for a mistyped one to be near to.
    """
    names, groups = list(keys(Run)), options()
    return {o: problem for o in overrides if (problem := _problem(o, names, groups, known))}


def harmless(arguments: Sequence[str]) -> None:
    """Raises ConfigError for what neither a setting nor a flag of a command line that Hydra itself reads may do."""
    found = [danger for a in arguments if (danger := dangerous(a))]
    for argument in arguments:
        if argument.startswith("-") and argument.partition("=")[0] not in _FLAGS:
            found.append(
                f"{argument}: settings come from conf/ and name=value alone; of Hydra's flags there are here: "
                f"{', '.join(_FLAGS)}"
            )
    refuse(found)


def dangerous(override: str) -> str:
    """Why a name=value may not be taken, whatever it is a setting of; "" when it may."""
    try:
        override.encode()
    except UnicodeEncodeError as error:
        return f"{override!r} is not valid UTF-8 at character {error.start}; write it in UTF-8"
    name, _, value = override.partition("=")
    if "_target_" in override:
        return f"{override}: nothing is instantiated from a configuration, so _target_ has no place in it; leave it out"
    if re.match(r"[+~]*hydra[./@]", name):
        return f"{override}: Hydra's own settings stay as conf/ has them; leave it out"
    if "${" in value:
        return (
            f"{override}: ${{...}} is not looked up here, where it could bring a secret into config.yaml; write it out"
        )
    return ""


def _problem(override: str, names: Sequence[str], groups: dict[str, list[str]], known: Sequence[str]) -> str:
    if danger := dangerous(override):
        return danger
    name, found, value = override.removeprefix("+").removeprefix("+").partition("=")
    if not found or not name:
        return f"{override!r} is not of the form name=value"
    if name.startswith("~"):
        return f"{override}: nothing can be taken out of a run; set it to another value, or to null where it may be"
    if name not in (*names, *groups) and not name.startswith(_FREE):
        return f"{override}: there is no setting {name!r}{nearest(name, [*known, *names, *groups])}"
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        said = str(error).splitlines()[0]
        return f"{override}: cannot be read ({said}); close what is open, and quote a text: 'name=\"...\"'"
    if parsed.is_sweep_override():
        return f"{override}: one value is due; a list is [1,2], a text with a comma is quoted: 'name=\"a, b\"'"
    if name in groups:
        return _no_option(override, name, value, groups[name])
    return _mistyped(override, name, parsed)


def _no_option(override: str, name: str, value: str, there: Sequence[str]) -> str:
    chosen = [option.strip() for option in value.strip("[]").split(",")]  # data=[popqa,hotpotqa] merges the two
    for option in chosen:
        if option not in there and not (value.startswith("{") and name in _fields_of(Run)):
            return f"{override}: no {name} is called {option!r}{nearest(option, there)}"
    if len(chosen) > 1 and name != _SEVERAL and not value.startswith("{"):
        return f"{override}: of several options the last would win; choose one of them"
    if name == "experiment" and not override.startswith("+"):
        return f"{override}: an experiment is added, +{override}"
    return ""


def _mistyped(override: str, name: str, parsed: Override) -> str:
    """By the type of the field alone; a mapping is left to Hydra."""
    value, (*path, leaf) = parsed.value(), name.split(".")
    owner: Any = Run
    for part in path:
        owner = _group(_fields_of(owner)[part]) if part in _fields_of(owner) else None
        if owner is None:
            return ""  # a key of _FREE
    if isinstance(value, dict) or leaf not in _fields_of(owner):
        return ""
    config = OmegaConf.structured(owner)
    try:
        config[leaf] = value
    except OmegaConfBaseException as error:
        return mistaken(override, error)
    return ""


def mistaken(override: str, error: Exception) -> str:
    """What OmegaConf or YAML found wrong with a value."""
    if isinstance(error, MarkedYAMLError):
        return f"{override}: cannot be read ({error.problem}); close what is open"
    said, (name, _, value) = str(error).splitlines()[0], override.partition("=")
    if "is not Optional" in said:
        return f"{override}: a value is due, null is none; leave it out for that of conf/"
    if "is not a ListConfig" in said:
        return f"{override}: a list is due; write {name}=[{value}]"
    return f"{override}: {said}"


def contradictions(arguments: Sequence[str]) -> list[str]:
    """Words that give a name another value than an earlier one, whose last would win in silence."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(a.lstrip("+").partition("=")[0], a), a) for a in arguments if "=" in a]
    return [
        f"{earlier} and {later} contradict each other; leave one of them out"
        for earlier, later in pairs
        if earlier.lstrip("+") != later.lstrip("+")
    ]


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Names of all settings below a dataclass, groups included."""
    for name, kind in _fields_of(node).items():
        yield prefix + name
        if (inner := _group(kind)) is not None:
            yield from keys(inner, f"{prefix}{name}.")


def free(name: str) -> bool:
    """Whether a setting of that name needs no field."""
    return name.startswith(_FREE)


def options() -> dict[str, list[str]]:
    """Group -> names of its options."""
    return {d.name: sorted(f.stem for f in d.glob("*.yaml")) for d in sorted(CONF.iterdir()) if d.is_dir()}


def nearest(name: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(valid[:20])}"


def _fields_of(node: Any) -> dict[str, Any]:
    return {field.name: field.type for field in fields(node)}


def _group(kind: Any) -> Any:
    """The dataclass of a field's type, `Group` or `Group | None`; None for others."""
    return next((k for k in (kind, *get_args(kind)) if isinstance(k, type) and is_dataclass(k)), None)
