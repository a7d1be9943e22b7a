"""A lease's folder: blobs whole or absent, small ones by one write, a log that goes on and ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.hashing import compute_digest
from provider.daemon.folder import CUT, LeaseFolder
from provider.work.papers import EMPTY


def open_again(path: Path) -> LeaseFolder:
    """The folder as a later life of the daemon finds it."""
    return LeaseFolder(path)


def test_small_blobs_lie_in_one_file_and_outlive_the_daemon(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path / "lease")
    blobs = [b"one", b"two", b"one", b""]
    digests = folder.put_many(blobs)
    assert digests == [compute_digest(blob) for blob in blobs]
    assert [path.name for path in (tmp_path / "lease").iterdir()] == ["pack"]
    for one in (folder, open_again(tmp_path / "lease")):
        assert [one.get(digest) for digest in digests] == blobs
        assert [one.measure(digest) for digest in digests] == [3, 3, 3, 0]
        assert one.is_packed(digests[0]) and one.get(bytes(32)) is None and one.measure(bytes(32)) is None
    size = (tmp_path / "lease" / "pack").stat().st_size
    folder.put(b"two")
    assert (tmp_path / "lease" / "pack").stat().st_size == size, "what is here is not written twice"


@given(cut=st.integers(0, 200))
def test_a_pack_that_was_cut_off_loses_what_came_last_and_is_written_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("folder")
    blobs = [bytes([n]) * n for n in range(1, 6)]
    LeaseFolder(path).put_many(blobs)
    whole = (path / "pack").stat().st_size
    os.truncate(path / "pack", min(cut, whole))
    folder = open_again(path)
    left = [blob for blob in blobs if folder.get(compute_digest(blob)) == blob]
    assert left == blobs[: len(left)] and (len(left) == 5) == (cut >= whole)
    folder.put_many([b"new", *blobs])
    assert all(open_again(path).get(compute_digest(blob)) == blob for blob in [b"new", *blobs])


def test_a_blob_that_rotted_is_not_here(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path)
    digest = folder.put(b"data")
    rotten = (tmp_path / "pack").read_bytes().replace(b"data", b"dat?")
    (tmp_path / "pack").write_bytes(rotten)
    assert folder.get(digest) is None and folder.lay_out(digest) is None


def test_a_disk_that_takes_no_more_leaves_no_blob_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = LeaseFolder(tmp_path)
    folder.put(b"first")

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(OSError, match="No space"):
        folder.put(b"second")
    monkeypatch.undo()
    assert folder.get(compute_digest(b"second")) is None
    assert folder.get(folder.put(b"second")) == b"second"


def test_large_blobs_are_files_that_are_only_renamed(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path)
    folder.spool.mkdir(parents=True)
    (folder.spool / "3.output").write_bytes(b"large")
    digest = compute_digest(b"large")
    inode = (folder.spool / "3.output").stat().st_ino
    folder.adopt(folder.spool / "3.output", digest)
    assert folder.get_path(digest).stat().st_ino == inode
    assert folder.measure(digest) == 5 and folder.has_file(digest) and not folder.is_packed(digest)
    again = open_again(tmp_path)
    assert again.lay_out(digest) == again.get_path(digest) and again.get(digest) == b"large"
    folder.get_path(digest).write_bytes(b"Large")
    assert not open_again(tmp_path).has_file(digest) and open_again(tmp_path).lay_out(digest) is None
    folder.clear_spool()
    assert not folder.spool.exists()


def test_a_small_blob_can_be_laid_out_as_a_file(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path)
    path = folder.lay_out(folder.put(b"state"))
    assert path is not None and path.read_bytes() == b"state"
    empty = folder.lay_out(EMPTY)
    assert empty is not None and empty.read_bytes() == b""
    assert folder.lay_out(bytes(32)) is None


def test_a_log_goes_on_where_it_was_kept(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path)
    folder.begin_log(fresh=True, limit=1 << 20)
    folder.add_log(b"one\n")
    folder.keep_log()
    folder.add_log(b"lost")
    again = open_again(tmp_path)
    again.begin_log(fresh=False, limit=1 << 20)
    assert again.log_size == 4
    again.add_log(b"two\n")
    digest = again.close_log()
    assert digest == compute_digest(b"one\ntwo\n") and again.get(digest) == b"one\ntwo\n"
    assert again.close_log() == digest and again.is_packed(digest), "a short one travels with the small blobs"
    again.add_log(bytes(100_000))
    long = again.close_log()
    assert not again.is_packed(long) and again.get(long) == b"one\ntwo\n" + bytes(100_000)
    again.begin_log(fresh=True, limit=1 << 20)
    assert again.log_size == 0 and again.close_log() == EMPTY


def test_a_log_without_end_is_cut_and_says_so(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path)
    folder.begin_log(fresh=True, limit=10)
    assert folder.add_log(b"12345678") == b"12345678"
    assert folder.add_log(b"9abc") == b"9a" + CUT
    assert folder.add_log(b"more") == b""
    digest = folder.close_log()
    assert folder.get(digest) == b"123456789a" + CUT
    again = open_again(tmp_path)
    again.begin_log(fresh=False, limit=10)
    assert again.add_log(b"more") == b""


def test_nothing_is_left_of_a_folder_that_is_removed(tmp_path: Path) -> None:
    folder = LeaseFolder(tmp_path / "lease")
    digest = folder.put(b"data")
    folder.remove()
    folder.remove()
    assert not (tmp_path / "lease").exists() and folder.get(digest) is None
    folder.put(b"again")
    assert folder.get(compute_digest(b"again")) == b"again"
    folder.close()
    folder.close()
    assert folder.get(compute_digest(b"again")) == b"again", "opened again when needed"
