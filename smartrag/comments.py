"""Comments as data: what stands behind the fields of Python classes and behind the values of YAML texts."""

import ast
import functools
import io
import itertools
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass

import yaml


@dataclass(frozen=True, slots=True)
class Notes:
    """What a class says of itself and of its members."""

    docstring: str
    members: Mapping[str, str]  # name -> the comment behind it, else the lines of comment above it


def notes(source: str) -> dict[str, Notes]:
    """Class -> its notes, of Python source text."""
    behind: dict[int, str] = {}  # line -> the comment on it, behind code
    above: dict[int, str] = {}  # and without any
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            (above if token.line.lstrip().startswith("#") else behind)[token.start[0]] = token.string.lstrip("# ")

    def comment(member: ast.AnnAssign | ast.Assign) -> str:
        first = member.lineno
        while first - 1 in above:
            first -= 1
        return behind.get(member.lineno) or " ".join(above[line] for line in range(first, member.lineno))

    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            own = [m for m in node.body if isinstance(m, ast.AnnAssign | ast.Assign)]
            targets = [m.target if isinstance(m, ast.AnnAssign) else m.targets[0] for m in own]
            members = {ast.unparse(target): comment(m) for target, m in zip(targets, own, strict=True)}
            found[node.name] = Notes(" ".join((ast.get_docstring(node) or "").split()), members)
    return found


@dataclass(frozen=True, slots=True)
class Written:
    value: str
    comment: str  # behind it


@functools.cache
def written(text: str, prefix: str = "") -> dict[str, Written]:
    """Full name -> what YAML text writes for it. Mappings in braces stand whole and in parts."""
    found: dict[str, Written] = {}

    def walk(node: yaml.Node, prefix: str) -> None:
        for key, value in node.value:
            name = prefix + key.value
            if isinstance(value, yaml.MappingNode):
                walk(value, f"{name}.")
            if not isinstance(value, yaml.MappingNode) or value.flow_style:
                found[name] = _written(text, value)

    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        walk(root, prefix)
    return found


def _written(text: str, node: yaml.Node) -> Written:
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return Written(node.value.strip(), "")
    value, end, lines = text[node.start_mark.index : node.end_mark.index], node.end_mark, text.splitlines()
    behind = re.fullmatch(r"(\s*)(#.*)", lines[end.line][end.column :])
    if behind is None:
        return Written(value, "")
    column, said = end.column + len(behind[1]), [behind[2]]
    for line in lines[end.line + 1 :]:  # a comment that goes on does so in its column
        if line[:column].strip() or not line[column:].startswith("#"):
            break
        said.append(line[column:])
    return Written(value, " ".join(part.lstrip("# ") for part in said))


def headline(text: str) -> str:
    """The first sentence of the comment that YAML text opens with."""
    opening = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    said = [line.lstrip("# ") for line in opening if "@package" not in line]
    return re.split(r"(?<=[\w)]\.)\s+(?=[A-Z\"])", " ".join(said))[0]
