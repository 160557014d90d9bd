"""Config renewals in Dagster's database: encrypted, under one lock, on SQLite and on Postgres."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dagster as dg
import pytest
import sqlalchemy
from cryptography.fernet import Fernet

from atlas_dagster.config.masking import Masker
from atlas_dagster.config.renewable_config import FileConfigStore, RenewableConfig
from atlas_dagster.config.renewal import DeclarationHash, Renewal
from atlas_dagster.errors import ConfigError, TransientError
from atlas_dagster.listener import SILENT
from atlas_dagster.orchestration.operations.config_store import (
    DatabaseConfigStore,
    open_config_store,
)
from atlas_dagster_tests.listening import CallbackListener
from atlas_dagster_tests.orchestration.instances import open_instance, sqlite_instance

pytestmark = [pytest.mark.slow, pytest.mark.dagster]

KEY = Fernet.generate_key().decode()
ANOTHER_KEY = Fernet.generate_key().decode()
DECLARED = {"start": "2020-01-01", "credentials": {"refresh_token": "declared-token"}}
RENEWED = {"start": "2020-01-01", "credentials": {"refresh_token": "second-token"}}
RENEWAL = Renewal.diff(DECLARED, RENEWED)
ORIGIN = DeclarationHash.of(RENEWAL, DECLARED)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def instance(request: pytest.FixtureRequest) -> Iterator[dg.DagsterInstance]:
    with open_instance(request.param, request) as instance:
        yield instance


def test_without_a_key_renewals_are_files_beside_dagsters_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ATLAS_SECRET_KEY", raising=False)
    with sqlite_instance() as instance:
        store = open_config_store(instance)
        assert isinstance(store, FileConfigStore)
        store.save("shop", b"token", ORIGIN)
        assert (Path(instance.root_directory) / "renewals" / "shop.json").read_bytes() == b"token"


def test_with_a_key_they_are_in_the_database_encrypted(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    store = open_config_store(instance)
    assert isinstance(store, DatabaseConfigStore)
    assert store.load("shop", DECLARED) is None
    store.save("shop", b"first token", ORIGIN)
    store.save("shop", b"second token", ORIGIN)
    assert open_config_store(instance).load("shop", DECLARED) == b"second token"
    assert store.load("other", DECLARED) is None
    [stored] = instance.run_storage.get_cursor_values({"atlas/renewal/shop"}).values()
    encrypted, _, origin = stored.partition(" ")
    assert Fernet(KEY).decrypt(encrypted) == b"second token"
    assert DeclarationHash.decode(origin) == ORIGIN
    assert not re.search("declared-token|second", stored)


def test_what_files_hold_counts_until_something_is_saved_under_the_key(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATLAS_SECRET_KEY", raising=False)
    open_config_store(instance).save("shop", b"single-use token", ORIGIN)
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    assert open_config_store(instance).load("shop", DECLARED) == b"single-use token"
    open_config_store(instance).save("shop", b"the next one", ORIGIN)
    assert open_config_store(instance).load("shop", DECLARED) == b"the next one"


def test_a_key_without_a_database_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    remote = SimpleNamespace(root_directory=str(tmp_path), run_storage=object())
    with pytest.raises(ConfigError, match="unset ATLAS_SECRET_KEY"):
        open_config_store(cast(dg.DagsterInstance, remote))


def test_a_database_that_fails_is_said_in_a_sentence(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    store = open_config_store(instance)
    with instance.run_storage.connect() as database:  # type: ignore[attr-defined]
        database.execute(sqlalchemy.text("ALTER TABLE kvs RENAME TO gone"))
        database.commit()
    with pytest.raises(TransientError, match="database"):
        store.load("shop", DECLARED)
    with pytest.raises(OSError, match="database"):
        store.save("shop", b"token", ORIGIN)


def test_a_database_that_is_gone_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        store = open_config_store(instance)
        monkeypatch.setattr(
            instance.run_storage, "_conn_string", f"sqlite:///{tmp_path}/missing/runs.db"
        )
        with (
            pytest.raises(TransientError, match=r"lock .*'shop'"),
            store.lock("shop", SILENT),
        ):
            pass


def test_another_key_is_refused_with_a_sentence(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    open_config_store(instance).save("shop", b"token", ORIGIN)
    monkeypatch.setenv("ATLAS_SECRET_KEY", ANOTHER_KEY)
    with pytest.raises(ConfigError, match=r"'shop'.* key"):
        open_config_store(instance).load("shop", DECLARED)


@pytest.mark.parametrize(
    "keys", ["hello", f"{KEY},hello", f"{KEY},"], ids=["word", "key and word", "empty key"]
)
def test_what_is_no_key_is_refused_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", keys)
    with (
        sqlite_instance() as instance,
        pytest.raises(ConfigError, match=r"^ATLAS_SECRET_KEY "),
    ):
        open_config_store(instance)


def test_the_first_of_several_keys_encrypts_and_each_decrypts(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    open_config_store(instance).save("shop", b"first token", ORIGIN)
    monkeypatch.setenv("ATLAS_SECRET_KEY", f"{ANOTHER_KEY}, {KEY}")
    assert open_config_store(instance).load("shop", DECLARED) == b"first token"
    open_config_store(instance).save("shop", b"second token", ORIGIN)
    monkeypatch.setenv("ATLAS_SECRET_KEY", ANOTHER_KEY)
    assert open_config_store(instance).load("shop", DECLARED) == b"second token"
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    with pytest.raises(ConfigError, match="ATLAS_SECRET_KEY"):
        open_config_store(instance).load("shop", DECLARED)


def test_without_its_key_a_renewal_is_forgotten_once_what_it_replaced_has_changed(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(declared: Mapping[str, Any]) -> RenewableConfig:
        return RenewableConfig(
            declared,
            schema={},
            masker=Masker([]),
            connection="shop",
            store=open_config_store(instance),
            listener=SILENT,
        )

    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    config(DECLARED).renew(RENEWED)
    assert config(DECLARED).value == RENEWED
    monkeypatch.setenv("ATLAS_SECRET_KEY", ANOTHER_KEY)
    with pytest.raises(ConfigError, match="credentials"):
        config({**DECLARED, "start": "2025-01-01"})

    entered = {**DECLARED, "credentials": {"refresh_token": "by hand"}}
    assert config(entered).value == entered

    # Nothing is lost until the connector renews what was entered.
    monkeypatch.setenv("ATLAS_SECRET_KEY", f"{ANOTHER_KEY},{KEY}")
    assert config(DECLARED).value == RENEWED
    monkeypatch.setenv("ATLAS_SECRET_KEY", ANOTHER_KEY)
    config(entered).renew(RENEWED)
    assert config(entered).value == RENEWED


def test_what_was_stored_before_origins_were_is_read(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Fernet(KEY).encrypt(b"token").decode()
    instance.run_storage.set_cursor_values({"atlas/renewal/shop": stored})
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)
    assert open_config_store(instance).load("shop", {}) == b"token"
    monkeypatch.setenv("ATLAS_SECRET_KEY", ANOTHER_KEY)
    with pytest.raises(ConfigError, match="add that key again"):
        open_config_store(instance).load("shop", {})


def test_one_connection_is_used_by_one_at_a_time(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SECRET_KEY", KEY)

    class Waits(Exception):
        pass

    def refuse_to_wait(_: str) -> None:
        raise Waits

    with (
        open_config_store(instance).lock("shop", CallbackListener(refuse_to_wait)),
        open_config_store(instance).lock("other", CallbackListener(refuse_to_wait)),
        pytest.raises(Waits),
        open_config_store(instance).lock("shop", CallbackListener(refuse_to_wait)),
    ):
        pass
    with open_config_store(instance).lock("shop", CallbackListener(refuse_to_wait)):
        pass
