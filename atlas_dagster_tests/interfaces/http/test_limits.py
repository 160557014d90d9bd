"""Who may send requests, and how large they are."""

from collections.abc import Iterator

import pytest

from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.http import Settings
from atlas_dagster.interfaces.http.limits import is_loopback
from atlas_dagster_tests.interfaces.http.live_server import Client, served

TOKEN = "pässword-hunter2"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Client]:
    with served(Settings(token=TOKEN, body_bytes=2000)) as client:
        yield client


def with_token(token: str, scheme: str = "Bearer") -> dict[str, bytes]:
    return {"Authorization": f"{scheme} {token}".encode()}


@pytest.mark.parametrize("path", ["/connectors", "/categories", "/connectors/source-x/spec", "/no"])
@pytest.mark.slow
def test_without_the_token_nothing_is_said(guarded: Client, path: str) -> None:
    answer = guarded.get(path)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        with_token("wrong"),
        with_token(TOKEN[:-1]),
        with_token(TOKEN + "x"),
        with_token(TOKEN, "Basic"),
        with_token("x", "x"),
        {"Authorization": TOKEN.encode()},
    ],
)
def test_a_wrong_token_is_none(guarded: Client, headers: dict[str, bytes]) -> None:
    assert guarded.get("/categories", headers=headers).status_code == 401  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_token_is_accepted(guarded: Client, scheme: str) -> None:
    answer = guarded.get("/categories", headers=with_token(TOKEN, scheme))  # type: ignore[arg-type]
    assert answer.status_code == 200


def test_a_wrong_token_is_noticed_before_the_body_is_read(guarded: Client) -> None:
    assert guarded.post("/check", content=b"x" * 100_000).status_code == 401


def test_health_and_the_docs_need_no_token(guarded: Client) -> None:
    root = f"http://127.0.0.1:{guarded.port}"
    assert guarded.get("/health").status_code == 200
    page = guarded.get(f"{root}/docs")
    assert page.status_code == 200
    assert "https://" not in page.text  # nothing is fetched from elsewhere
    assert guarded.get(f"{root}/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    schema = guarded.get(f"{root}/openapi.json").json()
    assert schema["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path in ("/health/", "/healthy"):
        assert guarded.get(path).status_code in (401, 404, 307)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", ""]
)
def test_without_a_token_only_this_machine_is_served(registry_client: Client, host: str) -> None:
    answer = registry_client.get("/health", headers={"Host": host})
    assert answer.status_code in (400, 421)
    if host:
        assert answer.json()["code"] == "wrong_host"


@pytest.mark.parametrize(
    "host", ["localhost:1", "LOCALHOST", "127.0.0.1", "127.1.2.3:5", "[::1]:8"]
)
def test_under_whichever_name_it_has(registry_client: Client, host: str) -> None:
    assert registry_client.get("/categories", headers={"Host": host}).status_code == 200


def test_with_a_token_the_name_does_not_matter(guarded: Client) -> None:
    headers = {**with_token(TOKEN), "Host": b"atlas.example"}
    assert guarded.get("/categories", headers=headers).status_code == 200  # type: ignore[arg-type]


CROSS_ORIGIN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://127.0.0.1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"},
]


@pytest.mark.parametrize("headers", CROSS_ORIGIN)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/connectors/source-faker/pull"),
        ("GET", "/connectors/source-faker/spec"),
        ("POST", "/check"),
        ("OPTIONS", "/check"),
        ("GET", "/connectors"),
    ],
)
def test_a_web_page_of_another_origin_is_refused(
    registry_client: Client, method: str, path: str, headers: dict[str, str]
) -> None:
    """Browsers send simple requests without a preflight, and some of these run an image."""
    answer = registry_client.request(method, path, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("headers", CROSS_ORIGIN)
def test_what_needs_no_token_may_be_linked_to(
    registry_client: Client, headers: dict[str, str]
) -> None:
    assert registry_client.get("/health", headers=headers).status_code == 200


def test_the_servers_own_docs_and_programs_are_served(registry_client: Client) -> None:
    host = f"127.0.0.1:{registry_client.port}"
    for headers in (
        {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://LOCALHOST:9", "Host": "localhost:9"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
        {},
    ):
        assert registry_client.get("/categories", headers=headers).status_code == 200


def test_with_a_token_the_origin_does_not_matter(guarded: Client) -> None:
    headers = {**with_token(TOKEN), "Origin": b"https://app.example"}
    assert guarded.get("/categories", headers=headers).status_code == 200  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "host",
    [
        "[",
        "[::1",
        "[x]",
        "localhost:x",
        "localhost:99999",
        "localhost:0",
        "localhost#",
        "a@localhost",
        "ä",
    ],
)
@pytest.mark.parametrize("path", ["/categories", "/health/", "/check/"])
def test_a_host_that_is_none_is_refused(
    registry_client: Client, guarded: Client, host: str, path: str
) -> None:
    name = {"Host": host.encode("latin-1")}
    for client, headers in ((registry_client, name), (guarded, {**with_token(TOKEN), **name})):
        answer = client.get(path, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code in (400, 421) or (client is guarded and host == "ä")


@pytest.mark.parametrize("counted", [True, False])
def test_a_request_may_not_be_too_large(guarded: Client, counted: bool) -> None:
    body = b'{"connector_name": "' + b"x" * 3000 + b'"}'
    content = body if counted else iter([body[:1000], body[1000:2500], body[2500:]])
    headers = {**with_token(TOKEN), "Content-Type": b"application/json"}
    answer = guarded.post("/check", content=content, headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert "2,000 bytes" in answer.json()["detail"]


# Where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "atlas.example"])
def test_beyond_this_machine_a_token_is_needed(host: str) -> None:
    for token in (None, ""):
        with pytest.raises(ConfigError, match="ATLAS_TOKEN"):
            Settings.from_environment(host=host, token=token)
    assert Settings.from_environment(host=host, token="t").token == "t"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_on_this_machine_it_is_not(host: str) -> None:
    assert is_loopback(host)
    assert Settings.from_environment(host=host, token="").token is None


def test_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_EXECUTOR", "{memory_limit: 4g, check_timeout_seconds: 5}")
    executor = Settings.from_environment(host="localhost", token=None).executor
    assert (executor.memory_limit, executor.check_timeout_seconds) == ("4g", 5)
    assert executor.discover_timeout_seconds == 600
