"""The requester's blobs: small ones in rows, large ones in files, and nothing that does not match its digest."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from chain.base.errors import Unavailable
from chain.base.hashing import compute_digest
from requester.store.blobs import SMALL_BYTES, BlobFolder

SMALL, LARGE = b"small", b"L" * (SMALL_BYTES + 1)
EDGE = b"e" * SMALL_BYTES


def spoil(folder: BlobFolder, digest: bytes, data: bytes) -> None:
    """Change what lies on the disk, wherever it is."""
    if folder.path(digest).exists():
        folder.path(digest).write_bytes(data)
        return
    folder.close()
    connection = sqlite3.connect(folder.folder / "small.db")
    connection.execute("UPDATE small_blobs SET data = ? WHERE digest = ?", (data, digest))
    connection.commit()
    connection.close()


@pytest.mark.parametrize("data", [SMALL, EDGE, LARGE], ids=["small", "edge", "large"])
def test_a_blob_that_does_not_match_its_name_is_absent(tmp_path: Path, data: bytes) -> None:
    folder = BlobFolder(tmp_path / "blobs")
    digest = folder.put(data)
    assert digest == compute_digest(data) == folder.put(data)
    assert folder.get(digest) == data
    assert bytes(folder.open(digest) or b"") == data
    spoil(folder, digest, b"!" + data[1:])
    assert folder.get(digest) is None
    assert folder.open(digest) is None
    assert folder.put(data) == digest
    assert folder.get(digest) == data


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path / "blobs")
    absent = compute_digest(b"absent")
    assert (folder.get(absent), folder.open(absent)) == (None, None)
    folder.path(absent).write_bytes(b"")
    assert (folder.get(absent), folder.open(absent)) == (None, None)
    assert folder.get(compute_digest(b"")) == b""
    assert folder.put(b"") == compute_digest(b"")


def test_small_ones_are_rows_and_large_ones_files_that_others_cannot_read(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path / "blobs")
    many = [b"%d" % number for number in range(500)]
    digests = folder.put_many([*many, LARGE, EDGE, many[0]])
    assert digests == tuple(map(compute_digest, [*many, LARGE, EDGE, many[0]]))
    files = [path for path in folder.folder.iterdir() if not path.name.startswith("small.db")]
    assert files == [folder.path(compute_digest(LARGE))]
    assert files[0].stat().st_mode & 0o777 == 0o600
    again = BlobFolder(tmp_path / "blobs")
    assert [again.get(digest) for digest in digests] == [*many, LARGE, EDGE, many[0]]


def test_a_large_blob_is_hashed_once_per_process_and_again_when_its_file_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = BlobFolder(tmp_path).put(LARGE)
    folder, real = BlobFolder(tmp_path), hashlib.file_digest
    hashed: list[str] = []

    def count(file: Any, name: str) -> Any:
        hashed.append(name)
        return real(file, name)

    monkeypatch.setattr("hashlib.file_digest", count)
    views = [folder.open(digest) for _ in range(3)]
    assert all(view is not None and bytes(view) == LARGE for view in views)
    assert folder.get(digest) == LARGE
    assert len(hashed) == 1
    stat = folder.path(digest).stat()
    os.utime(folder.path(digest), ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert folder.get(digest) == LARGE
    assert len(hashed) == 2
    folder.path(digest).write_bytes(LARGE[1:])
    assert folder.open(digest) is None


def test_a_view_of_a_large_blob_is_read_only_and_outlives_a_replacement(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path)
    digest = folder.put(LARGE)
    view = folder.open(digest)
    assert view is not None
    assert view.readonly
    other = tmp_path / "other"
    other.write_bytes(b"x" * len(LARGE))
    other.replace(folder.path(digest))
    assert view == LARGE
    assert folder.open(digest) is None


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_downloaded_file_is_taken_over(tmp_path: Path, data: bytes) -> None:
    folder, path = BlobFolder(tmp_path / "blobs"), tmp_path / "download"
    path.write_bytes(data)
    folder.adopt(path, compute_digest(data))
    assert not path.exists()
    assert folder.get(compute_digest(data)) == data
    with pytest.raises(Unavailable) as gone:
        folder.adopt(path, compute_digest(data))
    assert gone.value.rule == "file.write"


def test_a_file_of_rows_that_cannot_be_read_is_said_by_name(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path)
    (tmp_path / "small.db").write_bytes(b"no database" * 1000)
    with pytest.raises(Unavailable) as broken:
        folder.get(compute_digest(SMALL))
    assert broken.value.rule == "store.open"
