"""Alembic's script, which runs on the connection of :mod:`atlas_dagster.projections.database`."""

import sqlalchemy as sa
from alembic import context

from atlas_dagster.projections.database import VERSION_TABLE
from atlas_dagster.projections.tables import SCHEMA, metadata

#: The number of an advisory lock for this schema.
_LOCK = 0x61746C6173


def migrate() -> None:
    connection: sa.Connection = context.config.attributes["connection"]
    schema = SCHEMA if connection.dialect.name == "postgresql" else None
    if schema is not None:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        version_table_schema=schema,
    )
    with context.begin_transaction():
        migration = context.get_context()
        if not migration.get_current_revision():
            # A new database: it needs no history.
            metadata.create_all(connection)
            migration.stamp(context.script, "head")
        context.run_migrations()


migrate()
