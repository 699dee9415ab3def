"""A nemesis: kills by pid what a run is made of, at instants that a seed draws, and keeps a history.

python -m tests.nemesis OUT [--steps 60] [--every 10] [--seed 0]      what kills cost the quickstart: its goodput
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tests.processes import kill, titled, until
from tests.whole_run import rows, start

DRIVER = "driver"
TARGETS = ("RolloutWorker", "EngineCore", "RetrievalReplica", "LearnerRank", DRIVER)


@dataclass(frozen=True, slots=True)
class Kill:
    step: int  # so many steps are done
    phase: float  # and this share of a step's time has passed since
    target: str
    which: float  # of several, in [0, 1)


@dataclass(frozen=True, slots=True)
class Blow:
    """What came of a kill."""

    kill: Kill
    pid: int
    steps_done: int
    recovery_s: float  # until one step more was done


def plan(seed: int, steps: int, every: int, targets: Sequence[str] = TARGETS) -> list[Kill]:
    """One kill in each `every` steps, at any instant of them, each target once before one comes again.

    None in the last `every`: while one blow is recovered from the run goes on, so the next may fall later than is due.
    """
    draw = random.Random(seed)
    blocks = [range(first, first + every) for first in range(1, steps - every, every)]
    drawn = [target for _ in blocks for target in draw.sample(targets, len(targets))]
    return [Kill(draw.choice(block), draw.random(), drawn[i], draw.random()) for i, block in enumerate(blocks)]


def torment(runs: Path, settings: Sequence[str], kills: Sequence[Kill]) -> tuple[list[Blow], float]:
    """(what came of each kill, seconds from the first step's end to the last's) of a run in `runs`, which ends well.

    history.jsonl in `runs` has the blows as they fall.
    """
    runs.mkdir()
    log, blows = runs / "driver.log", []
    driver = start(runs, *settings)
    try:
        until(lambda: len(rows(runs)) >= 1, driver, log)
        began = time.monotonic()
        for due in kills:
            until(lambda due=due: len(rows(runs)) >= due.step, driver, log)
            time.sleep(due.phase * rows(runs)[-1]["seconds_step"])
            until(lambda driver=driver, due=due: list(_victims(driver.pid, due.target)), driver, log)
            done, fell = len(rows(runs)), time.monotonic()
            victims = list(_victims(driver.pid, due.target))
            victim = victims[int(due.which * len(victims))]
            if due.target == DRIVER:
                kill(driver)
                driver = start(runs, *settings, "resume=latest")
            else:
                victim.kill()
            until(lambda done=done: len(rows(runs)) > done, driver, log)
            blows.append(Blow(due, victim.pid, done, time.monotonic() - fell))
            with (runs / "history.jsonl").open("a") as history:
                history.write(json.dumps(asdict(blows[-1])) + "\n")
        steps = next(int(s.partition("=")[2]) for s in settings if s.startswith("train.steps="))
        until(lambda: len(rows(runs)) >= steps, driver, log)
        took = time.monotonic() - began
        assert driver.wait(timeout=900) == 0, log.read_text(errors="replace")[-4000:]
    finally:
        driver.kill()
    return blows, took


def _victims(driver: int, target: str) -> Iterator[psutil.Process]:
    if target == DRIVER:
        yield psutil.Process(driver)
    else:
        yield from titled(psutil.Process(driver)).get(target, [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    given = parser.parse_args()
    settings = [f"train.steps={given.steps}", "train.save_every=1", "train.gates=false", "log.progress=false"]
    given.out.mkdir(parents=True)
    _, calm_s = torment(given.out / "calm", settings, [])
    blows, took_s = torment(given.out / "kills", settings, plan(given.seed, given.steps, given.every, given.targets))
    for blow in blows:
        print(f"after step {blow.steps_done}: {blow.kill.target}, {blow.recovery_s:.1f} s to the next step's end")
    share = f"{calm_s:.1f} s undisturbed, {took_s:.1f} s with {len(blows)} kills: goodput {calm_s / took_s:.3f}"
    print(f"{given.steps} steps: {share}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
