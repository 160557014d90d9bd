"""Configs that connectors renew: stored at once, given next time, masked everywhere."""

import json
import multiprocessing
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_dagster.config.masking import MASK, Masker
from atlas_dagster.config.renewable_config import FileConfigStore, RenewableConfig
from atlas_dagster.errors import BrokenError, ConnectorFailedError
from atlas_dagster.listener import SILENT
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source.connector import Connector
from atlas_dagster_tests.listening import CallbackListener
from atlas_dagster_tests.sync.fake_source import line

SCHEMA = {
    "properties": {
        "start": {"type": "string"},
        "credentials": {
            "oneOf": [
                {"properties": {"refresh_token": {"type": "string", "airbyte_secret": True}}},
                {"properties": {"api_key": {"type": "string", "airbyte_secret": True}}},
            ]
        },
    }
}
DECLARED = {"start": "2020-01-01", "credentials": {"refresh_token": "declared-token"}}


def control(config: dict[str, Any]) -> bytes:
    return line(
        "CONTROL",
        control={
            "type": "CONNECTOR_CONFIG",
            "emitted_at": 1,
            "connectorConfig": {"config": config},
        },
    )


def log_line(text: str) -> bytes:
    return line("LOG", log={"level": "INFO", "message": text})


PASSED = line("CONNECTION_STATUS", connectionStatus={"status": "SUCCEEDED"})
RENEWED = {"start": "2020-01-01", "credentials": {"refresh_token": "second-token"}}


class Called:
    """A connector called with the config that is declared and kept."""

    def __init__(self, folder: Path, *output: bytes | int, declared: Any = DECLARED) -> None:
        self.said: list[str] = []
        self.log: list[str] = []
        self.runner = FakeRunner(lambda _: output)
        masker = Masker(["declared-token"])
        config = RenewableConfig(
            declared,
            schema=SCHEMA,
            masker=masker,
            connection="shop",
            store=FileConfigStore(folder),
            listener=CallbackListener(self.said.append),
        )
        self.connector = Connector(
            self.runner,
            name="source-x",
            listener=CallbackListener(connector=lambda _, text: self.log.append(text)),
            masker=masker,
            config=config,
        )

    def given(self, command: int) -> Any:
        return json.loads(self.runner.commands[command].files["config"])


def test_the_next_call_is_given_what_the_connector_renewed(tmp_path: Path) -> None:
    first = Called(tmp_path, control(RENEWED), PASSED)
    first.connector.check()
    first.connector.check()
    assert first.given(0) == DECLARED
    assert first.given(1) == RENEWED
    later = Called(tmp_path, PASSED)
    later.connector.check()
    assert later.given(0) == RENEWED
    [said] = first.said
    assert "credentials.refresh_token" in said
    assert str(tmp_path) in said


def test_it_is_stored_before_anything_else_is_read(tmp_path: Path) -> None:
    stored: list[bytes | None] = []

    def output(_: ConnectorCommand) -> Iterator[bytes | int]:
        yield control(RENEWED)
        stored.append(FileConfigStore(tmp_path).load("shop", DECLARED))
        yield 1

    called = Called(tmp_path)
    called.runner.script = output
    with pytest.raises(ConnectorFailedError):
        called.connector.check()
    assert stored[0] is not None
    assert b"second-token" in stored[0]
    assert (
        Called(tmp_path, PASSED).connector.command("read").files["config"]
        == json.dumps(RENEWED, separators=(",", ":")).encode()
    )


def test_a_renewed_secret_is_masked_at_once(tmp_path: Path) -> None:
    undeclared = RENEWED | {"session": {"access_token": "third-token"}, "start": "2021-05-05"}
    text = "second-token and third-token since 2021-05-05"
    called = Called(tmp_path, control(undeclared), log_line(text), PASSED)
    called.connector.check()
    assert called.log == [f"{MASK} and {MASK} since 2021-05-05"]
    again = Called(tmp_path, log_line(text), PASSED)
    again.connector.check()
    assert again.log == [f"{MASK} and {MASK} since 2021-05-05"]


def test_an_edit_of_the_declaration_wins(tmp_path: Path) -> None:
    Called(tmp_path, control(RENEWED), PASSED).connector.check()
    edited = {"start": "2020-01-01", "credentials": {"refresh_token": "by hand"}}
    later = Called(tmp_path, PASSED, declared=edited)
    later.connector.check()
    assert later.given(0) == edited


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "renewals"
    Called(folder, control(RENEWED), PASSED).connector.check()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "shop.json").stat().st_mode) == 0o600
    assert b"declared-token" not in (folder / "shop.json").read_bytes()
    assert [path.name for path in folder.iterdir()] == ["shop.json"]


def test_a_config_that_did_not_change_is_not_stored(tmp_path: Path) -> None:
    called = Called(tmp_path, control(DECLARED), PASSED)
    called.connector.check()
    assert called.said == []
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileConfigStore, "save", full)
    with pytest.raises(BrokenError, match="could not be stored"):
        Called(tmp_path, control(RENEWED), PASSED).connector.check()


def test_a_stored_renewal_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "shop.json").write_text("{")
    with pytest.raises(BrokenError, match=r"'shop' .*read"):
        Called(tmp_path)


def _hold(folder: Path, unpublished: Any, release: Any) -> None:
    with FileConfigStore(folder).lock("shop", SILENT):
        unpublished.set()
        release.wait(30)


@pytest.mark.slow
def test_one_connection_is_used_by_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    unpublished, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, unpublished, release))
    other.start()
    try:
        assert unpublished.wait(30)
        said: list[str] = []

        def explain(text: str) -> None:
            said.append(text)
            release.set()

        with FileConfigStore(tmp_path).lock("another", CallbackListener(said.append)):
            assert said == []
        with FileConfigStore(tmp_path).lock("shop", CallbackListener(explain)):
            assert other.exitcode in (None, 0)
        assert [("'shop'" in each, "waiting" in each) for each in said] == [(True, True)]
    finally:
        release.set()
        other.join(30)


@pytest.mark.slow
def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    unpublished, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, unpublished, release))
    other.start()
    assert unpublished.wait(30)
    other.kill()
    other.join(30)
    said: list[str] = []
    with FileConfigStore(tmp_path).lock("shop", CallbackListener(said.append)):
        assert said == []


def test_a_source_must_not_renew_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_dagster.config.renewable_config._MOST_RENEWALS", 2)
    renewals = [control({"credentials": {"refresh_token": f"token-{n}"}}) for n in (1, 1, 1, 2)]
    Called(tmp_path, *renewals, PASSED).connector.check()
    third = control({"credentials": {"refresh_token": "token-3"}})
    with pytest.raises(BrokenError, match=r"'shop' .*2 times"):
        Called(tmp_path / "other", *renewals, third, PASSED).connector.check()
