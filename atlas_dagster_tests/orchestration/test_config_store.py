"""Config renewals in Dagster's database: encrypted, under one lock, on SQLite and on Postgres."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from cryptography.fernet import Fernet
from postgres_instance import postgres_instance

from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.config_store import DatabaseConfigStore, config_store
from atlas_dagster.sync.live_config import FileConfigStore

KEY = Fernet.generate_key().decode()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def instance(request: pytest.FixtureRequest) -> Iterator[dg.DagsterInstance]:
    if request.param == "postgres":
        with postgres_instance(request.getfixturevalue("postgres_url")) as instance:
            yield instance
    else:
        with dg.instance_for_test() as instance:
            yield instance


def test_without_a_key_renewals_are_files_beside_dagsters_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ATLAS_SECRET_KEY", raising=False)
    with dg.instance_for_test() as instance:
        store = config_store(instance)
        assert isinstance(store, FileConfigStore)
        store.save("shop", b"token")
        assert (Path(instance.root_directory) / "renewals" / "shop.json").read_bytes() == b"token"


def test_with_a_key_they_are_in_the_database_encrypted(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    store = config_store(instance)
    assert isinstance(store, DatabaseConfigStore)
    assert store.load("shop") is None
    store.save("shop", b"first token")
    store.save("shop", b"second token")
    assert config_store(instance).load("shop") == b"second token"
    assert store.load("other") is None
    [stored] = instance.run_storage.get_cursor_values({"atlas/renewal/shop"}).values()
    assert "token" not in stored
    assert Fernet(KEY).decrypt(stored) == b"second token"


def test_another_key_is_refused_with_a_sentence(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    config_store(instance).save("shop", b"token")
    monkeypatch.setenv("ATLAS_SECRET_KEY", Fernet.generate_key().decode())
    with pytest.raises(ConfigError, match="'shop' was stored under another key"):
        config_store(instance).load("shop")
    monkeypatch.setenv("ATLAS_SECRET_KEY", "hello")
    with pytest.raises(ConfigError, match="ATLAS_SECRET_KEY is no key; make one with"):
        config_store(instance)


def test_one_connection_is_used_by_one_at_a_time(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)

    class Waits(Exception):
        pass

    def refuse_to_wait(_: str) -> None:
        raise Waits

    with (
        config_store(instance).lock("shop", refuse_to_wait),
        config_store(instance).lock("other", refuse_to_wait),
        pytest.raises(Waits),
        config_store(instance).lock("shop", refuse_to_wait),
    ):
        pass
    with config_store(instance).lock("shop", refuse_to_wait):
        pass
