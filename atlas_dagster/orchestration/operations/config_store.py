"""Where a connection's config renewals are kept: a file, or Dagster's database, encrypted."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy.exc import SQLAlchemyError

from atlas_dagster.config.live_config import ConfigStore, FileConfigStore, wait_for
from atlas_dagster.config.renewal import DeclarationHash
from atlas_dagster.errors import ConfigError, TransientError
from atlas_dagster.listener import Listener
from atlas_dagster.orchestration.dagster_database import try_lock
from atlas_dagster.orchestration.dagster_internals import sql_run_storage

if TYPE_CHECKING:
    from atlas_dagster.orchestration.dagster_internals import SqlRunStorage

KEY_VARIABLE = "ATLAS_SECRET_KEY"
_FOLDER = "renewals"


def config_store(instance: dg.DagsterInstance) -> ConfigStore:
    """The database where ATLAS_SECRET_KEY gives a key for it, else files beside Dagster's own.

    Of several keys, with commas between them, the first encrypts and each may decrypt.

    Raises:
        ConfigError: a key is none, or there is no database to use it for.
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
            f"{KEY_VARIABLE} is no key, nor several with commas between them; make one with: "
            "python -c 'from cryptography.fernet import Fernet; "
            "print(Fernet.generate_key().decode())'"
        ) from error
    return DatabaseConfigStore(storage, cipher, files)


class DatabaseConfigStore(ConfigStore):
    """Dagster's key-value table, so that every machine of a deployment sees the renewals.

    Read besides are the files of the time before there was a key: their single-use tokens count
    until newer ones are saved.
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
        held = ExitStack()
        try:
            with _explained(f"lock connection '{connection}'"):
                database = held.enter_context(self._storage.connect())
                if database.dialect.name == "postgresql":
                    # Held by this database session, which ends with our process.
                    acquire = partial(try_lock, database, f"atlas:{connection}")
                    held.enter_context(wait_for(connection, acquire, listener))
                else:
                    held.close()
                    held.enter_context(self._files.lock(connection, listener))
            yield
        finally:
            # A session that is lost by now has let go already.
            with suppress(SQLAlchemyError):
                held.close()

    def load(self, connection: str, declared: Mapping[str, Any]) -> bytes | None:
        key = _key(connection)
        with _explained(f"read the renewed config of connection '{connection}'"):
            found = self._storage.get_cursor_values({key}).get(key)
        if not found:
            return self._files.load(connection, declared)
        encrypted, _, origin = found.partition(" ")
        try:
            return self._cipher.decrypt(encrypted)
        except InvalidToken as error:
            if origin and not DeclarationHash.decode(origin).is_in(declared):
                return None  # the user has entered something else since
            raise ConfigError(
                f"The renewed config of connection '{connection}' was stored under a key that is "
                f"not in {KEY_VARIABLE}; put that key back, behind the new one and a comma, or, "
                "where it is lost, enter new credentials of the source."
            ) from error

    def save(self, connection: str, content: bytes, origin: DeclarationHash) -> None:
        encrypted = self._cipher.encrypt(content).decode()
        kept = f"{encrypted} {origin.encode().decode()}"
        try:
            with _explained(f"save the renewed config of connection '{connection}'"):
                self._storage.set_cursor_values({_key(connection): kept})
        except TransientError as error:
            raise OSError(str(error)) from error


@contextmanager
def _explained(purpose: str) -> Iterator[None]:
    """Raises TransientError where the database cannot be used."""
    try:
        yield
    except Exception as error:
        # dagster-postgres wraps a failed connection in an exception of its own.
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
        if not isinstance(cause, SQLAlchemyError):
            raise
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        raise TransientError(
            f"Dagster's database could not be used to {purpose} ({reason}); see that it runs and "
            "can be reached."
        ) from error


def _key(connection: str) -> str:
    return f"atlas/renewal/{connection}"
