"""What a user sees and clicks in Dagster's web UI, in a real browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from playwright.sync_api import Page, expect

from atlas_dagster_tests.e2e.browser import (
    SECONDS,
    SIZE,
    launched,
    materialize_button,
    node,
    opened_page,
)
from atlas_dagster_tests.e2e.containers import containers_of
from atlas_dagster_tests.e2e.dev_server import DevServer
from atlas_dagster_tests.e2e.project import Project
from atlas_dagster_tests.e2e.web_server import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.docker]

STREAMS = ("users", "products", "purchases")
#: Tall enough for all metadata of a materialization.
TALL = {"width": 1440, "height": 1350}


@pytest.fixture(scope="module")
def page(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened_page(chromium, tmp_path_factory.mktemp("chromium")) as page:
        yield page


def metadata(page: Page) -> dict[str, str]:
    """The page's metadata table; that of a preview is within one of its cells."""
    found = {}
    for row in page.locator("tr").all():
        cells = [cell.inner_text().strip() for cell in row.locator(":scope > td").all()]
        if len(cells) >= 2:
            found[cells[0]] = cells[1]
    return found


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
    materialize_button(page).click()
    run = launched(page)
    expect(page.get_by_text("Success", exact=True)).to_be_visible(timeout=90 * SECONDS)
    assert server.wait(run, seconds=5) == "SUCCESS"

    page.set_viewport_size(TALL)
    page.goto(f"{server.url}/assets/demo/users?view=events")
    expect(page.get_by_text("Materialized in run")).to_be_visible()
    expect(page.get_by_text("atlas/records_synced")).to_be_visible()
    shown = metadata(page)
    page.screenshot(path=screenshots / "materialization.png")
    assert shown["atlas/summary"].startswith("1,000 records in ")
    assert "The table has 1,000 rows." in shown["atlas/summary"]
    assert shown["atlas/envelope"] == "[Show JSON]"
    for column in ("id", "created_at"):
        expect(page.locator("th").filter(has_text=re.compile(f"^{column}$"))).to_be_visible()
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
    expect(node(page, "users")).to_contain_text("3 / 3 Passed")
    expect(node(page, "source_faker")).to_contain_text("2 / 2 Passed")
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


def test_a_stream_has_its_checks(server: DevServer, page: Page, screenshots: Path) -> None:
    page.goto(f"{server.url}/assets/demo/users?view=checks")
    for name in ("records", "primary_key", "schema"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.get_by_text("records", exact=True).first.click()
    expect(page.get_by_text("matches the source's count").first).to_be_visible()
    page.wait_for_timeout(2 * SECONDS)
    page.screenshot(path=screenshots / "checks.png")


def test_a_dry_run_from_the_launchpad_changes_nothing(
    server: DevServer, project: Project, page: Page, screenshots: Path
) -> None:
    before = project.table("demo/users").stat().st_mtime_ns
    page.goto(f"{server.url}/assets/demo/users")
    materialize_button(page).click(modifiers=["Shift"])
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("dry_run")).to_be_visible()
    dialog.locator(".CodeMirror").click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(
        "{ops: {demo__sync: {config: {dry_run: true, streams: {users: {refresh: remove}}}}}}"
    )
    expect(dialog.get_by_text("No errors")).to_be_visible()
    dialog.get_by_role("button", name="Materialize").click()
    run = launched(page)
    assert server.wait(run) == "SUCCESS", server.failures(run)

    assert project.table("demo/users").stat().st_mtime_ns == before
    [users] = server.events(run, "ObservationEvent")
    page.goto(f"{server.url}/assets/demo/users?view=events")
    page.get_by_text("Observed in run").or_(
        page.get_by_text("Materialized in run")
    ).first.wait_for()
    told = metadata(page)["atlas/dry_run"]
    assert told.startswith("Dry run: nothing was written.")
    assert "read from the beginning, and replace the rows of the table" in told
    assert "1,000 records read and discarded; there may be more." in told
    page.screenshot(path=screenshots / "dry-run.png")
    materializations = server.asset("demo/users")["assetMaterializations"]
    assert run not in [each["runId"] for each in materializations]
    assert users["metadataEntries"]


def test_terminate_stops_the_connector_in_the_middle_of_a_read(
    server: DevServer,
    project: Project,
    docker_client: docker.DockerClient,
    page: Page,
    screenshots: Path,
) -> None:
    run = server.launch("standin_watched/events")
    page.goto(f"{server.url}/runs/{run}")
    expect(page.get_by_text("Records so far: events").first).to_be_visible(timeout=90 * SECONDS)
    assert containers_of(docker_client, project, "standin_watched")
    page.screenshot(path=screenshots / "progress.png")
    page.get_by_text("stdout", exact=True).click()
    page.get_by_placeholder("Select a step").click()
    page.get_by_text("standin_watched__sync", exact=True).last.click()
    expect(page.get_by_text("Reading events after id 0")).to_be_visible()

    page.get_by_role("button", name="Terminate").click()
    page.get_by_role("dialog").get_by_role("button", name="Terminate").click()
    wait_until("the run is canceled", lambda: server.status(run) == "CANCELED", seconds=15)
    expect(page.get_by_text("Canceled", exact=True).first).to_be_visible()
    assert not containers_of(docker_client, project, "standin_watched")
    assert "hunter2" not in page.content()


def test_a_wiped_stream_is_read_again(
    server: DevServer, project: Project, page: Page, screenshots: Path
) -> None:
    server.materialize("standin_wiped/events")
    page.goto(f"{server.url}/assets/standin_wiped/events")
    materialize_button(page).locator("xpath=following::button[1]").click()
    page.get_by_text("Wipe materializations").click()
    page.get_by_role("dialog").get_by_role("button", name=re.compile("Wipe")).click()
    node = lambda: server.asset("standin_wiped/events") or {}  # noqa: E731
    wait_until("it is wiped", lambda: node()["assetMaterializations"] == [], seconds=30)

    page.goto(f"{server.url}/assets/standin_wiped/events")
    materialize_button(page).click()
    run = launched(page)
    assert server.wait(run) == "SUCCESS", server.failures(run)
    assert project.ids("standin_wiped/events") == [*range(1, 31)]
    page.goto(f"{server.url}/assets/standin_wiped/events?view=events")
    expect(page.get_by_text("Materialized in run")).to_be_visible()
    page.screenshot(path=screenshots / "wiped.png")
    assert metadata(page)["atlas/summary"].startswith("30 records in ")


def test_a_scheduled_sync_arrives(server: DevServer, page: Page, screenshots: Path) -> None:
    sensor = "standin_scheduled__schedule"
    runs = lambda: [run for tick in server.sensor(sensor)["ticks"] for run in tick["runIds"]]  # noqa: E731
    [run] = wait_until("the schedule is due", runs, seconds=180)
    assert server.wait(run) == "SUCCESS"
    page.goto(f"{server.url}/locations/atlas_dagster/sensors/{sensor}")
    expect(
        page.get_by_text("Requests CHECK, then a sync of standin_scheduled").first
    ).to_be_visible()
    expect(page.get_by_text(run[:8]).first).to_be_visible()
    page.wait_for_timeout(2 * SECONDS)
    page.screenshot(path=screenshots / "schedule.png")
