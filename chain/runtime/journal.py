"""The journal of machines: what each was told and when, in order, on disk before anything follows from it."""

from __future__ import annotations

import sqlite3

SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (
    machine TEXT NOT NULL, sequence INTEGER NOT NULL, now INTEGER NOT NULL, event BLOB NOT NULL,
    PRIMARY KEY (machine, sequence)
) STRICT, WITHOUT ROWID
"""


class Journal:
    """Rows (machine, sequence, Instant, event bytes) in a database of its owner, who includes `SCHEMA` in that
    database's schema.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._next: dict[str, int] = {}

    def append(self, machine: str, now: int, event: bytes) -> None:
        """Add one row; it is durable on return."""
        sequence = self._next.get(machine)
        if sequence is None:
            row = self._connection.execute("SELECT max(sequence) FROM journal WHERE machine = ?", (machine,)).fetchone()
            sequence = 0 if row[0] is None else row[0] + 1
        self._connection.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", (machine, sequence, now, event))
        self._next[machine] = sequence + 1

    def load(self, machine: str) -> list[tuple[int, bytes]]:
        """All (Instant, event bytes) of a machine, oldest first."""
        query = "SELECT now, event FROM journal WHERE machine = ? ORDER BY sequence"
        return self._connection.execute(query, (machine,)).fetchall()

    def names(self) -> list[str]:
        """Machines that have rows."""
        return [row[0] for row in self._connection.execute("SELECT DISTINCT machine FROM journal ORDER BY machine")]

    def drop(self, machine: str) -> None:
        """Forget a machine that is over."""
        self._connection.execute("DELETE FROM journal WHERE machine = ?", (machine,))
        self._next.pop(machine, None)
