"""Every experiment composes with every cluster profile; every mistake is refused by name, before anything starts."""

import itertools
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from smartrag import ROOT
from smartrag.compose import CONF, ConfigError, Unreadable, as_yaml, change, different, from_yaml, load
from smartrag.config import Lora
from smartrag.evaluation.compare import settings
from smartrag.older import ADDED

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
PROFILES = sorted(path.stem for path in (CONF / "cluster").glob("*.yaml"))


@pytest.mark.parametrize(("experiment", "profile"), itertools.product(EXPERIMENTS, PROFILES))
def test_every_experiment_composes_with_every_cluster(experiment: str, profile: str) -> None:
    run = load([f"+experiment={experiment}", f"cluster={profile}"])
    assert run.name == experiment
    assert pickle.loads(pickle.dumps(run)) == run


def test_a_finished_runs_settings_are_changed_group_by_group(tmp_path: Path) -> None:
    path, run = tmp_path / "config.yaml", load(["+experiment=quickstart"])
    path.write_text(as_yaml(run))
    assert change(path, []) == run
    other = change(path, ["retriever.k=4", "data=[popqa,hotpotqa]", "data.test_questions=7", "cluster=one_gpu"])
    assert other.data == replace(load(["data=[popqa,hotpotqa]"]).data, test_questions=7)  # nothing of the world is left
    assert other.retriever.k == 4
    assert other.algorithm == run.algorithm
    assert other.learner.gpus == 0.5  # what the profile says of other groups holds too
    remote = change(path, ["retriever=http", "retriever.http.url=http://h/x", "retriever.k=3"]).retriever
    assert (remote.searcher, remote.dense, remote.k) == ("http", None, 3)
    with pytest.raises(ConfigError, match=r"did you mean 'popqa'\?\n.*did you mean 'retriever.k'\?"):
        change(path, ["data=popq", "retriever.kk=3"])
    with pytest.raises(ConfigError, match=r"retriever.k must be between 1 and 100, got 0"):
        change(path, ["retriever.k=0"])


NEEDED = {
    "folder": ["data.source=somewhere"],
    "files": ["data.questions=q.csv"],
    "dense": ["retriever.dense.encoder=e5"],
    "http": ["retriever.http.url=http://127.0.0.1:8080/search"],
    "agreement": ["algorithm.samples=2"],
}


@pytest.mark.parametrize("group", [d.name for d in sorted(CONF.iterdir()) if d.is_dir() and d.name != "experiment"])
def test_every_option_of_every_group_composes(group: str) -> None:
    for option in (CONF / group).glob("*.yaml"):
        needs = NEEDED.get(option.stem, [])
        load([f"{group}={option.stem}", *needs])


def test_several_data_sets_make_one_mix(tmp_path: Path) -> None:
    run = load(["+experiment=popqa", "data=[popqa,ambignq,hotpotqa]", "data.mix.popqa=2"])
    assert run.data.mix == {"popqa": 2.0, "ambignq": 1.0, "hotpotqa": 1.0}
    (tmp_path / "config.yaml").write_text(as_yaml(run))
    assert from_yaml(tmp_path / "config.yaml") == run
    assert load(["data=hotpotqa", "data.source=/some/folder"]).data.source == "/some/folder"
    assert load(["data=[popqa,folder]", "data.source=/some/folder"]).data.mix == {"popqa": 1.0, "folder": 1.0}
    assert load(["data=world"]) == load([])
    own = load(["data=[popqa,files]", "data.questions=q.csv"]).data
    assert (own.mix, own.questions, own.corpus) == ({"popqa": 1.0, "files": 1.0}, "q.csv", None)


def test_a_mapping_may_be_laid_over_a_null() -> None:
    run = load(["+experiment=quickstart", "model.lora={rank: 8, alpha: 16, targets: [q_proj,v_proj]}"])
    assert run.model.lora == Lora(rank=8, alpha=16, targets=["q_proj", "v_proj"])
    assert load(["model.lora={rank: 8, alpha: 16, targets: [q_proj]}", "model.lora=null"]).model.lora is None


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(["retriever.k=0", "algorithm.lam=2", "train.episodes=0", "warmup.batch=0"])
    assert len(str(caught.value).splitlines()) == 4


def test_the_command_line_refuses_before_anything_heavy_is_imported() -> None:
    script = ROOT / "launch" / "train.py"
    assert os.access(script, os.X_OK), "ray job submit launch/train.py needs the executable bit"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(script), "+experiment=quickstrat"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "did you mean 'quickstart'?" in done.stderr
    for heavy in ("ray", "vllm", "torch", "transformers"):
        assert f" {heavy}\n" not in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_there_and_names_the_groups() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(ROOT, "launch", "train.py")), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    for word in ("experiment: hotpotqa, popqa, quickstart", "cluster: local_cpu", "retriever"):
        assert word in done.stdout


def test_an_evaluation_has_settings_of_its_own_beside_changes_of_the_runs() -> None:
    chosen, overrides = settings(["run=somewhere", "retriever.k=4", "gates=false", "+experiment=popqa"])
    assert (chosen.run, chosen.out, chosen.gates, chosen.samples) == ("somewhere", "test", False, 5)
    assert overrides == ["retriever.k=4", "+experiment=popqa"]
    with pytest.raises(ConfigError) as caught:
        settings(["out=a/b", "samples=0"])
    assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(ConfigError, match="gates=perhaps"):
        settings(["run=somewhere", "gates=perhaps"])


@pytest.mark.parametrize("name", sorted(ADDED))
def test_a_run_from_before_a_setting_came_is_read_as_what_it_was(name: str, tmp_path: Path) -> None:
    run = load(["+experiment=quickstart", "train.max_staleness=3", "retriever.remember=7"])
    group, own = name.split(".")
    saved = yaml.safe_load(as_yaml(run))
    del saved[group][own]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(saved))
    read = from_yaml(path)
    found = getattr(getattr(read, group), own)
    assert (list(found) if isinstance(found, list) else found) == ADDED[name]
    assert set(different(run, read)) <= {name}
    del saved[group]
    path.write_text(yaml.safe_dump(saved))
    with pytest.raises(Unreadable, match="is not whole"):
        from_yaml(path)
