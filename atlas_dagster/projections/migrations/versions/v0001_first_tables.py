"""The first tables.

In a new database, ``env.py`` creates the newest tables at once and skips all revisions. Later
revisions change the tables of the revision before.
"""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Do nothing, because no database is older than this revision."""
