"""The simulated pipeline against times worked out by hand, the fit against spans that follow its formulas, and a fleet
against the roofline on paper."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.capacity import main
from smartrag.arguments import ConfigError
from smartrag.capacity.fit import Unusable, fit, read
from smartrag.capacity.pipeline import Generation, Layout, Services, simulate
from smartrag.capacity.projection import POLICIES, goodput, project, services, tensor_parallel
from smartrag.capacity.study import load
from smartrag.commands import Capacity
from smartrag.compose import as_yaml
from smartrag.compose import load as load_run
from smartrag.exits import BAD_INPUT
from smartrag.trace import DRIVER, ROLLOUT

NOTHING = Services(0, 1e-12, 0, 0, 0, 0, 0, 0, 0, 0, 0)  # an iteration takes some time
ONE = Layout(engines=1, concurrency=64, threads=1, episodes=1, max_staleness=0)
SEARCHED = (Generation(100, 10, True), Generation(200, 5, False))


def fleet(*words: str) -> Capacity:
    return load(words)


def test_an_episode_alone_takes_the_sum_of_its_parts() -> None:
    times = Services(0.5, 0.1, 0.01, 0.2, 0.001, 3.0, 0.25, 7.0, 0.02, 1.5, 2.0)
    outcome = simulate(times, ONE, [SEARCHED], steps=3)
    generating = 2 * 0.2 + 0.001 * 300 + (0.1 + 0.01) * 15
    assert outcome.rollout_s == pytest.approx(0.5 + generating + 3.0 + 2 * 0.25)
    assert outcome.update_s == pytest.approx(7.0 + 0.02 * 315)
    assert outcome.step_s == pytest.approx(outcome.rollout_s + outcome.update_s + 1.5 + 2.0)
    shares = outcome.engines_busy, outcome.threads_busy, outcome.learner_busy
    assert shares == pytest.approx([part / outcome.step_s for part in (generating, 3.0, outcome.update_s)])


def test_sequences_share_an_engine_and_a_short_one_leaves_it_to_the_others() -> None:
    """2 and 5 tokens at 1 s an iteration and sequence: 2 iterations of 2 s, then 3 of 1 s."""
    times = replace(NOTHING, sequence_s=1.0)
    both = [(Generation(0, 2, False),), (Generation(0, 5, False),)]
    assert simulate(times, replace(ONE, episodes=2), both, steps=2).rollout_s == pytest.approx(2 * 2 + 3 * 1)
    assert simulate(times, replace(ONE, episodes=2, engines=2), both, steps=2).rollout_s == pytest.approx(5)
    assert simulate(times, replace(ONE, episodes=2, concurrency=1), both, steps=2).rollout_s == pytest.approx(2 + 5)


def test_a_prompt_stops_what_runs() -> None:
    """The second comes at 1 s, when the first has one of its two tokens: 3 s of reading, then 1 token and 2 each."""
    times = replace(NOTHING, send_s=1.0, iteration_s=1.0, prompt_token_s=1.0)
    pair = [(Generation(0, 2, False),), (Generation(3, 2, False),)]
    assert simulate(times, replace(ONE, episodes=2), pair, steps=2).rollout_s == pytest.approx(2 + 3 + 2)


def test_queries_wait_for_a_thread() -> None:
    times = replace(NOTHING, search_s=2.0)
    asking = [(Generation(0, 1, True), Generation(0, 1, False))]
    for threads, rounds in ((1, 6), (2, 3), (4, 2), (6, 1)):
        layout = replace(ONE, episodes=6, threads=threads)
        assert simulate(times, layout, asking, steps=2).rollout_s == pytest.approx(2.0 * rounds)


@pytest.mark.parametrize(("rollout", "update"), [(3.0, 5.0), (5.0, 3.0)])
def test_one_version_late_the_longer_of_the_two_is_the_step(rollout: float, update: float) -> None:
    times = replace(NOTHING, iteration_s=rollout, update_s=update)
    once = [(Generation(0, 1, False),)]
    assert simulate(times, ONE, once, steps=4).step_s == pytest.approx(rollout + update)
    late = simulate(times, replace(ONE, max_staleness=1), once, steps=4)
    assert late.step_s == pytest.approx(max(rollout, update))
    assert late.learner_busy == pytest.approx(update / max(rollout, update))
    assert late.engines_busy == pytest.approx(rollout / max(rollout, update))


def test_a_push_stops_the_engines() -> None:
    times = replace(NOTHING, iteration_s=4.0, update_s=1.0, push_s=2.0)
    once = [(Generation(0, 1, False),)]
    assert simulate(times, replace(ONE, max_staleness=1), once, steps=4).step_s == pytest.approx(4.0 + 2.0)


@settings(max_examples=40)
@given(
    turns=st.lists(
        st.builds(Generation, st.integers(0, 50), st.integers(1, 20), st.booleans()), min_size=1, max_size=3
    ),
    layout=st.builds(
        Layout, st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(0, 2)
    ),
)
def test_no_part_works_longer_than_there_is_time(turns: list[Generation], layout: Layout) -> None:
    times = Services(0.01, 0.1, 0.02, 0.05, 0.001, 0.5, 0.1, 2.0, 0.01, 0.3, 0.2)
    outcome = simulate(times, layout, [turns], steps=3)
    for busy in (outcome.engines_busy, outcome.threads_busy, outcome.learner_busy):
        assert 0 <= busy <= 1 + 1e-9
    assert outcome.step_s >= outcome.update_s + times.push_s + times.step_s - 1e-9
    apart = outcome.rollout_s + outcome.update_s + times.push_s + times.step_s
    assert outcome.step_s <= apart + 1e-9


def traced(folder: Path, truth: Services, *, steps: int = 6, staleness: int = 0) -> Path:
    """A run whose trace has two episodes a step, one when the other is over; their spans take what `truth` says."""
    folder.mkdir()
    settings = load_run(["log.trace=true", "train.episodes=8", f"train.max_staleness={staleness}"])
    (folder / "config.yaml").write_text(as_yaml(settings))
    events, rows, now = [], [], 100.0
    for step in range(1, steps + 1):
        tokens = 0
        for number, first in enumerate((4 + step, 9)):
            now += 1.0
            for turn, (prompt, generated) in enumerate(((50 * step, first), (200, 3 + number))):
                took = (
                    truth.prompt_s + truth.prompt_token_s * prompt + (truth.iteration_s + truth.sequence_s) * generated
                )
                told = {
                    "step": step,
                    "episode": f"{step}-{number}",
                    "turn": turn,
                    "prompt": prompt,
                    "tokens": generated,
                    "query": "two\u2028lines",  # which are one of the file
                }
                span = {"ph": "X", "pid": ROLLOUT, "tid": 0, "args": told}
                events.append(span | {"name": "generate", "ts": now * 1e6, "dur": took * 1e6})
                now, tokens = now + took, tokens + prompt + generated
                if turn == 0:
                    searched = truth.search_s
                    events.append(span | {"name": "retrieve", "ts": now * 1e6, "dur": searched * 1e6})
                    now += searched + truth.message_s
        update = truth.update_s + truth.token_s * tokens
        times = {"seconds_rollout": 9.0, "seconds_waiting": 9.0, "seconds_update": update, "seconds_feedback": 0.0}
        rows.append({"step": step, **times, "push/seconds": truth.push_s, "seconds_step": 9.0 + update + truth.push_s})
    events.insert(3, {"ph": "X", "pid": DRIVER, "tid": 0, "name": "push", "ts": 0, "dur": 1})
    (folder / "trace.json").write_text(
        "[\n" + "".join(json.dumps(event, ensure_ascii=False) + ",\n" for event in events)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_fit_finds_the_times_that_made_the_spans(tmp_path: Path) -> None:
    truth = Services(0, 0.03, 0.0, 0.2, 0.001, 0.4, 0.1, 2.0, 0.005, 0.25, 0)
    folder = traced(tmp_path / "run", truth)
    with (folder / "trace.json").open("a") as trace:
        trace.write('{"name": "genera')  # it was killed
    found = fit(read(folder))
    assert found.iteration_s + found.sequence_s == pytest.approx(0.03, rel=1e-6)  # with one sequence, they are one
    assert found.prompt_s == pytest.approx(0.2, rel=1e-6)
    assert found.prompt_token_s == pytest.approx(0.001, rel=1e-6)
    assert found.search_s + found.message_s == pytest.approx(0.4 + 0.1, rel=1e-6)
    assert (found.update_s, found.token_s) == pytest.approx((2.0, 0.005), rel=1e-6)
    assert found.push_s == 0.25


def test_what_cannot_be_fitted_is_refused(tmp_path: Path) -> None:
    run = traced(tmp_path / "run", NOTHING, steps=3)
    with pytest.raises(Unusable, match=r"has 3 steps in metrics\.jsonl and 3 in trace\.json.*at least 4"):
        read(run)
    trace = (run / "trace.json").read_text()
    (run / "trace.json").write_text(trace.replace('"prompt"', '"prompts"'))
    with pytest.raises(Unusable, match="an older version wrote it"):
        read(run)
    (run / "trace.json").unlink()
    with pytest.raises(Unusable, match=r"no trace\.json; train with log\.trace=true"):
        read(run)


def test_the_roofline_of_a_policy_on_a_chip() -> None:
    """7B on one H100: 15.24 GB of weights at 0.6 of 3.35 TB/s; 57,344 bytes of keys and values a token."""
    times = services(POLICIES["7B"], fleet("iteration_overhead_s=0.001"), learner_gpus=10, width=1, episodes=100)
    assert times.iteration_s == pytest.approx(0.001 + 15.24e9 / (0.6 * 3.35e12))
    assert POLICIES["7B"].cache == 2 * 28 * 4 * 128 * 2
    assert times.token_s == pytest.approx(10 * 7.62e9 / (0.21 * 9.89e14) / 10)
    assert [tensor_parallel(POLICIES[name], 8e10) for name in ("0.5B", "7B", "32B")] == [1, 1, 2]


def test_a_fleet_is_shared_as_is_fastest() -> None:
    asked = fleet("episodes_per_gpu=16")
    cell = project("7B", 16, asked)
    assert cell is not None
    assert cell.learner_gpus + cell.engines * cell.tensor_parallel <= 16
    assert 0 < cell.orchestration < 0.1
    idle = {f"{name}_s": 0.0 for name in ("send", "message", "step_overhead", "episode_overhead", "push_overhead")}
    free = project("7B", 16, replace(asked, **idle))
    assert free is not None
    assert free.orchestration == 0
    assert project("32B", 8, asked) is None  # 16 bytes of 32.8 billion parameters want 11 GPUs
    slower = project("7B", 16, replace(asked, search_s=10 * asked.search_s))
    assert slower is not None
    assert slower.threads > 3 * cell.threads
    assert slower.outcome.step_s == pytest.approx(cell.outcome.step_s, rel=0.06)


def test_checkpoints_as_often_as_loses_least() -> None:
    asked = fleet("gpu_mtbf_s=1e6", "save_s=8", "restart_s=0")
    every, share = goodput(100, asked)
    assert every == pytest.approx((2 * 8 * 1e4) ** 0.5)
    assert share == pytest.approx(1 / (1 + 8 / every + every / 2 / 1e4))


def test_the_command_leaves_a_table_figures_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["policies=[0.5B,32B]", "gpus=[2,4]", "episodes_per_gpu=4", f"out={tmp_path}"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "0.5B" in said
    assert "32B does not fit 4 GPUs of 80 GB" in said
    told = json.loads((tmp_path / "latest" / "capacity.json").read_text())
    assert [cell["gpus"] for cell in told["cells"]] == [2, 4]
    assert (tmp_path / "latest" / "capacity.png").stat().st_size > 10_000
    runs = [str(traced(tmp_path / name, Services(0, 0.03, 0, 0.2, 0, 0.4, 0, 2, 0, 0.2, 0))) for name in ("a", "b")]
    assert main([f"measured=[{','.join(runs)}]", f"out={tmp_path}/m"]) == 0
    told = json.loads((tmp_path / "m" / "latest" / "capacity.json").read_text())
    assert [one["run"] for one in told["runs"]] == runs
    assert told["services"]["push_s"] == 0.2
    assert main([f"measured=[{tmp_path}/nowhere]", f"out={tmp_path}/m"]) == BAD_INPUT
    assert "nowhere has no trace.json" in capsys.readouterr().err


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        fleet("policies=[8B]", "gpus=[1]", "searches=[0.5]", "flops=0", "save_s=-1")
    for said in (
        "no '8B'; there are 0.5B",
        "got [1]",
        "got [0.5]",
        "flops must be above 0",
        "save_s must not be below 0",
    ):
        assert said in str(error.value)
