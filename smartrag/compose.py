"""From the command line to a checked `Run`: Hydra composes conf/, the schema types it, `check` bounds it.

What is wrong with the words (`arguments`) and with the values comes at once, before anything heavy is imported.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from yaml import YAMLError

from smartrag import arguments as words
from smartrag.arguments import CONF, ConfigError, nearest, refuse
from smartrag.bounds import out_of_bounds
from smartrag.check import check
from smartrag.config import Run
from smartrag.data.rows import listed
from smartrag.exits import USAGE_ERROR
from smartrag.older import completed

_IS_GLOBAL = "@package _global_"  # of an option that sets other groups too

ConfigStore.instance().store(name="run_schema", node=Run)

_T = TypeVar("_T")


class Unreadable(ValueError):
    """A config.yaml that is not what a run wrote; the message names the file and what is wrong in it."""


def load(overrides: Sequence[str], known: Sequence[str] = ()) -> Run:
    """The run that these Hydra overrides mean, e.g. ["+experiment=quickstart", "seed=1"]. Raises ConfigError.

    `known`: names that the command line may hold beside a run's, for a mistyped one to be near to.
    """
    wrong = words.problems(overrides, known)
    if {o.lstrip("+").partition("=")[0] for o in wrong} & {*words.options()}:
        refuse([*wrong.values()])  # what the other words mean depends on it
    rest = _over_null([o for o in overrides if o not in wrong])
    try:
        with _plain(rest):
            run = to_run(composed("train", rest))
    except ConfigError as error:
        raise ConfigError("\n".join([*wrong.values(), str(error)])) from error
    refuse([*wrong.values(), *(out_of_bounds(run) if wrong else check(run))])
    return run


def composed(file: str, overrides: Sequence[str]) -> DictConfig:
    """What Hydra makes of conf/<file>.yaml and `overrides`. Raises ConfigError."""
    with _plain(overrides):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(file, list(overrides))


@contextmanager
def _plain(overrides: Sequence[str]) -> Iterator[None]:
    """Errors of Hydra and OmegaConf become a ConfigError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_plainly(error)) from error
    except (AssertionError, AttributeError) as error:  # OmegaConf's answer to a value for a group that is null
        named = " ".join(o for o in overrides if "." in o.partition("=")[0])
        advice = "choose an option that has it first, or give it whole, name={...}"
        raise ConfigError(f"{named}: sets a group that is null here; {advice}") from error


def beside(schema: type[_T], file: str, arguments: Sequence[str]) -> tuple[_T, list[str]]:
    """(settings, the other arguments): arguments named as fields of `schema` are the settings, whose values are in
    conf/<file>. Raises ConfigError."""
    own = [argument for argument in arguments if argument.partition("=")[0] in _names(schema)]
    config: Any = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(CONF / file))
    wrong: dict[str, str] = {}
    for argument in own:
        if danger := words.dangerous(argument):
            wrong[argument] = danger
        elif not argument.partition("=")[2]:
            wrong[argument] = f"{argument!r} gives no value; leave it out for that of conf/{file}, or write name=value"
        else:
            try:
                config = OmegaConf.merge(config, OmegaConf.from_dotlist([argument]))
            except (OmegaConfBaseException, YAMLError) as error:
                wrong[argument] = words.mistaken(argument, error)
    refuse([*wrong.values()])
    settings = OmegaConf.to_object(config)
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
    refuse(problems)
    return settings


def load_beside(schema: type[_T], file: str, arguments: Sequence[str]) -> tuple[_T, Run, list[str]]:
    """(settings, run, its overrides): `beside`, where all other arguments mean the run. Raises ConfigError with the
    problems of both."""
    names, problems = _names(schema), []
    others = [argument for argument in arguments if argument.partition("=")[0] not in names]
    try:
        settings, _ = beside(schema, file, arguments)
    except ConfigError as error:
        problems.append(str(error))
    try:
        run = load(others, known=names)
    except ConfigError as error:
        problems.append(str(error))
    refuse(problems)
    return settings, run, others


def _names(schema: Any) -> list[str]:
    return [field.name for field in fields(schema)]


def change(path: Path, overrides: Sequence[str]) -> Run:
    """The run of a config.yaml (`as_yaml` wrote it) with `overrides` laid over it, options of groups before values.

    A group's option replaces what the run had of that group. Raises ConfigError; FileNotFoundError without the file.
    """
    refuse([*words.problems(overrides).values()])
    config, groups, values = _saved(path), words.options(), []
    with _plain(overrides):
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
        run = to_run(OmegaConf.merge(config, OmegaConf.from_dotlist(_over_null(values))))
    refuse(check(run))
    return run


def to_run(config: Any) -> Run:
    run = OmegaConf.to_object(config)
    assert isinstance(run, Run)
    return run


def as_yaml(run: Run) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(run))


def from_yaml(path: Path) -> Run:
    """What `as_yaml` wrote. Raises FileNotFoundError, or Unreadable with all that is wrong."""
    try:
        return to_run(_saved(path))
    except OmegaConfBaseException as error:
        raise Unreadable(f"{path}: {_plainly(error)}") from error


def _saved(path: Path) -> Any:
    """The file as data: nothing in it is looked up or instantiated. Raises as `from_yaml`."""
    try:
        config = OmegaConf.load(path)
        plain: Any = OmegaConf.to_container(config, resolve=False)
        if not isinstance(plain, dict):
            raise Unreadable(f"{path} holds a {type(plain).__name__}, not the settings of a run")
        if problems := [*_foreign(plain, [*words.keys(Run)])]:
            raise Unreadable("\n".join(f"{path}: {problem}" for problem in listed(problems, len(problems))))
        config = OmegaConf.merge(OmegaConf.structured(Run), completed(plain))
        if lacking := sorted(OmegaConf.missing_keys(config)):
            raise Unreadable(f"{path} is not whole: it lacks {', '.join(lacking[:5])}{', ...' * (len(lacking) > 5)}")
        return config
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise Unreadable(f"{path}: {_plainly(error)}") from error


def _foreign(node: Any, own: Sequence[str], prefix: str = "") -> Iterator[str]:
    """What `as_yaml` does not write: names that are not our `own`, and what other readers would act upon."""
    for name, value in node.items():
        whole = f"{prefix}{name}"
        if "_target_" in str(name):
            yield f"{whole}: nothing is instantiated from a configuration; a run writes no _target_"
        elif whole not in own and not words.free(whole):
            yield f"there is no setting {whole!r} in this version{nearest(whole, own)}"
        elif isinstance(value, dict):
            yield from _foreign(value, own, f"{whole}.")
        elif "${" in str(value):
            yield f"{whole}: ${{...}} is not looked up; a run writes its settings out"


def different(a: Any, b: Any, prefix: str = "") -> Iterator[str]:
    """Names of the settings in which two runs differ."""
    for field in fields(a):
        ours, theirs, name = getattr(a, field.name), getattr(b, field.name), prefix + field.name
        if is_dataclass(ours) and type(ours) is type(theirs):
            yield from different(ours, theirs, f"{name}.")
        elif ours != theirs:
            yield name


def main(action: Callable[[Run], None]) -> None:
    """Runs a launch script: `action` gets the checked run."""
    started("train", load, lambda config: _checked(to_run(config)), action)


def started(
    file: str, load: Callable[[Sequence[str]], _T], of: Callable[[Any], _T], action: Callable[[_T], None]
) -> None:
    """Runs `action` with what `load` makes of the command line. With flags (--help, --cfg job, -m, ...) Hydra takes
    over, and `of` makes it of its configuration."""
    arguments = sys.argv[1:]
    understood(words.harmless, arguments)
    if any(a.startswith("-") for a in arguments):
        sys.argv[1:] = _over_null(arguments)
        app = hydra.main(config_path=str(CONF), config_name=file, version_base="1.3")
        app(lambda config: action(understood(lambda _: of(config), ())))()
    else:
        action(understood(load, arguments))


def _checked(run: Run) -> Run:
    refuse(check(run))
    return run


def understood(load: Callable[[Sequence[str]], _T], arguments: Sequence[str]) -> _T:
    """What `load` makes of a script's command line. Where it raises ConfigError, or one word contradicts another, the
    process ends with USAGE_ERROR."""
    problems = words.contradictions(arguments)
    try:
        made = load(arguments)
        refuse(problems)
        return made
    except ConfigError as error:
        print("\n".join(dict.fromkeys([*problems, *str(error).splitlines()])), file=sys.stderr)
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


def _plainly(error: BaseException) -> str:
    """What Hydra found wrong, in one line, without its advice on stack traces and its object types."""
    said, cause = [str(error)], error.__cause__
    while cause is not None:
        said.append(str(cause))
        cause = cause.__cause__
    found = "\n".join(said)
    key = re.search(r"full_key: (\S+)", found)
    if key and "missing mandatory value" in found:
        return f"{key[1]}=... must be given"
    lines = [line.strip() for line in found.splitlines()]
    lines = [
        line for line in lines if not re.match(r"(object_type=|reference_type=|Set the environment|full_key: |$)", line)
    ]
    return (f"{key[1]}: " if key and key[1] not in found[: key.start()] else "") + "; ".join(dict.fromkeys(lines))
