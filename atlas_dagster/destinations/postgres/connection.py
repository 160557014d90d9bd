"""A connection to Postgres: statements, batches by binary COPY, errors in one sentence.

The driver is ADBC: it hands Arrow batches to the server as they are, without a Python object per
value. All staged rows live in temporary tables of this one connection, so whatever becomes of this
process, the server itself cleans up after it.
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

#: Nothing may cut a long merge or a silent source short; a table someone else holds, however,
#: is not waited for endlessly.
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
#: Values a column cannot hold; nesting deeper, or text longer, than the server takes.
_REFUSED = ("22", "54")
#: The server's own words, behind the statement that the driver repeats.
_SAID = re.compile(r"(?:ERROR|FATAL|PANIC): +([^\n]+)")
_LOGIN = re.compile(r"password|role \"|pg_hba|authentication")


class ValueRefusedError(DestinationError):
    """A value is not what its column can hold."""


class Database:
    """One Postgres database; connected to when it is first needed, used by one thread.

    Every method raises:
        ConfigError: the address, the login or the rights are not enough.
        TransientError: the server cannot be reached, or was lost.
        DestinationError: the server refused a statement.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: dbapi.Connection | None = None
        self.uri = without_login(address)

    def run(self, sql: str, *parameters: Any) -> int:
        """Execute a statement; the number of rows it changed, where it has no parameters."""
        with self._cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return int(cursor.rowcount)

    def table(self, sql: str, *parameters: Any) -> pa.Table:
        with self._cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return cursor.fetch_arrow_table()

    def batches(self, sql: str) -> pa.RecordBatchReader:
        """Rows as they come, over a connection of the reader's own, which ends with it."""
        other = Database(self._address)
        other._connection = other._connect()
        cursor = other._connection.cursor()
        try:
            cursor.execute(sql)
            reader = cursor.fetch_record_batch()
        except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
            other.close()
            raise _explained(error, self.uri) from None

        def ending() -> Iterator[pa.RecordBatch]:
            try:
                yield from reader
            except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
                raise _explained(error, self.uri) from None
            finally:
                reader.close()
                cursor.close()
                other.close()

        return pa.RecordBatchReader.from_batches(reader.schema, ending())

    def rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.table(sql, *parameters).to_pylist()
        return found

    def copy(self, batch: pa.RecordBatch, table: str) -> None:
        """Add ``batch`` to the temporary table ``table``, all or nothing."""
        with self._cursor() as cursor:
            cursor.adbc_ingest(table, batch, mode="append", temporary=True)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it, or nothing."""
        self.run("BEGIN")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            # A lost connection has rolled back by itself.
            with contextlib.suppress(AtlasError):
                self.run("ROLLBACK")
            raise

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Part of a transaction that may fail alone."""
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
                # Results as rows: fetching them by COPY would refuse INSERT … RETURNING and hide
                # how many rows a statement changed.
                cursor.adbc_statement.set_options(**{StatementOptions.USE_COPY.value: "false"})
                yield cursor
        except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
            # The driver's message repeats the statement, so it is no cause to show.
            raise _explained(error, self.uri) from None

    def _connect(self) -> dbapi.Connection:
        separator = "&" if "?" in self._address else "?"
        patience = f"{separator}connect_timeout={_CONNECT_SECONDS}"
        address = self._address + ("" if "connect_timeout" in self._address else patience)
        try:
            connection = dbapi.connect(address, autocommit=True)
        except adbc_driver_manager.Error as error:
            raise _unconnected(str(error), self.uri) from None
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
                f"The database {self.uri} is encoded in {', '.join(encodings)}, which cannot hold "
                "every text; create one with ENCODING 'UTF8'."
            )
        return connection


def without_login(address: str) -> str:
    """``postgresql://host:port/database``: what may be shown of an address."""
    scheme, _, rest = address.partition("://")
    # Behind the last @, because an unescaped password may hold one, too.
    place = urlsplit(f"{scheme}://{rest.rpartition('@')[2]}")
    return f"postgresql://{place.netloc}{place.path}".rstrip("/")


def _unconnected(said: str, where: str) -> AtlasError:
    """Why there is no connection. Of the driver's words only what can hold no secret."""
    told = said.partition("failed: ")[2].partition("\n")[0].removeprefix("FATAL:").strip()
    if _LOGIN.search(told):
        return ConfigError(
            f"{where} refused the login ({told}); mend user and password in the destination's "
            "address, or the variables it names."
        )
    if "does not exist" in told:
        return ConfigError(f"{where}: {told}; create it, or mend the destination's address.")
    if told or "translate host name" in said:
        reason = told or "its host name is not known"
        return TransientError(f"{where} cannot be reached ({reason}); once it is, sync again.")
    return ConfigError(
        f"The address of {where} cannot be read; write postgresql://user:password@host:port/"
        "database, with other characters than letters and digits percent-encoded."
    )


def _explained(error: Exception, where: str) -> AtlasError:
    # Arrow raises its own errors, without a code, where a result breaks off.
    state = getattr(error, "sqlstate", None) or ""
    found = _SAID.findall(str(error))
    said = (found[-1] if found else str(error).rpartition("': ")[2].partition("\n")[0]).strip()
    if not state or state.startswith(_TRANSIENT):
        return TransientError(
            f"{where} broke off ({said}); sync again: what is committed stays, the rest is read "
            "again."
        )
    if state == "42501":
        return ConfigError(
            f"{where}: {said}; grant it to the user of the destination's address. Atlas needs to "
            "create schemas, tables and temporary tables."
        )
    if state == "53100":
        return DestinationError(
            f"{where} has no space left ({said}); free some, then sync again: what is committed "
            "stays, the rest is read again."
        )
    if said.startswith("row is too big"):
        return DestinationError(
            f"{where} has no room for a row ({said} bytes): one of many columns must fit into a "
            "page; leave the stream out, or send this connection to a lake, whose rows have no "
            "such limit."
        )
    kind = ValueRefusedError if state.startswith(_REFUSED) else DestinationError
    return kind(f"{where} refused a statement ({said}, SQLSTATE {state}).")
