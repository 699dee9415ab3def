"""The plots of report.html: matplotlib draws, and what it wrote becomes SVG that takes its colours from the page.

A picture holds no style of its own (the page's Content-Security-Policy lets none in): colours are classes such as
`stroke-after` or `fill-ink`, which page.css defines for light and for dark.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from smartrag.report.plot import smooth

Interval = Mapping[str, float]  # mean, low, high

SYSTEM_INKS = ("before", "after", "never", "always", "question", "gold_first", "oracle")
GATE_INKS = tuple(f"gate{i}" for i in range(8))
_INKS = ("ink", "soft", "faint", *SYSTEM_INKS, *GATE_INKS)
_HEX = {ink: f"#0a0b{i:02x}" for i, ink in enumerate(_INKS)}  # stand-ins for matplotlib: no other colour is drawn
_CLASS = {colour: ink for ink, colour in _HEX.items()}
_MARKS = {"before": "o", "after": "D", "never": "v", "always": "^", "question": "s", "gold_first": "p", "oracle": "*"}
_SIGNS = {"o": "●", "D": "◆", "v": "▼", "^": "▲", "s": "■", "*": "★", "p": "⬟", "P": "✚"}  # the marks, in a legend
_DASHES = ("-", "--", "-.", ":")
_MOST_POINTS = 300  # of a curve; more cannot be seen and make the page heavy
_MOST_DOTS = 12  # of a curve whose points are marked
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_STYLE: Any = {
    **{"svg.fonttype": "none", "text.parse_math": False, "font.size": 8, "axes.linewidth": 0.6},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True},
    **{"grid.linewidth": 0.5, "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 1.4},
    **{"text.color": _HEX["ink"], "axes.labelcolor": _HEX["soft"], "axes.edgecolor": _HEX["soft"]},
    **{"xtick.color": _HEX["soft"], "ytick.color": _HEX["soft"], "grid.color": _HEX["faint"]},
}


@dataclass(frozen=True, slots=True)
class Picture:
    svg: str  # safe to stand in HTML as it is
    title: str


@dataclass(frozen=True, slots=True)
class Key:
    """A line of a legend."""

    ink: str
    label: str
    mark: str = "●"


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a frontier: retrievals per question against a measure."""

    ink: str
    points: Sequence[tuple[float, float]]
    dashes: str = "-"


@dataclass(frozen=True, slots=True)
class Spot:
    """A system on a plot: where it stands, with its intervals."""

    ink: str
    x: Interval
    y: Interval


def ink_of(system: str, others: Sequence[str] = ()) -> str:
    """The colour of a system; of `others`, by their place. `policy` is the trained policy: after."""
    if system in SYSTEM_INKS:
        return system
    return "after" if system == "policy" else GATE_INKS[list(others).index(system) % len(GATE_INKS)]


def key(system: str, others: Sequence[str] = ()) -> Key:
    ink = ink_of(system, others)
    return Key(ink, system, _SIGNS[_MARKS.get(ink, "P")])


def dashes_of(system: str, others: Sequence[str]) -> str:
    return _DASHES[list(others).index(system) % len(_DASHES)]


def training_curve(rows: Sequence[Mapping[str, Any]], name: str, title: str, tests: Mapping[str, Interval]) -> Picture:
    """A measure over the PPO steps: each step, their moving average, dev questions, and test means as dashed lines."""
    with _canvas(3.3, 2.2) as (axis, done):
        if points := [(row["step"], row[name]) for row in rows if _number(row.get(name)) and "step" in row]:
            steps, values = zip(*points, strict=True)
            axis.plot(*_thin(steps, values), color=_HEX["soft"], alpha=0.4, linewidth=0.8)
            axis.plot(*_thin(steps, smooth(values)), color=_HEX["after"])
        if dev := [(row["step"], row[f"dev/{name}"]) for row in rows if _number(row.get(f"dev/{name}"))]:
            axis.plot(*zip(*dev, strict=True), color=_HEX["ink"], marker=".", linewidth=0.8)
        for system, figures in tests.items():
            axis.axhline(figures["mean"], color=_HEX[ink_of(system)], linestyle="--", linewidth=1)
        axis.set(xlabel="PPO step", ylabel=_plain(title))
        return done(title)


def standing(spots: Sequence[Spot], title: str, ylabel: str, curves: Sequence[Curve] = ()) -> Picture:
    """Systems by retrievals per question and a measure, with intervals; curves of gates or of a sweep beside them."""
    with _canvas(4.2, 2.9) as (axis, done):
        for curve in curves:
            xs, ys = zip(*sorted(curve.points), strict=True)
            dots = 4 if len(xs) <= _MOST_DOTS else 0
            axis.plot(xs, ys, color=_HEX[curve.ink], linestyle=curve.dashes, linewidth=1.1, marker=".", markersize=dots)
        for spot in spots:
            axis.errorbar(
                spot.x["mean"],
                spot.y["mean"],
                xerr=_arms(spot.x),
                yerr=_arms(spot.y),
                fmt=_MARKS.get(spot.ink, "P"),
                color=_HEX[spot.ink],
                elinewidth=0.9,
                markersize=8 if spot.ink == "oracle" else 6,
            )
        axis.set(xlabel="retrievals per question", ylabel=_plain(ylabel))
        axis.margins(0.08)
        return done(title)


def forest(lines: Sequence[tuple[str, Interval, str]], title: str, xlabel: str, zero: bool) -> Picture:
    """Means with their intervals, one a line, (name, interval, ink); with a line at zero for differences."""
    with _canvas(4.2, 0.7 + 0.3 * len(lines)) as (axis, done):
        for height, (_, figures, ink) in enumerate(reversed(lines)):
            axis.errorbar(
                figures["mean"], height, xerr=_arms(figures), fmt="o", color=_HEX[ink], markersize=5, elinewidth=1.4
            )
        if zero:
            axis.axvline(0, color=_HEX["soft"], linewidth=0.9)
        axis.set_yticks(range(len(lines)), [_plain(name, 36) for name, _, _ in reversed(lines)])
        axis.set(xlabel=_plain(xlabel), ylim=(-0.6, len(lines) - 0.4))
        axis.grid(visible=False, axis="y")
        return done(title)


def popularity(shares: Mapping[str, Sequence[float]], title: str) -> Picture:
    """Share of questions that retrieve, by fifth of popularity, for each system."""
    with _canvas(4.2, 2.9) as (axis, done):
        for system, values in shares.items():
            ink = ink_of(system)
            axis.plot(range(1, len(values) + 1), values, color=_HEX[ink], marker=_MARKS[ink], markersize=5)
        axis.set(xlabel="fifth of popularity, 1: least known", ylabel="share that retrieves", ylim=(-0.04, 1.04))
        axis.set_xticks(range(1, 6))
        return done(title)


@contextmanager
def _canvas(width: float, height: float) -> Iterator[tuple[Any, Callable[[str], Picture]]]:
    """An axis of so many inches in the page's style, and what makes a picture of it once it is drawn on."""
    import matplotlib
    from matplotlib.figure import Figure

    def done(title: str) -> Picture:
        written = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": _plain(title)}):  # the same picture has the same ids every time
            figure.savefig(written, format="svg", metadata={"Date": None})
        return Picture(_inline(written.getvalue(), title), title)

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axis = figure.add_subplot()
        figure.patch.set_visible(False)
        axis.patch.set_visible(False)
        yield axis, done


def _inline(written: str, title: str) -> str:
    """Matplotlib's file as an element for a page: no style, no ids but those it refers to, two decimals."""
    root = ElementTree.fromstring(written)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', written))
    for element in root.iter():
        _plain_attributes(element, used)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": _plain(title), "class": "plot"}
    ElementTree.register_namespace("", _SVG.strip("{}"))
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r">\s+<", "><", text)


def _plain_attributes(element: ElementTree.Element, used: set[str]) -> None:
    given = element.attrib
    if given.get("id") not in used:
        given.pop("id", None)
    if link := given.pop(_LINK, None):
        given["href"] = link
    classes = []
    for rule in filter(None, given.pop("style", "").split(";")):
        name, _, value = (part.strip() for part in rule.partition(":"))
        if value in _CLASS:
            classes.append(f"{name}-{_CLASS[value]}")
        elif name != "font-family":  # the page's
            given[name] = value
    if classes:
        given["class"] = " ".join(classes)
    for name in ("d", "x", "y", "transform"):
        if name in given:
            short = re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda found: f"{float(found[0]):.2f}", given[name])
            given[name] = " ".join(short.split())


def _arms(figures: Interval) -> list[list[float]]:
    """Matplotlib's form of an interval: how far it reaches below and above the mean."""
    low, high = figures.get("low", figures["mean"]), figures.get("high", figures["mean"])
    return [[max(0.0, figures["mean"] - low)], [max(0.0, high - figures["mean"])]]


def _thin(steps: Sequence[float], values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """At most _MOST_POINTS of them: means of neighbours."""
    width = -(-len(steps) // _MOST_POINTS)
    if width == 1:
        return steps, values
    starts = range(0, len(steps), width)
    return tuple(tuple(sum(x[i : i + width]) / len(x[i : i + width]) for i in starts) for x in (steps, values))  # type: ignore[return-value]


def _plain(text: str, longest: int = 80) -> str:
    """Of an untrusted name what XML can hold and a plot has room for."""
    return "".join(c if c.isprintable() else " " for c in text)[:longest]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value
