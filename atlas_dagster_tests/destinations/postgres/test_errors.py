"""What a user reads when Postgres says no: one sentence, never a secret."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import adbc_driver_manager
import pytest
from adbc_driver_postgresql import dbapi

from atlas_dagster.destinations.postgres import connection as postgres_connection
from atlas_dagster.destinations.postgres.connection import without_login
from atlas_dagster.destinations.postgres.destination import PostgresDestination
from atlas_dagster.errors import AtlasError, ConfigError, DestinationError, TransientError
from atlas_dagster_tests.destinations.stores import Database, spec

pytestmark = pytest.mark.postgres

SECRET = "hunter22"


def failure(address: str) -> AtlasError:
    with closing(PostgresDestination(address)) as destination, pytest.raises(AtlasError) as caught:
        destination.inspect(("c", "t")).open(spec())
    told = str(caught.value)
    assert SECRET not in repr(caught.value)
    assert "\n" not in told
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


@contextmanager
def role(database: Database, name: str) -> Iterator[str]:
    """A user with no rights, and its address."""
    database.do(f"CREATE ROLE {name} LOGIN PASSWORD '{SECRET}'")
    try:
        yield database.address.replace("atlas:atlas@", f"{name}:{SECRET}@")
    finally:
        database.do(f"DROP OWNED BY {name} CASCADE")
        database.do(f"DROP ROLE {name}")


def test_no_server(database: Database) -> None:
    error = failure(f"postgresql://atlas:{SECRET}@127.0.0.1:1/postgres")
    assert isinstance(error, TransientError)
    assert "postgresql://127.0.0.1:1/postgres cannot be reached (Connection refused)" in str(error)


def test_no_such_host() -> None:
    error = failure(f"postgresql://atlas:{SECRET}@no-such-host.invalid/postgres")
    assert isinstance(error, TransientError)
    assert "its host name is not known" in str(error)


def test_no_such_database(database: Database) -> None:
    error = failure(database.address.replace("/postgres", "/nothing").replace("atlas@", "x@"))
    assert isinstance(error, ConfigError)
    assert 'database "nothing" does not exist; create it' in str(error)


def test_a_wrong_password(database: Database) -> None:
    (row,) = database.ask("SELECT current_setting('hba_file') AS hba_file")
    rules = Path(row["hba_file"])
    before = rules.read_text()
    with role(database, "locked") as address:
        rules.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{before}")
        database.do("SELECT pg_reload_conf()")
        try:
            error = failure(address.replace(SECRET, f"not{SECRET}"))
        finally:
            rules.write_text(before)
            database.do("SELECT pg_reload_conf()")
    assert isinstance(error, ConfigError)
    assert 'refused the login (password authentication failed for user "locked")' in str(error)


def test_no_right_to_create_a_schema(database: Database) -> None:
    with role(database, "poor") as address:
        error = failure(address)
    assert isinstance(error, ConfigError)
    assert "permission denied for database postgres; grant it" in str(error)


def test_a_schema_that_was_made_for_it_is_enough(database: Database) -> None:
    with role(database, "tenant") as address:
        database.do("CREATE SCHEMA c AUTHORIZATION tenant")
        with closing(PostgresDestination(address)) as destination:
            database.destination, ours = destination, database.destination
            database.sync(spec(), [{"id": 1}])
            database.destination = ours
    assert database.ask("SELECT 1 FROM pg_roles WHERE rolname = 'tenant'") == []


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://atlas:{SECRET} {SECRET}@127.0.0.1/postgres",
        f"postgresql://atlas:{SECRET}@127.0.0.1:port/postgres",
        f"postgresql://atlas:{SECRET}@127.0.0.1/postgres?unknown={SECRET}",
        f"postgresql://atlas:%zz{SECRET}@127.0.0.1/postgres",
        f"postgresql://atlas:a@{SECRET}@127.0.0.1:1/postgres",
    ],
)
def test_an_address_that_cannot_be_read(address: str) -> None:
    error = failure(address)
    assert "127.0.0.1" in str(error)


def test_what_is_shown_of_an_address() -> None:
    for login in ("", "user@", f"user:{SECRET}@", f"user:a@{SECRET}@", f"user:/{SECRET}?#@"):
        shown = without_login(f"postgres://{login}db:5433/shop?sslmode=require&password={SECRET}")
        assert shown == "postgresql://db:5433/shop"


def test_a_database_that_cannot_hold_every_text(database: Database) -> None:
    database.do("DROP DATABASE IF EXISTS latin")
    database.do(
        "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    error = failure(database.address.replace("/postgres", "/latin"))
    assert isinstance(error, ConfigError)
    assert "/latin has the encoding LATIN1" in str(error)


def test_a_table_that_someone_else_holds(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres_connection._SETTINGS, "lock_timeout", "50ms")
    database.sync(spec(), [{"id": 1}])
    with closing(dbapi.connect(database.address)) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE c.t")
        with pytest.raises(TransientError, match="canceling statement due to lock timeout"):
            database.sync(spec(), [{"id": 2}])
    assert database.rows("id") == [(1,)]


def test_a_full_disk() -> None:
    error = adbc_driver_manager.OperationalError(
        f"IO: [libpq] Failed to execute query 'INSERT {SECRET}': ERROR:  could not extend file: "
        "No space left on device\nHINT:  Check free disk space.\n. SQLSTATE: 53100",
        status_code=adbc_driver_manager.AdbcStatusCode.IO,
        sqlstate="53100",
    )
    told = postgres_connection._to_atlas_error(error, "postgresql://db/shop")
    assert isinstance(told, DestinationError)
    assert "postgresql://db/shop has no space left" in str(told)
    assert "(could not extend file: No space left on device)" in str(told)
