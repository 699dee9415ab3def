"""The model card says what the run's files say, is read by the hub, and carries nothing that acts or leaks."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from smartrag.choices import Role
from smartrag.compose import as_yaml, load
from smartrag.config import Run
from smartrag.evaluation.evaluate import MEASURES
from smartrag.prompt import Budget, Prompt
from smartrag.report.card import Exported, public, render
from smartrag.report.prose import interval, number
from smartrag.report.record import Record, read
from smartrag.report.tables import LABELS
from tests import run_folder, toys
from tests.run_folder import HOSTILE, SHOWN, STEPS, SYSTEMS

DIGEST = "9f2c" * 16


def _card(run: Run, record: Record, step: int = STEPS, name: str = "policy") -> str:
    prompt = Prompt(toys.tokenizer(), run.model.instruction, Budget(400, 40, 60))
    exported = Exported(name, f"step_{step:08d}", step, {"model.safetensors": DIGEST})
    return render(record, run, prompt, exported)


def _record(folder: Path, run: Run, evaluation: bool = True) -> tuple[Record, dict[str, Any]]:
    summary = run_folder.write_run(folder, np.random.default_rng(0))
    if evaluation:
        run_folder.write_evaluation(folder, np.random.default_rng(1))
    (folder / "config.yaml").write_text(as_yaml(run))
    return read(folder), summary


def _tables(text: str) -> tuple[list[list[list[str]]], str]:
    """(rows of cells of every table, the HTML), as a reader of GitHub's Markdown sees them."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text.split("---\n", 2)[2])
    tables = [
        [
            [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)]
            for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        ]
        for table in re.findall(r"<table>(.*?)</table>", html, re.DOTALL)
    ]
    return tables, html


def test_the_hub_reads_its_front_matter(tmp_path: Path) -> None:
    run = load(["+experiment=hotpotqa", "model=qwen2_5_1_5b", "data=[hotpotqa,popqa]", f"train.steps={STEPS}"])
    record, _ = _record(tmp_path / "run", run)
    front = ModelCard(_card(run, record)).data
    assert (front.library_name, front.pipeline_tag, front.language) == ("transformers", "text-generation", "en")
    assert (front.base_model, front["base_model_relation"]) == ("Qwen/Qwen2.5-1.5B-Instruct", "finetune")
    assert front.datasets == ["hotpotqa/hotpot_qa", "akariasai/PopQA"]
    assert {"smartrag", "retrieval-augmented-generation"} <= set(front.tags)
    popqa = record.summary["after"]["by_dataset"]["popqa"]
    found = {(r.dataset_type, r.metric_type): r.metric_value for r in front.eval_results}
    assert found == {("akariasai/PopQA", m): popqa[k] for k, m in (("em", "exact_match"), ("f1", "f1"))}
    tables, _ = _tables(_card(run, record))
    licences = {row[0]: row[2] for table in tables if table[0][0] == "data set" for row in table[1:]}
    assert licences == {"hotpotqa": "CC BY-SA 4.0", "popqa": "MIT"}


def test_a_local_base_and_the_world_claim_nothing_on_the_hub(tmp_path: Path) -> None:
    run = load(["+experiment=quickstart", f"train.steps={STEPS}"])
    front = ModelCard(_card(run, _record(tmp_path / "run", run)[0])).data.to_dict()
    assert not {"base_model", "base_model_relation", "datasets", "model-index", "model_name", "license"} & set(front)


def test_its_tables_hold_the_figures_of_the_run(tmp_path: Path) -> None:
    run = load(["+experiment=quickstart", f"train.steps={STEPS}"])
    record, summary = _record(tmp_path / "run", run)
    text = _card(run, record)
    tables, _ = _tables(text)
    shown = {row[0]: row[1:] for row in next(t for t in tables if t[0][1:] == list(SYSTEMS))}
    for name in MEASURES:
        figures = [summary[system][name] for system in SYSTEMS]
        assert shown[LABELS[name]] == ["–" if f is None else f"{number(f['mean'])} {interval(f)}" for f in figures]
    policy = next(iter(record.evaluations.values()))["systems"]["policy"]["em"]
    evaluated = {row[0]: row[1:] for row in next(t for t in tables if t[0][1:2] == ["policy"])}
    assert evaluated["exact match"][0] == f"{number(policy['mean'])} {interval(policy)}"
    gap = summary["difference"]["after_minus_never"]
    assert f"{number(gap['mean'], True)} {interval(gap, True)}" in text
    assert DIGEST in text
    assert "kl_coef: 0.05" in text
    assert f"after step {STEPS} of {STEPS}" in text


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (STEPS, "Of these weights: `after`, `never`, `always`; `before` is"),
        (0, "Of these weights: `before`; the other columns are of the run's last."),
        (5, "**None of the columns is of these weights**"),
    ],
)
def test_figures_of_other_weights_are_not_passed_off(tmp_path: Path, step: int, said: str) -> None:
    run = load(["+experiment=quickstart", f"train.steps={STEPS}"])
    text = _card(run, _record(tmp_path / "run", run)[0], step)
    assert said in text
    assert ("earns a reward of" in text) == (step == STEPS)
    assert ("**Of other weights of this run**, `step_00000012`" in text) == (step != STEPS)
    assert "These weights alone play all roles" not in text
    alone = replace(run, algorithm=replace(run.algorithm, trains=[Role.query]))
    assert "Only query was trained" in _card(alone, read(tmp_path / "run"), step)


def test_hostile_names_mean_nothing_in_markdown_and_yaml(tmp_path: Path) -> None:
    evil = f"x\n```\n---\n# x\n| a | b |\n[x](javascript:alert(1)) {HOSTILE}"
    run = load(["+experiment=quickstart", f"train.steps={STEPS}"])
    run = replace(
        run,
        model=replace(run.model, instruction=evil, path=evil),
        data=replace(run.data, source=evil, mix={evil: 1.0}),
    )
    record, _ = _record(tmp_path / "run", run)
    text = _card(run, record, name=evil)
    tables, html = _tables(text)
    assert set(re.findall(r"<(\w+)", html)) <= {
        *("h1", "h2", "h3", "p", "a", "em", "strong", "code", "pre", "ol", "ul", "li", "details", "summary"),
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
    assert "javascript:" not in re.findall('href="(.*?)"', html)
    assert all(link.startswith("https://") for link in re.findall('href="(.*?)"', html))
    assert all(len(row) == len(table[0]) for table in tables for row in table)
    assert "\u202e" not in text
    assert SHOWN.split("{{")[0][-20:-8] in text
    assert ModelCard(text).data.library_name == "transformers"


def test_nothing_of_the_machine_is_told(tmp_path: Path) -> None:
    secret = "/home/somebody/secret"
    paths = (f"runs={secret}/runs", f"cache={secret}/cache", f"retriever.index={secret}/index")
    judge = ("reward=judge", "reward.endpoint.base_url=http://inner.example/v1")
    run = load(["+experiment=quickstart", f"train.steps={STEPS}", *paths, *judge])
    run = replace(
        run,
        model=replace(run.model, path=f"{secret}/base"),
        data=replace(run.data, source=f"{secret}/questions", mix={"folder": 1.0}),
    )
    record, _ = _record(tmp_path / "run", run)
    record.evaluations["test"]["changed"] = [f"retriever.index={secret}/other", "retriever.k=4"]
    text = _card(run, record)
    assert not re.search(r"somebody|secret|inner\.example|SMARTRAG_", text)
    assert not re.search(re.escape(str(tmp_path)), text)
    assert "retriever.index=other" in text
    assert "base, float32" in text
    assert public({"a": ["~/x", 1], "b": {"c": "s3://bucket/x/"}, "d": "package://y", "e": "models/tiny"}) == {
        **{"a": ["x", 1], "b": {"c": "x"}, "d": "package://y", "e": "models/tiny"}
    }
