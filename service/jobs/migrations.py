"""The tables of the service's database, as a list of changes: each is made once, in order, in a transaction of its own.

What a release has shipped is never edited: a later one adds to the end of the list. The number of changes made stands in
SQLite's `user_version`.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from memory_store.errors import UsageError

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        number       INTEGER PRIMARY KEY AUTOINCREMENT,
        id           TEXT NOT NULL UNIQUE,
        tenant       TEXT NOT NULL,
        request_id   TEXT NOT NULL,
        digest       TEXT NOT NULL,
        name         TEXT NOT NULL,
        priority     INTEGER NOT NULL,
        demand       TEXT NOT NULL,
        state        TEXT NOT NULL,
        reason       TEXT NOT NULL,
        wanted       TEXT NOT NULL,
        attempt      INTEGER NOT NULL,
        submitted_at REAL NOT NULL,
        changed_at   REAL NOT NULL,
        started_at   REAL,
        ended_at     REAL,
        UNIQUE (tenant, request_id)
    ) STRICT;
    CREATE INDEX jobs_of_tenant ON jobs (tenant, number);
    CREATE INDEX jobs_in_state ON jobs (state, number);
    CREATE INDEX jobs_of_tenant_in_state ON jobs (tenant, state, number);
    CREATE INDEX jobs_of_tenant_named ON jobs (tenant, name, number);
    CREATE INDEX jobs_in_line ON jobs (priority DESC, number) WHERE state = 'queued';

    -- Apart from jobs, whose rows stay small: lists of jobs read many of them.
    CREATE TABLE specs (
        job  INTEGER PRIMARY KEY REFERENCES jobs (number),
        spec TEXT NOT NULL
    ) STRICT;

    CREATE TABLE changes (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        job    INTEGER NOT NULL REFERENCES jobs (number),
        time   REAL NOT NULL,
        state  TEXT NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    CREATE INDEX changes_of_job ON changes (job, number);
    """,
)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the database up to date. Raises UsageError if a newer release has made it."""
    (made,) = connection.execute("PRAGMA user_version").fetchone()
    if made > len(MIGRATIONS):
        raise UsageError(
            f"{path} was made by a newer pkm (its version is {made}, this one knows {len(MIGRATIONS)}); "
            "run that pkm, or give another folder."
        )
    for version, statements in enumerate(MIGRATIONS[made:], start=made + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {statements} PRAGMA user_version = {version}; COMMIT;")
