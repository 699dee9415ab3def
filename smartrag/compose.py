"""From the command line to a checked `Run`: Hydra composes conf/, the schema types it, `check` bounds it.

A typo is refused with the nearest valid name and all problems come at once, before anything heavy is imported.
"""

import difflib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from smartrag import ROOT
from smartrag.check import check
from smartrag.config import Run
from smartrag.exits import USAGE_ERROR

CONF = ROOT / "conf"
_IS_GLOBAL = "@package _global_"  # of an option that sets other groups too
_FREE = ("hydra.", "learner.deepspeed.", "cluster.engine.engine_args.", "data.mix.")  # their keys have no fields

ConfigStore.instance().store(name="run_schema", node=Run)

_T = TypeVar("_T")


class ConfigError(ValueError):
    """Everything wrong with a command line, one problem a line."""


def load(overrides: Sequence[str], known: Sequence[str] = ()) -> Run:
    """The run that these Hydra overrides mean, e.g. ["+experiment=quickstart", "seed=1"]. Raises ConfigError.

    `known`: names that the command line may hold beside a run's, for a mistyped one to be near to.
    """
    problems = list(_unknown_names(overrides, known))
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            run = to_run(compose("train", _over_null(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_plainly(error)) from error
    except (AssertionError, AttributeError) as error:  # OmegaConf's answer to a value for a group that is null
        named = " ".join(o for o in overrides if "." in o.partition("=")[0])
        advice = "choose an option that has it first, or give it whole, name={...}"
        raise ConfigError(f"{named}: sets a group that is null here; {advice}") from error
    return _checked(run)


def beside(schema: type[_T], file: str, arguments: Sequence[str]) -> tuple[_T, list[str]]:
    """(settings, the other arguments): arguments named as fields of `schema` are the settings, whose values are in
    conf/<file>. Raises ConfigError."""
    names = _names(schema)
    own = [argument for argument in arguments if argument.partition("=")[0] in names]
    try:
        values = (OmegaConf.load(CONF / file), OmegaConf.from_dotlist(own))
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), *values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{' '.join(own)}: {str(error).splitlines()[0]}") from error
    assert isinstance(settings, schema)
    return settings, [argument for argument in arguments if argument not in own]


def alone(schema: type[_T], file: str, arguments: Sequence[str]) -> _T:
    """`beside` where nothing else may stand, and every setting that conf/<file> leaves empty must. Raises ConfigError
    with all that is wrong."""
    settings, others = beside(schema, file, arguments)
    names = _names(schema)
    problems = [f"{name}=... must be given" for name in names if getattr(settings, name) == ""]
    for argument in others:
        name, found, _ = argument.partition("=")
        is_named = f"there is no setting {name!r}{nearest(name, names)}"
        problems.append(f"{argument}: {is_named}" if found else f"{argument!r} is not of the form name=value")
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def load_beside(schema: type[_T], file: str, arguments: Sequence[str]) -> tuple[_T, Run, list[str]]:
    """(settings, run, its overrides): `beside`, where all other arguments mean the run. Raises ConfigError."""
    settings, others = beside(schema, file, arguments)
    return settings, load(others, known=_names(schema)), others


def _names(schema: Any) -> list[str]:
    return [field.name for field in fields(schema)]


def change(path: Path, overrides: Sequence[str]) -> Run:
    """The run of a config.yaml (`as_yaml` wrote it) with `overrides` laid over it, options of groups before values.

    A group's option replaces what the run had of that group. Raises ConfigError; FileNotFoundError without the file.
    """
    problems = list(_unknown_names(overrides, ()))
    if problems:
        raise ConfigError("\n".join(problems))
    config: Any = OmegaConf.merge(OmegaConf.structured(Run), OmegaConf.load(path))
    groups, values = _groups(), []
    try:
        for override in overrides:
            name, _, value = override.lstrip("+").partition("=")
            if name not in groups:
                values.append(override.lstrip("+"))
                continue
            for i, option in enumerate(value.strip("[]").split(",")):
                file = CONF / name / f"{option.strip()}.yaml"
                laid = OmegaConf.load(file)
                if _IS_GLOBAL not in file.read_text(encoding="utf-8"):
                    laid = OmegaConf.create({name: laid})
                    if i == 0:
                        config[name] = OmegaConf.structured(get_type_hints(Run)[name])
                config = OmegaConf.merge(config, laid)
        config = OmegaConf.merge(config, OmegaConf.from_dotlist(_over_null(values)))
        return _checked(to_run(config))
    except (OmegaConfBaseException, AssertionError) as error:
        raise ConfigError(_plainly(error)) from error


def _checked(run: Run) -> Run:
    if problems := check(run):
        raise ConfigError("\n".join(problems))
    return run


def to_run(config: DictConfig) -> Run:
    run = OmegaConf.to_object(config)
    assert isinstance(run, Run)
    return run


def as_yaml(run: Run) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(run))


def from_yaml(path: Path) -> Run:
    """What `as_yaml` wrote. Raises FileNotFoundError."""
    config = OmegaConf.merge(OmegaConf.structured(Run), OmegaConf.load(path))
    assert isinstance(config, DictConfig)
    return to_run(config)


def different(a: Any, b: Any, prefix: str = "") -> Iterator[str]:
    """Names of the settings in which two runs differ."""
    for field in fields(a):
        ours, theirs, name = getattr(a, field.name), getattr(b, field.name), prefix + field.name
        if is_dataclass(ours) and type(ours) is type(theirs):
            yield from different(ours, theirs, f"{name}.")
        elif ours != theirs:
            yield name


def main(action: Callable[[Run], None]) -> None:
    """Runs a launch script: `action` gets the checked run. With flags (--help, --cfg job, -m, ...) Hydra takes over."""
    arguments = sys.argv[1:]
    if any(a.startswith("-") for a in arguments):
        sys.argv[1:] = _over_null(arguments)
        app = hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
        app(lambda config: action(_checked(to_run(config))))()
        return
    action(understood(load, arguments))


def understood(load: Callable[[Sequence[str]], _T], arguments: Sequence[str]) -> _T:
    """What `load` makes of a script's command line; where it raises ConfigError the process ends with USAGE_ERROR."""
    try:
        return load(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(USAGE_ERROR)


def _over_null(overrides: Sequence[str]) -> list[str]:
    """OmegaConf dies of a mapping laid over a null (`model.lora={...}`), but not of one laid over a missing value.

    So what may be null is given whole.
    """
    optional, made = set(_optional(Run)), []
    for override in overrides:
        name, _, value = override.partition("=")
        made += [f"{name}=???", override] if name in optional and value.startswith("{") else [override]
    return made


def _optional(node: Any, prefix: str = "") -> Iterator[str]:
    """Names of the settings that are a dataclass or null."""
    for field in fields(node):
        if any(is_dataclass(kind) for kind in get_args(field.type)):
            yield prefix + field.name
        elif isinstance(field.type, type) and is_dataclass(field.type):
            yield from _optional(field.type, f"{prefix}{field.name}.")


def _unknown_names(overrides: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    """Problems of names: Hydra accepts `+typo=1` in silence and does not suggest what was meant."""
    keys, groups = list(_keys(Run)), _groups()
    for override in overrides:
        name, found, value = override.lstrip("+~").partition("=")
        if not found:
            yield f"{override!r} is not of the form name=value"
        elif name in groups:
            for option in value.strip("[]").split(","):  # data=[popqa,hotpotqa] merges the two in this order
                if option.strip() not in groups[name]:
                    yield f"{override}: no {name} is called {option.strip()!r}{nearest(option, groups[name])}"
        elif name not in keys and not name.startswith(_FREE):
            yield f"{override}: there is no setting {name!r}{nearest(name, [*known, *keys, *groups])}"


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(node):
        yield prefix + field.name
        for inner in (field.type, *get_args(field.type)):  # the arguments: of `Group | None`
            if isinstance(inner, type) and is_dataclass(inner):
                yield from _keys(inner, f"{prefix}{field.name}.")


def _groups() -> dict[str, list[str]]:
    return {d.name: sorted(f.stem for f in d.glob("*.yaml")) for d in sorted(CONF.iterdir()) if d.is_dir()}


def nearest(name: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(valid[:20])}"


def _plainly(error: BaseException) -> str:
    """What Hydra found wrong, without its advice on stack traces and its object types: the innermost message."""
    said, cause = [str(error)], error.__cause__
    while cause is not None:
        said.append(str(cause))
        cause = cause.__cause__
    lines = [line.strip() for line in "\n".join(said).splitlines()]
    lines = [
        line
        for line in lines
        if not re.match(r"(object_type=|reference_type=|Set the environment|full_key: $|$)", line)
    ]
    return "\n".join(dict.fromkeys(lines))
