"""A connection to Postgres: statements, batches by binary COPY, and errors.

The driver is ADBC. It sends Arrow batches to the server without a Python object per value. All
staged rows are in temporary tables of this connection, so the server removes them when the process
ends, however it ends.
"""

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import adbc_driver_manager
import pyarrow as pa
from adbc_driver_postgresql import StatementOptions, dbapi

from atlas_dagster.errors import AtlasError, ConfigError, DestinationError, TransientError

#: No timeout may end a long merge or a pause of the source; only the wait for a lock is limited.
_SETTINGS = {
    "application_name": "atlas",
    "client_encoding": "UTF8",
    "TimeZone": "UTC",
    "statement_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": "60s",
}
_CONNECT_SECONDS = 15
_TRANSIENT = ("08", "40", "53300", "55P03", "57P")
#: SQLSTATE classes of a refused value: not valid for its column, nested too deeply, or too long.
_REFUSED = ("22", "54")
#: The server's message, which follows the statement in the driver's message.
_SERVER_MESSAGE = re.compile(r"(?:ERROR|FATAL|PANIC): +([^\n]+)")
_LOGIN = re.compile(r"password|role \"|pg_hba|authentication")


class ValueRefusedError(DestinationError):
    """A column cannot hold a value."""


class Database:
    """One Postgres database; it connects at its first use. Use it from one thread only.

    Every method raises:
        ConfigError: the address is wrong, the login fails, or a privilege is missing.
        TransientError: the server cannot be reached, or the connection broke.
        DestinationError: the server refused a statement.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: dbapi.Connection | None = None
        self.uri = without_login(address)

    def run(self, sql: str, *parameters: Any) -> int:
        """Execute a statement; return the number of changed rows if it has no parameters."""
        with self._cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return int(cursor.rowcount)

    def table(self, sql: str, *parameters: Any) -> pa.Table:
        with self._cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return cursor.fetch_arrow_table()

    def batches(self, sql: str) -> pa.RecordBatchReader:
        """Stream the rows of a query over a connection of its own, closed with the reader."""
        other = Database(self._address)
        other._connection = other._connect()
        cursor = other._connection.cursor()
        try:
            cursor.execute(sql)
            reader = cursor.fetch_record_batch()
        except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
            other.close()
            raise _to_atlas_error(error, self.uri) from None

        def stream() -> Iterator[pa.RecordBatch]:
            try:
                yield from reader
            except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
                raise _to_atlas_error(error, self.uri) from None
            finally:
                reader.close()
                cursor.close()
                other.close()

        return pa.RecordBatchReader.from_batches(reader.schema, stream())

    def rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.table(sql, *parameters).to_pylist()
        return found

    def copy(self, batch: pa.RecordBatch, table: str) -> None:
        """Add ``batch`` to the temporary table ``table`` atomically."""
        with self._cursor() as cursor:
            cursor.adbc_ingest(table, batch, mode="append", temporary=True)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block as one transaction; an error rolls it back."""
        self.run("BEGIN")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            # If the connection broke, the server has rolled back already.
            with contextlib.suppress(AtlasError):
                self.run("ROLLBACK")
            raise

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Run a part of a transaction; an :class:`AtlasError` rolls back this part only."""
        self.run("SAVEPOINT atlas")
        try:
            yield
        except AtlasError:
            self.run("ROLLBACK TO SAVEPOINT atlas")
            raise
        self.run("RELEASE SAVEPOINT atlas")

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(adbc_driver_manager.Error):
                connection.close()

    @contextmanager
    def _cursor(self) -> Iterator[dbapi.Cursor]:
        if self._connection is None:
            self._connection = self._connect()
        try:
            with self._connection.cursor() as cursor:
                # Fetching results by COPY does not allow INSERT … RETURNING, and hides the number
                # of changed rows.
                cursor.adbc_statement.set_options(**{StatementOptions.USE_COPY.value: "false"})
                yield cursor
        except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
            # Not chained: the driver's message repeats the statement.
            raise _to_atlas_error(error, self.uri) from None

    def _connect(self) -> dbapi.Connection:
        separator = "&" if "?" in self._address else "?"
        timeout = f"{separator}connect_timeout={_CONNECT_SECONDS}"
        address = self._address + ("" if "connect_timeout" in self._address else timeout)
        try:
            connection = dbapi.connect(address, autocommit=True)
        except adbc_driver_manager.Error as error:
            raise _connection_error(str(error), self.uri) from None
        wanted = ", ".join(f"('{name}', '{value}')" for name, value in _SETTINGS.items())
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config(s.name, w.value, false), current_setting('server_encoding')"
                " FROM pg_settings AS s JOIN "
                f"(VALUES {wanted}) AS w (name, value) ON s.name = w.name"
            )
            encodings = {row[1] for row in cursor.fetchall()}
        if encodings != {"UTF8"}:
            connection.close()
            raise ConfigError(
                f"The database {self.uri} has the encoding {', '.join(encodings)}, which cannot "
                "hold every text; create one with ENCODING 'UTF8'."
            )
        return connection


def without_login(address: str) -> str:
    """Return an address without user and password: ``postgresql://host:port/database``."""
    scheme, _, rest = address.partition("://")
    # The host follows the last @; an unescaped password may contain others.
    place = urlsplit(f"{scheme}://{rest.rpartition('@')[2]}")
    return f"postgresql://{place.netloc}{place.path}".rstrip("/")


def _connection_error(message: str, where: str) -> AtlasError:
    """Explain why connecting failed; use only the part of ``message`` that has no secret."""
    reason = message.partition("failed: ")[2].partition("\n")[0].removeprefix("FATAL:").strip()
    if _LOGIN.search(reason):
        return ConfigError(
            f"{where} refused the login ({reason}); correct user and password in the "
            "destination's address, or the variables it names."
        )
    if "does not exist" in reason:
        return ConfigError(f"{where}: {reason}; create it, or correct the destination's address.")
    if reason or "translate host name" in message:
        reason = reason or "its host name is not known"
        return TransientError(f"{where} cannot be reached ({reason}); sync again once it can.")
    return ConfigError(
        f"The address of {where} is not valid; write postgresql://user:password@host:port/"
        "database, and percent-encode all characters except letters and digits."
    )


def _to_atlas_error(error: Exception, where: str) -> AtlasError:
    # If a result breaks off, Arrow raises its own errors, without an SQLSTATE.
    state = getattr(error, "sqlstate", None) or ""
    found = _SERVER_MESSAGE.findall(str(error))
    reason = (found[-1] if found else str(error).rpartition("': ")[2].partition("\n")[0]).strip()
    if not state or state.startswith(_TRANSIENT):
        return TransientError(
            f"The connection to {where} broke off ({reason}); sync again: committed rows stay, "
            "the rest is read again."
        )
    if state == "42501":
        return ConfigError(
            f"{where}: {reason}; grant it to the user of the destination's address. Atlas needs "
            "to create schemas, tables and temporary tables."
        )
    if state == "53100":
        return DestinationError(
            f"{where} has no space left ({reason}); free some, then sync again: committed rows "
            "stay, the rest is read again."
        )
    if reason.startswith("row is too big"):
        return DestinationError(
            f"{where} cannot store a row ({reason} bytes): with many columns, a row must fit into "
            "a page; leave the stream out, or send this connection to a lake, whose rows have no "
            "such limit."
        )
    kind = ValueRefusedError if state.startswith(_REFUSED) else DestinationError
    return kind(f"{where} refused a statement ({reason}, SQLSTATE {state}).")
