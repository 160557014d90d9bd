"""The first tables.

Only a database of before this revision gets here: a new one is given today's tables and the newest
revision at once, by ``env.py``. Later revisions change what the one before left.
"""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """There was no database before this revision."""
