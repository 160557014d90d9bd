"""What a user sees and clicks in Dagster's web UI, in a real browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from e2e.dev_server import DevServer
from e2e.project import Project

pytestmark = [pytest.mark.browser, pytest.mark.docker]

STREAMS = ("users", "products", "purchases")
SIZE = {"width": 1440, "height": 900}
#: Tall enough for all metadata of a materialization.
TALL = {"width": 1440, "height": 1150}
SECONDS = 1000  # Playwright counts in milliseconds

expect.set_options(timeout=30 * SECONDS)  # the default of 5 is short on a busy machine


@pytest.fixture(scope="module")
def page(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    profile = tmp_path_factory.mktemp("chromium")
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


def metadata(page: Page) -> dict[str, str]:
    """The page's metadata table."""
    rows = [row.inner_text().split("\n", 1) for row in page.locator("tr").all()]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}


def test_one_stream_is_materialized(
    server: DevServer, project: Project, page: Page, screenshots: Path
) -> None:
    graph = f"{server.url}/locations/atlas_dagster/asset-groups/demo/lineage"
    page.goto(graph)
    for asset in ("source_faker", *STREAMS):
        expect(node(page, asset)).to_be_visible()
    expect(page.locator("foreignObject")).to_have_count(4)
    for stream in STREAMS:
        expect(node(page, stream)).to_contain_text("Never materialized")

    page.goto(f"{server.url}/assets/demo/users")
    page.locator("button").filter(has_text=re.compile(r"^\s*Materialize\s*$")).click()
    expect(page.get_by_text("Launched run")).to_be_visible()
    page.get_by_text("View", exact=True).click()
    page.wait_for_url("**/runs/**")
    run = page.url.partition("/runs/")[2].partition("?")[0]
    expect(page.get_by_text("Success", exact=True)).to_be_visible(timeout=90 * SECONDS)
    assert server.wait(run, seconds=5) == "SUCCESS"

    page.set_viewport_size(TALL)
    page.goto(f"{server.url}/assets/demo/users?view=events")
    expect(page.get_by_text("Materialized in run")).to_be_visible()
    expect(page.get_by_text("atlas/records_synced")).to_be_visible()
    shown = metadata(page)
    page.screenshot(path=screenshots / "materialization.png")
    page.set_viewport_size(SIZE)
    assert shown["atlas/records_synced"] == "1000"
    assert shown["dagster/row_count"] == "1000"
    assert int(shown["atlas/bytes_synced"]) > 100_000
    assert float(shown["atlas/duration_seconds"]) > 0
    assert json.loads(shown["atlas/cursor_after"])["loop_offset"] == 1000
    assert shown["dagster/table_name"] == "demo.users"
    assert shown["dagster/uri"] == project.table("demo/users").as_uri()
    assert "[Show Table Schema]" in shown["dagster/column_schema"]

    assert project.ids("demo/users") == [*range(1, 1001)]
    page.goto(graph)
    expect(node(page, "users")).to_contain_text("Materialized")
    expect(node(page, "source_faker")).to_contain_text("1 / 1 Passed")
    for stream in ("products", "purchases"):
        expect(node(page, stream)).to_contain_text("Never materialized")
        assert not project.table(f"demo/{stream}").exists()
    page.screenshot(path=screenshots / "asset-graph.png")


def test_a_failed_check_shows_the_connectors_message(
    server: DevServer, page: Page, screenshots: Path, denied_run: str
) -> None:
    page.goto(f"{server.url}/assets/standin_denied/source_standin?view=checks")
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    expect(page.get_by_text("bad password").first).to_be_visible()
    page.screenshot(path=screenshots / "failed-check.png")


def test_a_failed_sync_shows_the_connectors_message(
    server: DevServer, page: Page, screenshots: Path, dead_run: str
) -> None:
    page.goto(f"{server.url}/runs/{dead_run}")
    expect(page.get_by_text("Failure", exact=True).first).to_be_visible()
    expect(page.get_by_text("upstream went away").last).to_be_visible()
    page.wait_for_timeout(2 * SECONDS)  # the chart is drawn a moment later
    page.screenshot(path=screenshots / "failed-sync.png")
