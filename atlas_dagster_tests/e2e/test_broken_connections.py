"""A connection that cannot be loaded says why, and stands alone."""

import pytest

from atlas_dagster_tests.e2e.dev_server import DevServer
from atlas_dagster_tests.e2e.project import STANDIN_IMAGE, Project

pytestmark = pytest.mark.docker

DECLARATION = "type: atlas_dagster.AirbyteConnection\nattributes:\n"
#: By connection: its defs.yaml, and what its placeholder has to say.
BROKEN = {
    "broken_field": (
        f"{DECLARATION}  image: {STANDIN_IMAGE}\n  confg: {{count: 5}}\n",
        ["broken_field/defs.yaml", "there is no field 'confg'", "did you mean 'config'?"],
    ),
    "broken_connector": (
        f"{DECLARATION}  connector: source-postgrs\n",
        ['There is no connector "source-postgrs"', "did you mean source-postgres"],
    ),
    "broken_yaml": (
        f"{DECLARATION}  image: [unclosed\n  config: {{}}\n",
        ["broken_yaml/defs.yaml", "line 4", "not valid YAML"],
    ),
}


#: Discovered while it was right.
RENAMED = f"{DECLARATION}  image: {STANDIN_IMAGE}\n  streams: [{{name: evnts}}]\n"


@pytest.fixture(scope="module", autouse=True)
def _broken(server: DevServer, project: Project) -> None:
    for connection, (declaration, _) in BROKEN.items():
        project.declare(connection, declaration)
    project.declare("standin_renamed", RENAMED)
    server.reload()


@pytest.mark.parametrize("connection", BROKEN)
def test_placeholder_says_what_is_wrong(server: DevServer, connection: str) -> None:
    placeholder = server.asset(f"{connection}/broken")
    assert placeholder is not None
    assert placeholder["groupName"] == connection
    for part in BROKEN[connection][1]:
        assert part in placeholder["description"]
    assert server.asset(f"{connection}/events") is None


def test_what_no_longer_fits_the_source_is_said_on_the_source(server: DevServer) -> None:
    source = server.asset("standin_renamed/source_standin")
    assert source is not None
    assert "The current declaration cannot be synced" in source["description"]
    assert "The connector has no stream 'evnts'; did you mean events?" in source["description"]
    assert server.asset("standin_renamed/broken") is None


def test_the_others_still_load(server: DevServer) -> None:
    for stream in ("users", "products", "purchases"):
        assert server.asset(f"demo/{stream}")
    assert server.asset("demo/broken") is None
