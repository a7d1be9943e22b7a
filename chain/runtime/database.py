"""Opening a SQLite file that belongs to one part, has one version, and loses nothing that was committed.

Every store says what it is (`kind`) and in which version; another kind, a newer or an older version is refused by
name instead of being read on trust.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from chain.base.errors import Refused, Unavailable

_IDENTITY = "CREATE TABLE identity (kind TEXT NOT NULL, version INTEGER NOT NULL) STRICT"


def open_database(path: Path, *, kind: str, version: int, schema: str) -> sqlite3.Connection:
    """Open or create the database at `path` in autocommit mode, write-ahead log, `synchronous=FULL`.

    Raises `Refused` under `store.kind` or `store.version`, `Unavailable` under `store.open` where the file can't be
    opened or is no database.
    """
    with contextlib.ExitStack() as undo:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            undo.callback(connection.close)
            connection.execute("PRAGMA busy_timeout=5000")
            _check_identity(connection, path, kind, version)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.executescript(schema)
        except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
            raise Unavailable(f"cannot open the database {path}: {error}", rule="store.open") from error
        undo.pop_all()
    return connection


def _check_identity(connection: sqlite3.Connection, path: Path, kind: str, version: int) -> None:
    """Claims an empty file for `kind`, and leaves one that is somebody else's as it is."""
    connection.execute("BEGIN IMMEDIATE")
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not tables:
        connection.execute(_IDENTITY)
        connection.execute("INSERT INTO identity VALUES (?, ?)", (kind, version))
    elif "identity" not in tables:
        raise Refused(f"{path} is a database, but no store of kind {kind!r}", rule="store.kind")
    row = connection.execute("SELECT kind, version FROM identity").fetchone()
    connection.execute("COMMIT")
    if row == (kind, version):
        return
    if row is None or row[0] != kind:
        raise Refused(f"{path} is a store of kind {row and row[0]!r}, not {kind!r}", rule="store.kind")
    age = "newer" if row[1] > version else "older"
    raise Refused(
        f"{path} is a {kind} store of version {row[1]}, {age} than {version}, the one this release reads",
        rule="store.version",
    )
