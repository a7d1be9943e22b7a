"""Opening a SQLite file that belongs to one part, has one version, and loses nothing that was committed.

Every store says what it is (`kind`) and in which version; another kind, a newer or an older version is refused by
name instead of being read on trust.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from chain.base.errors import Refused, Unavailable

_IDENTITY = "CREATE TABLE IF NOT EXISTS identity (kind TEXT NOT NULL, version INTEGER NOT NULL) STRICT"


def open_database(path: Path, *, kind: str, version: int, schema: str) -> sqlite3.Connection:
    """Open or create the database at `path` in autocommit mode, write-ahead log, `synchronous=FULL`.

    Raises `Refused` under `store.kind` or `store.version`, `Unavailable` under `store.open` where the file can't be
    opened or is no database.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA busy_timeout=5000")
        _check_identity(connection, path, kind, version)
        connection.executescript(schema)
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(f"cannot open the database {path}: {error}", rule="store.open") from error
    return connection


def _check_identity(connection: sqlite3.Connection, path: Path, kind: str, version: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(_IDENTITY)
    row = connection.execute("SELECT kind, version FROM identity").fetchone()
    if row is None:
        connection.execute("INSERT INTO identity VALUES (?, ?)", (kind, version))
    connection.execute("COMMIT")
    if row is None or row == (kind, version):
        return
    connection.close()
    if row[0] != kind:
        raise Refused(f"{path} is a store of kind {row[0]!r}, not {kind!r}", rule="store.kind")
    age = "newer" if row[1] > version else "older"
    raise Refused(
        f"{path} is a {kind} store of version {row[1]}, {age} than {version}, the one this release reads",
        rule="store.version",
    )
