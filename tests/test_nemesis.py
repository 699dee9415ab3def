"""A run whose parts and driver are killed at random instants is to the last bit the run that nobody disturbs."""

from collections import Counter
from pathlib import Path

import pytest

from tests.fault_table import Row
from tests.nemesis import TARGETS, plan, torment
from tests.whole_run import EXACT, SMALL, check_equal, finished

STEPS, EVERY = 36, 6
SETTINGS = (f"train.steps={STEPS}", *SMALL, *EXACT, "train.gates=false", "log.wandb=disabled", "log.progress=false")


def test_the_kills_are_drawn_by_the_seed() -> None:
    assert plan(3, 60, 10) == plan(3, 60, 10) != plan(4, 60, 10)
    kills = [kill for seed in range(200) for kill in plan(seed, 60, 10)]
    assert len(kills) == 200 * 5
    assert {kill.step for kill in kills} == set(range(1, 51))
    assert Counter(kill.target for kill in kills) == dict.fromkeys(TARGETS, 200)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(3000)
@pytest.mark.fault("D3", "whatever a run is made of is killed, at random instants")
def test_random_kills_change_nothing(tmp_path: Path, row: Row, trials: int) -> None:
    """Whole runs: of ten times as many trials two are played."""
    calm = finished(tmp_path / "calm", *SETTINGS)
    for seed in range(max(1, trials // 10)):
        runs = tmp_path / f"seed{seed}"
        blows, _ = torment(runs, SETTINGS, plan(seed, STEPS, EVERY))
        check_equal(runs / "quickstart" / "latest", calm)
        assert len(blows) == STEPS // EVERY - 1
        for blow in blows:
            row.trial(recovery_s=blow.recovery_s)
