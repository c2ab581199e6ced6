"""A report's page in an installed Chromium that has no network; skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# as root, as in a container, Chromium starts without its sandbox only; and it stays silent
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
WAIT_MS = 60_000


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


class Opened:
    """A page that was opened from disk, with everything it asked for and complained about."""

    def __init__(self, context: Any, file: Path) -> None:
        self.page = context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else 0,
        )
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog {dialog.message}"))
        self.page.goto(file.absolute().as_uri())
        self.drawn()

    def drawn(self) -> None:
        self.page.wait_for_selector("body[data-state=drawn]", timeout=WAIT_MS)

    def choose(self, filter_name: str, value: str) -> None:
        self.page.evaluate("document.body.dataset.state = ''")
        self.page.select_option(f"#filters select[name={filter_name}]", value)
        self.drawn()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """``opened(file, width=…, dark=…)``: the page, drawn."""
    contexts = []

    def open_page(file: Path, width: int = 1280, dark: bool = False) -> Opened:
        context = browser.new_context(
            offline=True,
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
        )
        contexts.append(context)
        return Opened(context, file)

    yield open_page
    for context in contexts:
        context.close()
