"""Chromium, and what tests click in Dagster's web UI."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, expect, sync_playwright

SIZE = {"width": 1440, "height": 900}
SECONDS = 1000  # Playwright counts in milliseconds

expect.set_options(timeout=30 * SECONDS)  # the default of 5 is short on a busy machine


@contextmanager
def opened_page(chromium: str, profile: Path) -> Iterator[Page]:
    """A page in a browser of its own, which keeps what it must in ``profile``."""
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=arguments, viewport=SIZE
        )
        browser.set_default_timeout(30 * SECONDS)
        yield browser.new_page()
        browser.close()


def node(page: Page, asset: str) -> Locator:
    """The asset's box in the graph."""
    name = page.get_by_text(asset, exact=True)
    return page.locator("foreignObject").filter(has=name)


def materialize_button(page: Page) -> Locator:
    return page.locator("button").filter(has_text=re.compile(r"^\s*Materialize\s*$"))


def launched(page: Page) -> str:
    """The run that a click has launched; its page is open."""
    page.get_by_text("View", exact=True).or_(page.get_by_text("Re-execute all")).first.wait_for()
    if "/runs/" not in page.url:  # the launchpad goes there by itself
        page.get_by_text("View", exact=True).click()
    page.wait_for_url("**/runs/**")
    return page.url.partition("/runs/")[2].partition("?")[0]
