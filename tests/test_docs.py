"""What people read: every command composes; every file, setting, option, key and message that it names is there."""

import argparse
import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from smartrag import ROOT, exits
from smartrag.capacity import study
from smartrag.commands import Bench, Export
from smartrag.compose import CONF, alone, as_yaml, change, load, load_beside
from smartrag.evaluation import compare
from smartrag.experiments import ablation, sweep
from smartrag.reference import page
from smartrag.serving.settings import settings as serving
from tests.commands import in_blocks, in_code, inline, launches

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docker" / "README.md", *(ROOT / "docs").glob("*.md")]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
TROUBLES, CONFIGURATION = TEXTS["docs/troubleshooting.md"], TEXTS["docs/configuration.md"]
LAUNCHES = sorted({(script, tuple(words)) for text in TEXTS.values() for script, words in launches(text)})
FREE = ("learner.deepspeed", "cluster.engine.engine_args", "data.mix")  # their names have no fields


class Parsed(Exception):
    """argparse took the command line."""


def composes(script: str, words: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises ConfigError, or SystemExit of argparse."""
    match script:
        case "train.py" | "warmup.py" | "doctor.py":
            load(words)
        case "quickstart.py":
            load(["+experiment=quickstart", *words])
        case "evaluate.py":
            chosen, overrides = compare.settings(words)
            if not chosen.run.startswith("runs/"):
                load([*overrides, f"model.path={chosen.run}"])
                return
            (tmp_path / "config.yaml").write_text(as_yaml(load([f"+experiment={chosen.run.split('/')[1]}"])))
            change(tmp_path / "config.yaml", overrides)
        case "serve.py":
            served, overrides = serving(words)
            (tmp_path / "config.yaml").write_text(as_yaml(load([f"+experiment={served.run.split('/')[1]}"])))
            change(tmp_path / "config.yaml", overrides)
        case "ablate.py":
            ablation.load(words)
        case "sweep.py":
            sweep.load(words)
        case "export.py":
            alone(Export, "export.yaml", words)
        case "bench.py":
            load_beside(Bench, "bench.yaml", words)
        case "capacity.py":
            study.load(words)
        case "index.py":
            given = OmegaConf.from_dotlist(list(words))
            assert {"corpus", "out"} <= set(given) <= set(OmegaConf.load(CONF / "index.yaml"))
        case _:
            parse = argparse.ArgumentParser.parse_args

            def stop(parser: argparse.ArgumentParser) -> Any:
                raise Parsed(parse(parser))

            monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
            monkeypatch.setattr(sys, "argv", [script, *words])
            spec = importlib.util.spec_from_file_location("script", ROOT / "launch" / script)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            with pytest.raises(Parsed):
                module.main()


@pytest.mark.parametrize(("script", "words"), LAUNCHES, ids=[" ".join([s, *w])[:60] for s, w in LAUNCHES])
def test_every_command_composes(
    script: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.access(ROOT / "launch" / script, os.X_OK)
    if "-sc" in words or "--help" in words:
        return  # Hydra's own; completion has a test below
    cfg = words.index("--cfg") if "--cfg" in words else len(words)
    composes(script, [*words[:cfg], *words[cfg + 2 :]], tmp_path, monkeypatch)


def test_commands_are_found() -> None:
    assert ("train.py", ("+experiment=hotpotqa", "resume=latest")) in LAUNCHES
    assert (
        "sweep.py",
        ("+experiment=quickstart", "setting=reward.retrieval", "values=[0,-0.2,-0.4,-0.8]", "seeds=[0,1]"),
    ) in LAUNCHES
    assert {script for script, _ in LAUNCHES} >= {"ask.py", "report.py", "evaluate.py", "ablate.py", "index.py"}


# script -> the test that starts it, or calls its `main`
RUN_BY = {
    "ablate.py": "cluster/test_ablation.py",
    "ask.py": "test_quickstart.py",
    "bench.py": "cluster/test_bench.py",
    "capacity.py": "smartrag/test_capacity.py",
    "doctor.py": "test_doctor.py",
    "evaluate.py": "test_run.py",
    "export.py": "cluster/test_export.py",
    "index.py": "cluster/test_index.py",
    "quickstart.py": "test_quickstart.py",
    "report.py": "smartrag/test_page.py",
    "serve.py": "cluster/test_serving.py",
    "sweep.py": "cluster/test_sweep.py",
    "train.py": "whole_run.py",
    "warmup.py": "test_quickstart.py",
}


def test_every_script_that_is_named_is_started_by_a_test() -> None:
    assert {script for script, _ in LAUNCHES} <= set(RUN_BY)
    for script, test in RUN_BY.items():
        text = (ROOT / "tests" / test).read_text(encoding="utf-8")
        started = rf'"launch/{script}"|"launch" / "{script}"|from launch\.{script.removesuffix(".py")} import'
        assert re.search(started, text), f"{test} does not start {script}"


def test_every_make_target_is_there() -> None:
    targets = set(re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    words = [w for text in TEXTS.values() for w in (*in_blocks(text), *in_code(text)) if w[:1] == ["make"]]
    named = {word for some in words for word in some[1:] if "=" not in word}
    assert {"quickstart", "test", "docs"} <= named <= targets


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_and_link_leads_somewhere(name: str) -> None:
    text = re.sub(r"```text\n.*?```", "", TEXTS[name], flags=re.DOTALL)
    folders = "smartrag|cluster|launch|conf|tests|docker|docs|models"
    paths = re.findall(rf"(?<![\w./~-])((?:{folders})/[\w./-]*\w)(?![\w*<])", text)
    links = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in target]
    missing = [
        path
        for path in paths
        if not re.search("[A-Z]{4}", path.removesuffix("README.md")) and not (ROOT / path).exists()
    ]
    missing += [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]
    assert missing == []


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "docs/configuration.md"])
def test_every_setting_and_option_is_there(name: str) -> None:
    settings = {
        *re.findall(r"^\| `([\w.]+)` \|", CONFIGURATION, re.MULTILINE),
        *re.findall(r"^#+ (\S+)$", CONFIGURATION, re.MULTILINE),
    }
    groups = {path.name: {file.stem for file in path.iterdir()} for path in CONF.iterdir() if path.is_dir()}
    code = " ".join(inline(TEXTS[name]))
    names = re.findall(rf"(?<![\w./])((?:{'|'.join(groups)}|warmup|train)\.[a-z]\w*(?:\.\w+)*)(?=[=\s]|$)", code)
    names = [n for n in names if not n.endswith((".py", ".json", ".jsonl", ".yaml", ".png", ".html"))]
    assert [n for n in names if n not in settings and not n.startswith(FREE)] == []
    options = re.findall(rf"(?<![\w./])({'|'.join(groups)})=(\w*[a-z0-9]\w*)", code)
    assert [f"{group}={option}" for group, option in options if option not in groups[group]] == []


def test_the_configuration_is_up_to_date() -> None:
    assert page() == CONFIGURATION, "make docs"


def test_every_exit_code_is_there() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Exit codes")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == re.findall(r"^ +(\d+)  ", exits.__doc__, re.MULTILINE)


def test_pages_are_short() -> None:
    long = {name for name, text in TEXTS.items() if name.startswith("docs/") and text.count("\n") > 200}
    assert long == {"docs/configuration.md"}


def messages() -> Iterator[str]:
    """All strings of the code, "..." for what is put in."""
    for path in [path for folder in ("smartrag", "cluster", "launch") for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_is_one_of_ours() -> None:
    quoted = re.findall(r"^\| `([^`]+)` \|", TROUBLES, re.MULTILINE)
    assert len(quoted) > 40
    ours = list(messages())
    assert [message for message in quoted if not any(message in text for text in ours)] == []


def test_completion_in_bash() -> None:
    """The lines of the page, and then what a press of Tab calls."""
    [install] = re.findall(r"```bash\n(eval.*?)```", CONFIGURATION, re.DOTALL)
    press = 'COMP_WORDS=($COMP_LINE); COMP_CWORD=1; hydra_bash_completion; echo "${COMPREPLY[@]}"'
    lines = [f"COMP_LINE='{line}'; {press}" for line in ("launch/train.py reward=", "launch/index.py stem")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "\n".join([install, "complete -p python", *lines])
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=120
    )
    rewards = sorted(f"reward={path.stem}" for path in (CONF / "reward").glob("*.yaml"))
    assert done.stdout.splitlines() == [" ".join(rewards), "stemmer="]
    assert "python: no completion" in done.stderr
