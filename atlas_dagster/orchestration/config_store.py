"""Where a connection's config renewals are kept: a file, or Dagster's database, encrypted."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import sqlalchemy
from cryptography.fernet import Fernet, InvalidToken
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

from atlas_dagster.errors import ConfigError
from atlas_dagster.sync.live_config import ConfigStore, FileConfigStore, wait_for

KEY_VARIABLE = "ATLAS_SECRET_KEY"
_FOLDER = "renewals"


def config_store(instance: dg.DagsterInstance) -> ConfigStore:
    """The database where ATLAS_SECRET_KEY gives a key for it, else files beside Dagster's own.

    Raises:
        ConfigError: the key is none.
    """
    files = FileConfigStore(Path(instance.root_directory).absolute() / _FOLDER)
    key = os.environ.get(KEY_VARIABLE)
    storage = instance.run_storage
    if not key or not isinstance(storage, SqlRunStorage):
        return files
    try:
        cipher = Fernet(key)
    except ValueError as error:
        raise ConfigError(
            f"{KEY_VARIABLE} is no key; make one with: python -c 'from cryptography.fernet import "
            "Fernet; print(Fernet.generate_key().decode())'"
        ) from error
    return DatabaseConfigStore(storage, cipher, files)


class DatabaseConfigStore(ConfigStore):
    """Dagster's key-value table, so that every machine of a deployment sees the renewals."""

    where = "encrypted in Dagster's database"

    def __init__(self, storage: SqlRunStorage, cipher: Fernet, files: FileConfigStore) -> None:
        self._storage = storage
        self._cipher = cipher
        self._files = files

    @contextmanager
    def lock(self, connection: str, explain: Callable[[str], None]) -> Iterator[None]:
        with self._storage.connect() as database:
            if database.dialect.name == "postgresql":
                # Held by this database session, which ends with our process.
                statement = sqlalchemy.text("SELECT pg_try_advisory_lock(hashtextextended(:n, 0))")
                bound = statement.bindparams(n=f"atlas:{connection}")
                with wait_for(connection, lambda: bool(database.scalar(bound)), explain):
                    yield
                return
        with self._files.lock(connection, explain):
            yield

    def load(self, connection: str) -> bytes | None:
        key = _key(connection)
        found = self._storage.get_cursor_values({key}).get(key)
        try:
            return None if not found else self._cipher.decrypt(found)
        except InvalidToken as error:
            raise ConfigError(
                f"The renewed config of connection '{connection}' was stored under another key; "
                f"set {KEY_VARIABLE} to the key of that time."
            ) from error

    def save(self, connection: str, content: bytes) -> None:
        encrypted = self._cipher.encrypt(content).decode()
        self._storage.set_cursor_values({_key(connection): encrypted})


def _key(connection: str) -> str:
    return f"atlas/renewal/{connection}"
