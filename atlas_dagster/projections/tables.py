"""The SQL tables in their newest version; ``migrations`` upgrades older ones."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

#: The schema in Postgres. In SQLite, the tables have their own file.
SCHEMA = "pipeline"

metadata = sa.MetaData()


def _stream_columns() -> list[sa.Column[str]]:
    """Return the columns that identify a stream. A missing namespace is an empty text."""
    return [
        sa.Column("connection", sa.Text, primary_key=True),
        sa.Column("stream_namespace", sa.Text, primary_key=True),
        sa.Column("stream_name", sa.Text, primary_key=True),
    ]


_MOMENT = sa.DateTime(timezone=True)
#: Any JSON value; ``jsonb`` in Postgres.
_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

catalogs = sa.Table(
    "airbyte_catalogs",
    metadata,
    *_stream_columns(),
    sa.Column("table_path", sa.Text, nullable=False),
    sa.Column("json_schema", _JSON, nullable=False),
    sa.Column("primary_key", _JSON, nullable=False),
    sa.Column("cursor_field", _JSON, nullable=False),
    sa.Column("supported_sync_modes", _JSON, nullable=False),
    sa.Column("connector", sa.Text, nullable=False),
    sa.Column("discovered_at", _MOMENT, nullable=False),
)

state = sa.Table(
    "airbyte_state",
    metadata,
    *_stream_columns(),
    sa.Column("state", _JSON),
    sa.Column("state_type", sa.Text, nullable=False),
    sa.Column("generation_id", sa.BigInteger, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text),
    sa.Column("committed_at", _MOMENT, nullable=False),
)

sync_stats = sa.Table(
    "airbyte_sync_stats",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("connection", sa.Text, nullable=False),
    sa.Column("stream_namespace", sa.Text, nullable=False),
    sa.Column("stream_name", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("records", sa.BigInteger),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("seconds", sa.Float),
    sa.Column("checkpoints", sa.Integer),
    sa.Column("error", sa.Text),
    sa.Column("connector", sa.Text),
    sa.Column("finished_at", _MOMENT, nullable=False),
    sa.Index("airbyte_sync_stats_by_run", "run_id"),
    sa.Index("airbyte_sync_stats_by_connection", "connection", "finished_at"),
)

connector_registry = sa.Table(
    "airbyte_connector_registry",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("docker_image", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("category", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("language", sa.Text, nullable=False),
    sa.Column("support_level", sa.Text, nullable=False),
    sa.Column("pypi_package", sa.Text),
    sa.Column("docs_url", sa.Text, nullable=False),
    sa.Column("definition_id", sa.Text, nullable=False),
    sa.Column("listed_on", sa.Text, nullable=False),
)
