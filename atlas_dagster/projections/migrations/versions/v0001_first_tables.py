"""The first tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

_MOMENT = sa.DateTime(timezone=True)
_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    schema = "pipeline" if op.get_bind().dialect.name == "postgresql" else None
    op.create_table(
        "airbyte_catalogs",
        sa.Column("connection", sa.Text, primary_key=True),
        sa.Column("stream_namespace", sa.Text, primary_key=True),
        sa.Column("stream_name", sa.Text, primary_key=True),
        sa.Column("table_path", sa.Text, nullable=False),
        sa.Column("json_schema", _JSON, nullable=False),
        sa.Column("primary_key", _JSON, nullable=False),
        sa.Column("cursor_field", _JSON, nullable=False),
        sa.Column("supported_sync_modes", _JSON, nullable=False),
        sa.Column("connector", sa.Text, nullable=False),
        sa.Column("discovered_at", _MOMENT, nullable=False),
        schema=schema,
    )
    op.create_table(
        "airbyte_state",
        sa.Column("connection", sa.Text, primary_key=True),
        sa.Column("stream_namespace", sa.Text, primary_key=True),
        sa.Column("stream_name", sa.Text, primary_key=True),
        sa.Column("state", _JSON),
        sa.Column("state_type", sa.Text, nullable=False),
        sa.Column("generation_id", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("committed_at", _MOMENT, nullable=False),
        schema=schema,
    )
    op.create_table(
        "airbyte_sync_stats",
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
        schema=schema,
    )
    op.create_index("airbyte_sync_stats_by_run", "airbyte_sync_stats", ["run_id"], schema=schema)
    op.create_index(
        "airbyte_sync_stats_by_connection",
        "airbyte_sync_stats",
        ["connection", "finished_at"],
        schema=schema,
    )
    op.create_table(
        "airbyte_connector_registry",
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
        schema=schema,
    )
