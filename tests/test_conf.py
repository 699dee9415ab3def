"""Every experiment composes with every cluster profile; every mistake is refused by name, before anything starts."""

import itertools
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from smartrag.compose import CONF, ROOT, ConfigError, as_yaml, change, from_yaml, load
from smartrag.config import Lora
from smartrag.evaluation.compare import settings

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
    with pytest.raises(ConfigError, match=r"did you mean 'popqa'\?\n.*did you mean 'retriever.k'\?"):
        change(path, ["data=popq", "retriever.kk=3"])
    with pytest.raises(ConfigError, match=r"retriever.k must be between 1 and 100, got 0"):
        change(path, ["retriever.k=0"])


@pytest.mark.parametrize("group", [d.name for d in sorted(CONF.iterdir()) if d.is_dir() and d.name != "experiment"])
def test_every_option_of_every_group_composes(group: str) -> None:
    for option in (CONF / group).glob("*.yaml"):
        needs = {"folder": ["data.source=somewhere"], "agreement": ["algorithm.samples=2"]}.get(option.stem, [])
        load([f"{group}={option.stem}", *needs])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=3", "did you mean 'train.steps'?"),
        ("+train.stesp=3", "did you mean 'train.steps'?"),
        ("+experiment=quickstrat", "did you mean 'quickstart'?"),
        ("+experiment=nothing_like_it", "there are: hotpotqa, popqa, quickstart"),
        ("model=tny", "no model is called 'tny'; did you mean 'tiny'?"),
        ("algorithm.gamma=high", "could not be converted to Float"),
        ("cluster.weights=carrier_pigeon", "expected one of [gloo, nccl, ipc]"),
        ("retriever.k=0", "retriever.k must be between 1 and 100, got 0"),
        ("algorithm.gamma=1.5", "algorithm.gamma must be between 0 and 1, got 1.5"),
        ("reward.retrieval=nan", "reward.retrieval must be a finite number, got nan"),
        ("algorithm.temperature=nan", "algorithm.temperature must be between"),
        ("algorithm.advantage=rloo", "leaves nothing to compare; use 2 or more"),
        ("algorithm=grpo algorithm.critic=shared", "has no critic; leave it at separate"),
        ("algorithm.critic=both", "expected one of [separate, shared]"),
        ("algorithm.kl_in=loss", "has a gradient of mean zero"),
        ("algorithm.samples=7", "train.episodes=64 must be a multiple of algorithm.samples=7"),
        ("train.episodes=65", "must be a multiple of learner.ranks x algorithm.minibatches"),
        ("model.context_tokens=30", "leaves no room for a question"),
        ("reward=agreement", "algorithm.samples=1 must be 2 or more"),
        ("reward.judge=endpoint", "reward.judge=endpoint and a reward.endpoint go together"),
        ("reward=judge reward.endpoint.max_void_share=0.99", "could leave 1 episodes for"),
        ("reward=judge reward.endpoint.attempts=0", "reward.endpoint.attempts must be between 1 and 100, got 0"),
        ("reward=judge reward.endpoint.modle=x", "did you mean 'reward.endpoint.model'?"),
        ("reward.budget.target=0.4", "sets a group that is null here; choose an option that has it first"),
        ("reward=budget reward.retrieval=-3", "must be between -reward.budget.max_price=-2 and 0"),
        ("reward=budget reward.budget.target=1.5", "is above algorithm.quota=1"),
        ("reward=budget reward.gated=true algorithm.quota=4", "lower the price to 0.5"),
        ("reward=gated reward.retrieval=-2.5", "worth less than a wrong one; lower the price to 2"),
        ("reward.exact_match=0 reward.f1=0", "no answer would be worth anything"),
        ("cluster.weights=nccl", "does not fit the devices; use gloo"),
        ("learner.gpus=1", "both or neither"),
        ("model.lora={rank:8,alpha:16}", "model.lora.targets=... must be given"),
        ("model.lora={rank:0,alpha:16,targets:[q_proj]}", "model.lora.rank must be between 1 and 4096, got 0"),
        ("model.lora={rank:8,alpha:16,targets:[]}", "model.lora.targets names no layer"),
        ("model.lora={rnk:8}", "Key 'rnk' not in 'Lora'"),
        ("data=folder", "data.source=... must be given"),
        ("data=[popqa,hotpotq]", "no data is called 'hotpotq'; did you mean 'hotpotqa'?"),
        ("data.mix.popqa=2", "Could not override 'data.mix.popqa'"),
        ("+data.mix.popq=2", "no data set is called 'popq'; there are: world, "),
        ("data.mix.world=0", "data.mix.world must be a finite number above 0, got 0"),
        ("data=[folder,popqa]", "so data.source must be a folder, got 'popqa'"),
        ("train.quotas=[1,17]", "train.quotas holds 17; each must be between 0 and 16"),
        ("train.ks=[0]", "train.ks holds 0; each must be between 1 and 100"),
        ("algorithm.trains=[]", "must name one or more of decision, query, answer, each once"),
        ("algorithm.trains=[query,query]", "must name one or more of decision, query, answer, each once"),
        ("algorithm.trains=[judge]", "judge"),
        ("algorithm.trains=[query] warmup.steps=5", "play decision and answer, so they must be warmed up already"),
        ("algorithm.trains=[decision,query] algorithm.quota=0", "learns nothing where every answer is forced"),
        ("warmup.share=1", "warmup.share must be between"),
        ("warmup.teacher=nobody", "expected one of [gold, policy, endpoint]"),
        ("steps", "is not of the form name=value"),
    ],
)
def test_a_mistake_is_refused_with_what_to_do(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override.split())
    assert message in str(caught.value)


def test_several_data_sets_make_one_mix(tmp_path: Path) -> None:
    run = load(["+experiment=popqa", "data=[popqa,ambignq,hotpotqa]", "data.mix.popqa=2"])
    assert run.data.mix == {"popqa": 2.0, "ambignq": 1.0, "hotpotqa": 1.0}
    (tmp_path / "config.yaml").write_text(as_yaml(run))
    assert from_yaml(tmp_path / "config.yaml") == run
    assert load(["data=hotpotqa", "data.source=/some/folder"]).data.source == "/some/folder"
    assert load(["data=[popqa,folder]", "data.source=/some/folder"]).data.mix == {"popqa": 1.0, "folder": 1.0}
    assert load(["data=world"]) == load([])


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
