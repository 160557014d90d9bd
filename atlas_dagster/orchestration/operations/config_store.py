"""The store of renewed configs: files, or Dagster's database, encrypted."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy.exc import SQLAlchemyError

from atlas_dagster.config.renewable_config import ConfigStore, FileConfigStore, wait_for
from atlas_dagster.config.renewal import DeclarationHash
from atlas_dagster.errors import ConfigError, TransientError
from atlas_dagster.listener import Listener
from atlas_dagster.orchestration.dagster_database import try_lock
from atlas_dagster.orchestration.dagster_internals import sql_run_storage

if TYPE_CHECKING:
    from atlas_dagster.orchestration.dagster_internals import SqlRunStorage

KEY_VARIABLE = "ATLAS_SECRET_KEY"
_FOLDER = "renewals"


def open_config_store(instance: dg.DagsterInstance) -> ConfigStore:
    """Return the database store if ATLAS_SECRET_KEY is set, else files beside Dagster's own.

    Of several keys, separated by commas, the first encrypts and all decrypt.

    Raises:
        ConfigError: a key is not valid, or Dagster uses no SQL database.
    """
    files = FileConfigStore(Path(instance.root_directory).absolute() / _FOLDER)
    keys = os.environ.get(KEY_VARIABLE)
    if not keys:
        return files
    storage = sql_run_storage(instance)
    if storage is None:
        raise ConfigError(
            f"{KEY_VARIABLE} is set, but Dagster's run storage is not an SQL database "
            f"({type(instance.run_storage).__name__}), so it cannot keep renewed configs; use "
            f"SQLite or Postgres, or unset {KEY_VARIABLE} to keep them in files."
        )
    try:
        cipher = MultiFernet([Fernet(key.strip()) for key in keys.split(",")])
    except ValueError as error:
        raise ConfigError(
            f"{KEY_VARIABLE} is not a valid key, or keys separated by commas; make one with: "
            "python -c 'from cryptography.fernet import Fernet; "
            "print(Fernet.generate_key().decode())'"
        ) from error
    return DatabaseConfigStore(storage, cipher, files)


class DatabaseConfigStore(ConfigStore):
    """Renewals in Dagster's key-value table, for all machines of a deployment.

    Files that were written before there was a key are read, too, until a newer renewal is saved.
    """

    where = "encrypted in Dagster's database"

    def __init__(
        self, storage: "SqlRunStorage", cipher: MultiFernet, files: FileConfigStore
    ) -> None:
        self._storage = storage
        self._cipher = cipher
        self._files = files

    @contextmanager
    def lock(self, connection: str, listener: Listener) -> Iterator[None]:
        resources = ExitStack()
        try:
            with _transient_errors(f"lock connection '{connection}'"):
                database = resources.enter_context(self._storage.connect())
                if database.dialect.name == "postgresql":
                    # The lock belongs to this database session, which ends with our process.
                    acquire = partial(try_lock, database, f"atlas:{connection}")
                    resources.enter_context(wait_for(connection, acquire, listener))
                else:
                    resources.close()
                    resources.enter_context(self._files.lock(connection, listener))
            yield
        finally:
            # A lost session has released the lock already.
            with suppress(SQLAlchemyError):
                resources.close()

    def load(self, connection: str, declared: Mapping[str, Any]) -> bytes | None:
        key = _key(connection)
        with _transient_errors(f"read the renewed config of connection '{connection}'"):
            found = self._storage.get_cursor_values({key}).get(key)
        if not found:
            return self._files.load(connection, declared)
        encrypted, _, origin = found.partition(" ")
        try:
            return self._cipher.decrypt(encrypted)
        except InvalidToken as error:
            if origin and not DeclarationHash.decode(origin).is_in(declared):
                return None  # the declaration has changed, so the renewal is obsolete
            raise ConfigError(
                f"The renewed config of connection '{connection}' was stored under a key that is "
                f"not in {KEY_VARIABLE}; add that key again, after the new one and a comma. If it "
                "is lost, enter new credentials of the source."
            ) from error

    def save(self, connection: str, content: bytes, origin: DeclarationHash) -> None:
        encrypted = self._cipher.encrypt(content).decode()
        kept = f"{encrypted} {origin.encode().decode()}"
        try:
            with _transient_errors(f"save the renewed config of connection '{connection}'"):
                self._storage.set_cursor_values({_key(connection): kept})
        except TransientError as error:
            raise OSError(str(error)) from error


@contextmanager
def _transient_errors(purpose: str) -> Iterator[None]:
    """Turn a database error of the block into a TransientError."""
    try:
        yield
    except Exception as error:
        # dagster-postgres wraps a failed connection in an exception of its own.
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
        if not isinstance(cause, SQLAlchemyError):
            raise
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        raise TransientError(
            f"Dagster's database could not be used to {purpose} ({reason}); check that it runs and "
            "can be reached."
        ) from error


def _key(connection: str) -> str:
    return f"atlas/renewal/{connection}"
