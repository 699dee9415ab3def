"""Chromium without a window and without a network, for what must be seen in a browser.

python -m tests.browser runs/quickstart/latest/report.html docs/report.png    takes a picture of a report's headline
python -m tests.browser http://127.0.0.1:8000/ docs/serve.png TOKEN QUESTION ...   of the page of a served policy, asked
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def installed() -> str | None:
    """Path of a Chromium or Chrome; None when there is none. A snap does not count: it may not read a test's folder."""
    found = [path for name in NAMES if (path := shutil.which(name)) and Path(path).resolve().name != "snap"]
    return found[0] if found else None


@contextmanager
def chromium() -> Iterator[Browser]:
    """With a fresh profile that goes when it ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed(), args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page opened from its file, offline, or from a server, with all that it complains of and asks for."""

    def __init__(self, browser: Browser, page: Path | str, *, width: int = 1200, height: int = 900, dark: bool = False):
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self._context = browser.new_context(
            viewport={"width": width, "height": height},
            offline=address != page,
            color_scheme="dark" if dark else "light",
        )
        self.page: Page = self._context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.errors.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address, wait_until="load")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *error: object) -> None:
        self._context.close()


def lightness(colour: str) -> int:
    """Sum of the channels of "rgb(r, g, b)"."""
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def _headline(visit: Visit, out: str) -> None:
    box = visit.page.locator("#headline").bounding_box()
    assert box is not None, "the page has no headline"
    height = box["y"] + box["height"] + 20
    visit.page.screenshot(path=out, full_page=True, clip={"x": 0, "y": 0, "width": 1160, "height": height})


def _asked(visit: Visit, out: str, token: str, questions: Sequence[str]) -> None:
    visit.page.get_by_label("Token").fill(token)
    for question in questions:
        visit.page.get_by_label("Question").fill(question)
        visit.page.get_by_label("Question").press("Enter")
        expect(visit.page.locator("article").first.locator(".outcome")).to_contain_text("tokens read", timeout=60_000)
    visit.page.get_by_label("Question").blur()
    visit.page.screenshot(path=out, full_page=True)


if __name__ == "__main__":
    what, into, *more = sys.argv[1:]
    with (
        chromium() as found,
        Visit(found, what if "://" in what else Path(what), width=1160 if not more else 900) as seen,
    ):
        if more:
            _asked(seen, into, more[0], more[1:])
        else:
            _headline(seen, into)
            sys.exit("\n".join(seen.errors) or None)
