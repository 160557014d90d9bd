"""Config renewals in Dagster's database: encrypted, under one lock, on SQLite and on Postgres."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import dagster as dg
import pytest
import sqlalchemy
from cryptography.fernet import Fernet
from postgres_instance import postgres_instance

from atlas_dagster.errors import ConfigError, TransientError
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


def test_what_files_hold_counts_until_something_is_saved_under_the_key(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATLAS_SECRET_KEY", raising=False)
    config_store(instance).save("shop", b"single-use token")
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    assert config_store(instance).load("shop") == b"single-use token"
    config_store(instance).save("shop", b"the next one")
    assert config_store(instance).load("shop") == b"the next one"


def test_a_key_without_a_database_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    remote = SimpleNamespace(root_directory=str(tmp_path), run_storage=object())
    with pytest.raises(ConfigError, match="unset ATLAS_SECRET_KEY to keep them in files"):
        config_store(cast(dg.DagsterInstance, remote))


def test_a_database_that_fails_is_said_in_a_sentence(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    store = config_store(instance)
    with instance.run_storage.connect() as database:  # type: ignore[attr-defined]
        database.execute(sqlalchemy.text("ALTER TABLE kvs RENAME TO gone"))
        database.commit()
    with pytest.raises(TransientError, match=r"^Dagster's database could not be used to read the"):
        store.load("shop")
    with pytest.raises(OSError, match=r"^Dagster's database could not be used to save the renewed"):
        store.save("shop", b"token")


def test_a_database_that_is_gone_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        store = config_store(instance)
        monkeypatch.setattr(
            instance.run_storage, "_conn_string", f"sqlite:///{tmp_path}/missing/runs.db"
        )
        with (
            pytest.raises(TransientError, match="could not be used to lock connection 'shop'"),
            store.lock("shop", lambda _: None),
        ):
            pass


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
