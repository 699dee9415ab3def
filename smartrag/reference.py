"""docs/configuration.md, made out of what it describes: types and comments of the schema, bounds, the values of conf/.

`make docs` writes it. Text in, text out; only `page` reads files.
"""

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from types import UnionType
from typing import Any, get_args, get_origin

import yaml

from smartrag import choices, commands, config
from smartrag.bounds import RANGES
from smartrag.comments import Notes, Written, headline, notes, written
from smartrag.compose import CONF

_LONGEST = 60  # characters of an option's value
_PLAIN = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "any"}
# Scripts that have settings of their own beside those of a run; those of launch/index.py stand in its help.
_SCRIPTS = {
    "evaluate": commands.Evaluation,
    "ablate": commands.Ablation,
    "sweep": commands.Sweep,
    "bench": commands.Bench,
    "capacity": commands.Capacity,
    "serve": commands.Serving,
}
_HEAD = """\
# Configuration

Every setting: its default, type and bounds. `make docs` makes this page out of `smartrag/config.py` (types),
`smartrag/choices.py` (words), `smartrag/bounds.py` (bounds), `smartrag/check.py` (what must go together) and
`conf/` (values).

```bash
python launch/train.py +experiment=quickstart reward=gated retriever.k=4
```

* `GROUP=OPTION` takes an option of a group, a file of `conf/GROUP/`. `GROUP.SETTING=VALUE` changes one setting.
* `+experiment=NAME` takes a whole experiment. The plus sign is needed: the defaults name none.
* `data=[popqa,hotpotqa]` takes several data sets.
* A group that is null is given whole: `'model.lora={rank: 16, alpha: 32, targets: [q_proj,v_proj]}'`.
* Names under `learner.deepspeed` and `cluster.engine.engine_args` are free; a new one wants a plus sign.
* `--cfg job` prints the run that a command means, `--help` lists the groups. Neither starts anything.
* What is unknown, of a wrong type, out of bounds or does not go together is refused before anything starts.

Bash completes groups, options and names behind `launch/train.py`, `launch/warmup.py` and `launch/index.py` after these
three lines, in the repository with the environment active. Left alone, Hydra would complete behind every `python FILE`,
and run the file for it; the second line prevents that.

```bash
eval "$(launch/train.py -sc install=bash)"
complete -r python
complete -o nospace -o default -F hydra_bash_completion train.py warmup.py index.py
```

Defaults are what `conf/train.yaml` and the options it names say, as written there; of a group that is null, what the
first option says that has it. "authors": the paper's released code says so. "ours": it does not; the comment says why.
"""


_parsed = functools.cache(yaml.safe_load)  # a file is looked at once for every setting


@dataclass(frozen=True, slots=True)
class Conf:
    """The folder conf/."""

    texts: Mapping[str, str]  # file, as "reward/paper.yaml" -> its text

    def defaults(self, file: str = "train.yaml", mark: str = "") -> dict[str, str]:
        """Group -> the option that a file's defaults name behind `mark`, in its order."""
        listed = _parsed(self.texts[file]).get("defaults", [])
        named = [pair for entry in listed if isinstance(entry, dict) for pair in entry.items()]
        return {group.removeprefix(mark): o for group, o in named if re.fullmatch(rf"{mark}\w+", group)}

    def options(self, group: str) -> list[str]:
        """Of a group, the default first."""
        names = sorted(file.split("/")[1].removesuffix(".yaml") for file in self.texts if file.startswith(f"{group}/"))
        return sorted(names, key=lambda name: name != self.defaults().get(group))

    def settings(self, group: str, option: str) -> dict[str, Written]:
        """Full name -> what an option writes; some write other groups, too."""
        text = self.texts[f"{group}/{option}.yaml"]
        return written(text, "" if "@package _global_" in text else f"{group}.")

    def default(self, name: str) -> Written:
        """What a run has without overrides: the last value written, the last comment. Of a setting in a group that is
        null, what the first option says in which it is not."""
        layers = {f"{g}={o}": self.settings(g, o) for g, o in self.defaults().items()}
        layers |= {"": written(self.texts["train.yaml"])}
        own = name.partition(".")[0]
        value, comment, by = "", "", ""
        for label, layer in layers.items():
            if name in layer:
                value, comment, by = layer[name].value, layer[name].comment or comment, label
        if not value:
            others = [self.settings(own, option) for option in self.options(own)]
            return next((layer[name] for layer in others if name in layer), Written("", ""))
        return Written(value, f"{comment} (`{by}`)".lstrip() if by.partition("=")[0] not in ("", own) else comment)


def reference(sources: Iterable[str], conf: Conf) -> str:
    """The page, of the source texts of config.py, choices.py and commands.py, and of conf/."""
    schema = Schema({name: said for source in sources for name, said in notes(source).items()})
    lines = [_HEAD, "## The run\n", *schema.table(config.Run, "", conf.default), ""]
    for field in fields(config.Run):
        if is_dataclass(field.type):
            lines += [*schema.section(field.type, field.name, conf.default), *_options(conf, field.name)]
    lines += ["## experiment\n", *_options(conf, "experiment")]
    for script, of in _SCRIPTS.items():
        own = written(conf.texts[f"{script}.yaml"])
        lines += [f"## launch/{script}.py\n", f"{schema.notes[of.__name__].docstring}\n"]
        lines += [*schema.table(of, "", own.__getitem__), ""]
    told = yaml.safe_load(conf.texts["index.yaml"])["hydra"]["help"]["template"]
    return "\n".join([*lines, "## launch/index.py\n", f"```text\n{told.strip()}\n```\n"])


@dataclass(frozen=True, slots=True)
class Schema:
    notes: Mapping[str, Notes]  # of the classes of config.py, choices.py and commands.py

    def section(self, of: Any, name: str, default: Callable[[str], Written], about: str = "") -> Iterator[str]:
        """A group: what it is, its settings, the words they may be, then the groups in it."""
        said = self.notes[of.__name__]
        yield f"{'#' * (2 + name.count('.'))} {name}\n"
        if told := " ".join([said.docstring, f"{about[:1].upper()}{about[1:]}." * bool(about)]).strip():
            yield f"{told}\n"
        yield from self.table(of, f"{name}.", default)
        yield ""
        for field in fields(of):
            if (words := _inside(field.type)) and issubclass(words, StrEnum):
                yield from self.words(f"{name}.{field.name}", words)
        for field in fields(of):
            if is_dataclass(group := _inside(field.type)):
                yield from self.section(group, f"{name}.{field.name}", default, said.members[field.name])

    def table(self, of: Any, prefix: str, default: Callable[[str], Written]) -> Iterator[str]:
        """A row for each field, but for groups that are always there."""
        yield "| setting | default | type | what it is | why this default |\n|---|---|---|---|---|"
        for field in fields(of):
            if is_dataclass(field.type):
                continue
            name, found = prefix + field.name, default(prefix + field.name)
            what, words = self.notes[of.__name__].members[field.name], _inside(field.type)
            what = what or (self.notes[words.__name__].docstring if words else "")
            assert what, f"smartrag/config.py says nothing of {name}; write a comment behind it"
            value, why = f"`{found.value}`" * bool(found.value), _text(found.comment)
            yield f"| `{name}` | {value} | {kind(field.type)}{_bounds(name)} | {_text(what)} | {why} |"

    def words(self, name: str, of: type[StrEnum]) -> Iterator[str]:
        """The words that a setting may be."""
        told = self.notes[of.__name__].members
        if any(told.values()):
            yield f"`{name}`:\n"
            yield from (f"* `{word}`" + f": {_text(told[word.name])}" * bool(told[word.name]) for word in of)
        else:
            yield f"`{name}`: {', '.join(f'`{word}`' for word in of)}."
        yield ""


def kind(of: Any) -> str:
    """A type in words."""
    if of in _PLAIN:
        return _PLAIN[of]
    if isinstance(of, UnionType):
        return " or ".join([*(kind(part) for part in get_args(of) if part is not type(None)), "null"])
    if get_origin(of) in (list, dict):
        return f"{'list' if get_origin(of) is list else 'mapping'} of {kind(get_args(of)[-1])}"
    return "group, below" if is_dataclass(of) else "word, below"


def _inside(of: Any) -> Any:
    """The class of ours in a type: X of X, `X | None`, `list[X]`; None without one."""
    return next((t for t in (of, *get_args(of)) if isinstance(t, type) and t.__module__.startswith("smartrag.")), None)


def _options(conf: Conf, group: str) -> Iterator[str]:
    """The options of a group, and what each says otherwise than the default one. Nothing of a group without."""
    options, default = conf.options(group), conf.defaults().get(group)
    if not options:
        return
    usual = conf.settings(group, default) if default else {}
    yield f"Options of `{'' if default else '+'}{group}=`:\n"
    for option in options:
        file, own = f"{group}/{option}.yaml", conf.settings(group, option)
        told = [f"{g}={o}" for g, o in conf.defaults(file, "override /").items()]
        for name in filter(own.__contains__, _settings(config.Run)):
            if name not in usual or own[name].value != usual[name].value:
                told.append(f"{name}={textwrap.shorten(own[name].value, _LONGEST, placeholder=' ...')}")
        mark = " (default)" * (option == default)
        yield " ".join([f"* `{option}`{mark}: {_text(headline(conf.texts[file]))}", *(f"`{x}`" for x in told)])
    yield ""


def _settings(of: Any, prefix: str = "") -> Iterator[str]:
    """Full names of all that is no group."""
    for field in fields(of):
        if is_dataclass(group := _inside(field.type)):
            yield from _settings(group, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _bounds(name: str) -> str:
    told = [f"{x:,.0f}" if x == int(x) else f"{x:g}" for setting, *ends in RANGES if setting == name for x in ends]
    return f", {' to '.join(told)}" if told else ""


def _text(comment: str) -> str:
    """A comment as Markdown in a table."""
    return comment.replace("<", "&lt;").replace("*", "\\*").replace("|", "\\|")


def page() -> str:
    files = {path.relative_to(CONF).as_posix(): path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml")}
    return reference(map(inspect.getsource, (config, choices, commands)), Conf(files))


if __name__ == "__main__":
    print(page(), end="")
