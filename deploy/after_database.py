"""Waits until Dagster's database takes connections, then becomes the command that it was given."""

import json
import os
import sys
import time
from datetime import UTC, datetime

import psycopg2


def trouble() -> str | None:
    """Why there is no connection; None where there is one."""
    try:
        psycopg2.connect(
            host=os.environ["ATLAS_PG_HOST"],
            user=os.environ["ATLAS_PG_USER"],
            password=os.environ["ATLAS_PG_PASSWORD"],
            dbname=os.environ["ATLAS_PG_DB"],
            connect_timeout=5,
        ).close()
    except psycopg2.OperationalError as error:
        return " ".join(str(error).split())
    return None


said = None
while problem := trouble():
    if problem != said:
        event = f"Waiting for the database: {problem}"
        now = datetime.now(UTC).isoformat()
        print(json.dumps({"event": event, "level": "warning", "timestamp": now}), flush=True)
        said = problem
    time.sleep(1)
os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606
