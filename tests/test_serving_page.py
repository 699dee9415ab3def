"""The page of a served policy in a real browser, over a scripted policy whose every text is hostile."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, expect

from smartrag.serving import refusal
from smartrag.types import Passage
from tests import browser
from tests.browser import Visit, lightness
from tests.desk import TOKEN, Desk
from tests.run_folder import HOSTILE, SHOWN

pytestmark = pytest.mark.skipif(
    browser.installed() is None,
    reason=f"none of {', '.join(browser.NAMES)} is on PATH; apt-get install chromium, or make browser as root",
)
SLOW, LOST = "Slowly?", "Lost?"
SCRIPT: dict[str, list[Any]] = {
    HOSTILE: [f"[Search] {HOSTILE}", f" {HOSTILE}"],
    "Ramble!": ["Well"],
    SLOW: ["[Search] hacked", 30.0, " late"],
    LOST: ["[Search] hacked", refusal.away()],
}


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk(SCRIPT, Passage(HOSTILE, f"{HOSTILE}\n{HOSTILE}", 1.25))


@pytest.fixture(scope="module")
def address(desk: Desk) -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(desk.application(60.0), log_level="error"))
        running = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        running.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        running.join(30)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.chromium() as found:
        yield found


def ask(visit: Visit, question: str) -> Any:
    """Asks, and returns what the page shows of it."""
    visit.page.get_by_label("Question").fill(question)
    visit.page.get_by_label("Question").press("Enter")
    return visit.page.locator("article").first


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_what_a_model_or_a_passage_wrote_is_shown_and_never_runs(
    chromium: Browser, address: str, width: int, dark: bool
) -> None:
    with Visit(chromium, address, width=width, dark=dark) as visit:
        visit.page.get_by_label("Token").fill(TOKEN)
        shown = ask(visit, HOSTILE)
        expect(shown.locator(".outcome")).to_contain_text("1 retrieval ·")
        expect(shown.locator("h2")).to_have_text(SHOWN)
        assert [turn.locator(".act").inner_text() for turn in shown.locator(".moves > li").all()] == [
            "searches for",
            "answers (forced: no search is left to it)",
        ]
        assert SHOWN in shown.locator("blockquote b").inner_text()
        assert shown.locator(".score").inner_text() == "1.25"
        assert visit.page.evaluate("typeof hacked") == "undefined"
        assert visit.page.locator("img, iframe, article script, svg").count() == 0
        visit.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=hacked=1>')")
        visit.page.wait_for_timeout(200)
        assert visit.page.evaluate("typeof hacked") == "undefined"
        assert any("Content Security Policy" in error for error in visit.errors), "markup that got in would not run"
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        ink, paper = visit.page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        assert (lightness(ink) > lightness(paper)) is dark
        assert all(request.startswith((address, "data:")) for request in visit.requests)


def test_what_goes_wrong_is_said_and_the_next_question_can_be_asked(
    chromium: Browser, address: str, desk: Desk
) -> None:
    with Visit(chromium, address) as visit:
        visit.page.get_by_label("Token").fill("wrong")
        expect(ask(visit, "Ramble!")).to_contain_text("the token is not the one of this server")
        visit.page.get_by_label("Token").fill(TOKEN)
        expect(ask(visit, "Ramble!")).to_contain_text("No answer: the policy wrote neither a search nor an answer.")
        expect(ask(visit, LOST)).to_contain_text("no engine is there at the moment")
        closed = desk.closed
        stopped = ask(visit, SLOW)
        expect(stopped.locator("blockquote")).to_be_visible()  # before the answer is there
        visit.page.get_by_role("button", name="Stop").click()
        expect(stopped).to_contain_text("stopped")
        deadline = time.monotonic() + 10
        while desk.closed == closed and time.monotonic() < deadline:
            visit.page.wait_for_timeout(50)
        assert desk.closed == closed + 1, "the episode of a client that has gone is given up"
        visit.page.reload()
        expect(visit.page.get_by_label("Token")).to_have_value(TOKEN)
        expect(ask(visit, HOSTILE).locator(".outcome")).to_contain_text("1 retrieval ·")
