"""What production.md tells an operator to type, typed: backup, restore, upgrade, a move."""

import re
from pathlib import Path

import pytest

from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.e2e.project import APPEND, Project
from atlas_dagster_tests.e2e.web_server import wait_until
from atlas_dagster_tests.stack.compose import ANSWERING, REPOSITORY, Stack
from atlas_dagster_tests.stack.web import Web

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


def procedure(heading: str) -> list[str]:
    """The commands under a heading of the page, block by block."""
    page = (REPOSITORY / "docs" / "production.md").read_text()
    _, section = page.split(f"## {heading}\n")
    return re.findall(r"```sh\n(.*?)```", section.split("\n## ")[0], re.DOTALL)


def discover(stack: Stack, web: Web, connection: str) -> None:
    stack.atlas("discover", connection)
    web.reload()


def test_a_new_version_comes_while_a_sync_runs(stack: Stack, web: Web) -> None:
    config = {"count": 1000, "rate": 10}
    stack.declare("upgraded", image=STANDIN, config=config, streams=APPEND)
    discover(stack, web, "upgraded")
    old = stack.containers("code")[0].image
    run = web.launch("upgraded/events")
    wait_until("the connector runs", lambda: stack.connectors("upgraded"), seconds=120)
    (commands,) = procedure("Upgrade")
    with (stack.folder / "README.md").open("a") as readme:  # all that is new
        readme.write("\n")
    stack.follow(commands.replace("git pull\n", ""))
    assert stack.connectors("upgraded"), "the sync ended too soon to tell"
    stack.wait_healthy(*ANSWERING)
    assert stack.containers("code")[0].image.id != old.id
    assert web.wait(run, seconds=180) == "SUCCESS"
    assert stack.ids("upgraded") == [*range(1, 1001)]
    of_it = {"ancestor": old.id}
    running = lambda: stack.client.containers.list(filters=of_it)  # noqa: E731
    wait_until("nothing runs from the old version", lambda: not running(), seconds=60)
    stack.client.images.remove(old.id, force=True)


def test_postgres_gets_a_new_version(stack: Stack, web: Web) -> None:
    """The same one here; what counts is that all of the old one is in the new one."""
    stack.declare("versioned", image=STANDIN, config={"count": 10}, streams=APPEND)
    discover(stack, web, "versioned")
    run = web.materialize("versioned/events", seconds=180)
    (commands,) = procedure("A new major version of Postgres")
    kept = f"ATLAS_POSTGRES_IMAGE={stack.settings['ATLAS_POSTGRES_IMAGE']}"
    stack.follow(commands.replace("ATLAS_POSTGRES_IMAGE=postgres:17", kept))
    stack.wait_healthy(*ANSWERING)
    assert web.status(run) == "SUCCESS"
    web.materialize("versioned/events", seconds=180)
    assert stack.ids("versioned") == [*range(1, 11)]


def test_a_lake_of_one_machine_goes_on_in_the_stack(stack: Stack, web: Web, tmp_path: Path) -> None:
    project = Project(tmp_path)
    config = {"count": "{{ env.MOVED_ROWS }}"}
    project.declare("moved", {"image": STANDIN, "config": config, "streams": APPEND})
    # Both are called atlas_dagster, where nobody says otherwise.
    variables = {"MOVED_ROWS": "100", "ATLAS_DEPLOYMENT": stack.name}
    project.atlas("discover", "moved", **variables)
    project.atlas("sync", "moved", **variables)
    project.table("").rename(stack.folder / "lake")
    stack.declare("moved", image=STANDIN, config=config, streams=APPEND)
    stack.secret("MOVED_ROWS", "150")
    (commands,) = procedure("From one machine's files into Postgres")
    stack.follow(commands)
    discover(stack, web, "moved")
    web.materialize("moved/events", seconds=180)
    assert stack.ids("moved") == [*range(1, 151)]


def test_what_was_backed_up_comes_back_on_a_machine_that_has_nothing(
    stack: Stack, web: Web
) -> None:
    config = {"count": "{{ env.KEPT_ROWS }}"}
    stack.declare("kept", image=STANDIN, config=config, streams=APPEND)
    stack.secret("KEPT_ROWS", "100")
    discover(stack, web, "kept")
    web.materialize("kept/events", seconds=180)
    back_up, restore = procedure("Backup and restore")
    database, lake = back_up.split("\n", 1)
    stack.follow(database)
    # A sync between the two: the copy of the lake is ahead of the events.
    stack.secret("KEPT_ROWS", "200")
    web.materialize("kept/events", seconds=180)
    stack.follow(lake)
    stack.compose("down", "--volumes")
    stack.follow(restore)
    stack.wait_healthy(*ANSWERING)
    assert stack.ids("kept") == [*range(1, 201)]
    stack.secret("KEPT_ROWS", "300")
    web.reload()
    web.materialize("kept/events", seconds=180)
    assert stack.ids("kept") == [*range(1, 301)]
