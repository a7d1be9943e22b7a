"""Journal, database and files: nothing is lost, nothing of somebody else's is touched, each refusal has a name."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chain.base.errors import Refused, TallyError, Unavailable
from chain.runtime.database import open_database
from chain.runtime.files import own_folder, write_atomically
from chain.runtime.journal import SCHEMA, Journal

ROOT = Path(__file__).resolve().parents[3]


def open_toy(path: Path, kind: str = "toy", version: int = 3) -> sqlite3.Connection:
    return open_database(path, kind=kind, version=version, schema=SCHEMA)


def find_rule(path: Path, kind: str = "toy", version: int = 3) -> str | None:
    try:
        open_toy(path, kind, version).close()
    except TallyError as error:
        return error.rule
    return None


# ---- journal ----


def test_rows_come_back_in_order_and_apart(tmp_path: Path) -> None:
    connection = open_toy(tmp_path / "a.db")
    journal = Journal(connection)
    for number in range(300):
        journal.append("one" if number % 3 else "two", number, bytes([number % 256]))
    assert journal.load("one") == [(number, bytes([number % 256])) for number in range(300) if number % 3]
    assert journal.load("two") == [(number, bytes([number % 256])) for number in range(0, 300, 3)]
    assert (journal.names(), journal.load("none")) == (["one", "two"], [])
    connection.close()


def test_a_journal_opened_again_goes_on_behind_its_last_row(tmp_path: Path) -> None:
    for round_ in range(3):
        connection = open_toy(tmp_path / "a.db")
        Journal(connection).append("one", round_, b"x")
        connection.close()
    connection = open_toy(tmp_path / "a.db")
    assert [now for now, _ in Journal(connection).load("one")] == [0, 1, 2]
    connection.close()


def test_a_dropped_machine_is_forgotten_and_its_neighbour_is_not(tmp_path: Path) -> None:
    connection = open_toy(tmp_path / "a.db")
    journal = Journal(connection)
    for name in ("one", "two"):
        journal.append(name, 1, b"x")
    journal.drop("one")
    assert journal.names() == list(journal._next) == ["two"]
    journal.append("one", 2, b"y")
    assert journal.load("one") == [(2, b"y")]
    connection.close()


def test_a_row_is_seen_by_another_connection_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    writer, reader = open_toy(tmp_path / "a.db"), open_toy(tmp_path / "a.db")
    Journal(writer).append("one", 1, b"x")
    assert Journal(reader).load("one") == [(1, b"x")]
    writer.close()
    reader.close()


# ---- database ----


def test_a_new_database_is_made_durable_and_private(tmp_path: Path) -> None:
    connection = open_toy(tmp_path / "deep" / "a.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA busy_timeout").fetchone() == (5_000,)
    assert connection.execute("SELECT * FROM identity").fetchall() == [("toy", 3)]
    assert not connection.in_transaction
    connection.close()
    if os.name == "posix":
        assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o700


REFUSALS = [("the same", "toy", 3, None), ("newer", "toy", 2, "store.version"), ("older", "toy", 4, "store.version"),
            ("another kind", "chain", 3, "store.kind"), ("kind before version", "chain", 9, "store.kind")]  # fmt: skip


@pytest.mark.parametrize(("kind", "version", "rule"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_another_kind_or_version_is_refused_by_name(tmp_path: Path, kind: str, version: int, rule: str | None) -> None:
    open_toy(tmp_path / "a.db").close()
    assert find_rule(tmp_path / "a.db", kind, version) == rule
    assert find_rule(tmp_path / "a.db") is None


@pytest.mark.parametrize(("version", "word"), [(2, "newer"), (4, "older")])
def test_the_message_says_which_is_newer(tmp_path: Path, version: int, word: str) -> None:
    open_toy(tmp_path / "a.db").close()
    with pytest.raises(Refused, match=word):
        open_toy(tmp_path / "a.db", version=version)


def test_a_database_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE photos (name TEXT)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    assert find_rule(path) == "store.kind"
    assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["theirs.db"]


def test_a_store_without_its_identity_is_refused(tmp_path: Path) -> None:
    connection = open_toy(tmp_path / "a.db")
    connection.execute("DELETE FROM identity")
    connection.close()
    assert find_rule(tmp_path / "a.db") == "store.kind"


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"not a database at all, but long enough to have a header" * 50)
    assert find_rule(path) == "store.open"
    assert find_rule(tmp_path) == "store.open"
    (tmp_path / "file").write_bytes(b"")
    assert find_rule(tmp_path / "file" / "a.db") == "store.open"


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    """What a crash right after creation leaves behind."""
    (tmp_path / "a.db").write_bytes(b"")
    assert find_rule(tmp_path / "a.db") is None
    assert find_rule(tmp_path / "a.db", "other") == "store.kind"


def test_a_schema_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as error:
        open_database(tmp_path / "a.db", kind="toy", version=1, schema="CREATE NONSENSE")
    assert error.value.rule == "store.open"


# ---- files ----


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"one", mode=0o600)
    write_atomically(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert [one.name for one in path.parent.iterdir()] == ["file"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_exists_is_kept_where_it_must_be_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"one", replace=False)
    with pytest.raises(Refused) as refused:
        write_atomically(path, b"two", replace=False)
    assert refused.value.rule == "file.exists"
    assert path.read_bytes() == b"one"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"one")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(Unavailable) as error:
        write_atomically(path, b"two")
    assert error.value.rule == "file.write"
    assert path.read_bytes() == b"one"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_the_bytes_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def watch(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def watched(*arguments: object) -> None:
            order.append(name)
            real(*arguments)

        return watched

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, watch(name, getattr(os, name)))
    write_atomically(tmp_path / "file", b"one")
    assert order[:2] == ["fsync", "replace"]
    if os.name == "posix":
        assert order == ["fsync", "replace", "fsync"]


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    with own_folder(folder):
        with pytest.raises(Unavailable) as error, own_folder(folder):
            pass
        assert error.value.rule == "folder.owned"
        with own_folder(tmp_path / "other"):
            pass
    with own_folder(folder):
        pass


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable) as error, own_folder(tmp_path / "file"):
        pass
    assert error.value.rule == "folder.open"


OWNER = """
import sys
from collections.abc import Callable
from pathlib import Path
from chain.runtime.files import own_folder
with own_folder(Path(sys.argv[1])):
    print("owned", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_kept_out_until_the_owner_is_gone_however_it_went(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().strip() == b"owned"
        with pytest.raises(Unavailable) as error, own_folder(tmp_path):
            pass
        assert error.value.rule == "folder.owned"
        owner.kill()
        owner.wait()
    with own_folder(tmp_path):
        pass
