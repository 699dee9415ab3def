"""Chromium without a window and without a network, for what must be seen in a browser.

python -m tests.browser runs/quickstart/latest/report.html docs/report.png    takes a picture of a report's headline
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

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


if __name__ == "__main__":
    with chromium() as found, Visit(found, Path(sys.argv[1]), width=1160) as visit:
        box = visit.page.locator("#headline").bounding_box()
        assert box is not None, "the page has no headline"
        height = box["y"] + box["height"] + 20
        visit.page.screenshot(path=sys.argv[2], full_page=True, clip={"x": 0, "y": 0, "width": 1160, "height": height})
        sys.exit("\n".join(visit.errors) or None)
