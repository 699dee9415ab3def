"""report.html in a real browser without a network: the console stays silent, nothing is asked for, a phone shows it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from smartrag.report import page
from tests import browser, run_folder
from tests.browser import Visit, lightness
from tests.run_folder import SHOWN

pytestmark = pytest.mark.skipif(
    browser.installed() is None,
    reason=f"none of {', '.join(browser.NAMES)} is on PATH; apt-get install chromium, or make browser as root",
)
SECTIONS = ("headline", "training", "decision", "gates", "studies", "episodes", "setup", "cost", "limits")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished run with an evaluation, a sweep and an ablation, every text of which is hostile."""
    top, rng = tmp_path_factory.mktemp("browser"), np.random.default_rng(0)
    folder = top / "runs" / "quickstart" / "one"
    run_folder.write_run(folder, rng)
    run_folder.write_evaluation(folder, rng)
    run_folder.write_sweep(top / "frontier.json", rng)
    run_folder.write_ablation(top / "ablation.json", rng)
    return page.write(folder, None, [top / "frontier.json", top / "ablation.json"])


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_a_report_renders_in_silence_and_fits(chromium: Browser, report: Path, width: int, dark: bool) -> None:
    with Visit(chromium, report, width=width, dark=dark) as visit:
        for section in SECTIONS:
            assert visit.page.locator(f"section#{section} h2").is_visible(), section
        plots = visit.page.locator("svg.plot").all()
        assert len(plots) >= 12
        for plot in plots:
            box = plot.bounding_box()
            assert box is not None
            assert min(box["width"], box["height"]) > 60
            assert box["x"] + box["width"] <= width
        wide = visit.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, "the page itself never scrolls sideways; a table may, in its own box"
        ink, paper = visit.page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        assert (lightness(ink) > lightness(paper)) is dark
        line = visit.page.locator("path.stroke-after").first
        assert line.evaluate("e => getComputedStyle(e).stroke") not in ("none", paper), "the style sheet colours plots"
        assert visit.errors == []
        assert visit.requests == [report.resolve().as_uri()]


def test_what_a_model_or_a_passage_wrote_never_runs(chromium: Browser, report: Path) -> None:
    with Visit(chromium, report) as visit:
        assert visit.page.evaluate("typeof hacked") == "undefined"
        assert visit.page.locator("script, img, iframe, object, embed, link, style:not(head style)").count() == 0
        assert visit.page.locator("h4.question", has_text=SHOWN).count() >= 1, "it stands there to be read"
        assert visit.page.locator("main").count() == 1
        # Even markup that got in would not run: the page's policy refuses it.
        visit.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=hacked=1>')")
        visit.page.wait_for_timeout(200)
        assert visit.page.evaluate("typeof hacked") == "undefined"
        assert any("Content Security Policy" in error for error in visit.errors)


def test_the_configuration_opens_and_a_link_leads_to_its_section(chromium: Browser, report: Path) -> None:
    with Visit(chromium, report, width=390) as visit:
        config = visit.page.locator("#setup pre")
        assert not config.is_visible()
        visit.page.locator("#setup summary").click()
        assert config.is_visible()
        assert "name: quickstart" in config.inner_text()
        visit.page.locator("nav a", has_text="Limits").click()
        expect(visit.page.locator("#limits h2")).to_be_in_viewport()
        assert visit.errors == []


def test_a_run_under_way_renders_too(chromium: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x" / "one"
    run_folder.write_run(folder, np.random.default_rng(1))
    for name in ("summary.json", "evaluation-after.jsonl", "evaluation-never.jsonl", "evaluation-always.jsonl"):
        (folder / name).unlink()
    with Visit(chromium, page.write(folder), width=390) as visit:
        assert visit.page.get_by_text("There is no summary.json").first.is_visible()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert visit.errors == []
