"""The store of blobs by itself: rows and files look alike, and many small ones are one commit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.service.blobs import BlobStore
from broker.service.smallblobs import MAX_SMALL_BYTES
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import compute_digest

SMALL, EDGE, LARGE = b"small", b"e" * MAX_SMALL_BYTES, b"L" * (MAX_SMALL_BYTES + 1)


def make_store(folder: Path, max_bytes: int = 1 << 20) -> BlobStore:
    store = BlobStore(folder, max_bytes)
    store.prepare()
    return store


def name(*blobs: bytes) -> dict[bytes, bytes]:
    return {compute_digest(blob): blob for blob in blobs}


async def test_rows_and_files_answer_alike(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    await store.write_many(name(SMALL, EDGE, LARGE, b""))
    for blob in (SMALL, EDGE, LARGE, b""):
        digest = compute_digest(blob)
        assert store.has(digest)
        assert store.measure(digest) == len(blob)
        found = store.get(digest)
        assert (found.read_bytes() if isinstance(found, Path) else found) == blob
        assert store.get_path(digest).exists() == (blob is LARGE)
    absent = compute_digest(b"absent")
    assert (store.has(absent), store.measure(absent), store.get(absent)) == (False, None, None)
    store.remove([*name(SMALL, LARGE), absent])
    assert [store.has(compute_digest(blob)) for blob in (SMALL, EDGE, LARGE)] == [False, True, False]
    store.close()
    assert make_store(tmp_path).get(compute_digest(EDGE)) == EDGE


async def test_small_ones_are_read_in_order_up_to_a_limit(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    blobs = [b"%d" % number * 10 for number in range(5)]
    await store.write_many(name(*blobs, LARGE))
    asked = [compute_digest(blob) for blob in (b"absent", LARGE, *blobs[::-1])]
    assert store.read_small(asked, 1_000) == blobs[::-1]
    assert store.read_small(asked, 29) == blobs[:2:-1]
    assert store.read_small(asked, 30) == blobs[:1:-1]
    assert store.read_small([], 30) == []


async def test_many_small_ones_are_one_commit(tmp_path: Path) -> None:
    store, commits = make_store(tmp_path), list[str]()
    store._rows._writer.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
    await store.write_many(name(*(b"%d" % number for number in range(300))))
    assert len(commits) == 1
    assert store._rows._writer.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_of_blobs_one_of_which_is_wrong_none_is_stored(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_bytes=len(LARGE))
    for wrong, rule in ((bytes(32), "blob.digest"), (compute_digest(LARGE + b"x"), "blob.size")):
        with pytest.raises(Refused) as refused:
            await store.write_many(name(SMALL, LARGE) | {wrong: LARGE + b"x" if rule == "blob.size" else b"x"})
        assert refused.value.rule == rule
        assert not store.has(compute_digest(SMALL))
        assert not store.has(compute_digest(LARGE))


async def test_a_disk_that_does_not_write_is_said_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    store._rows._writer.execute("PRAGMA query_only=1")
    with pytest.raises(Unavailable) as full:
        await store.write(compute_digest(SMALL), SMALL)
    assert full.value.rule == "blob.write"

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "arrived"
    path.write_bytes(LARGE)
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(Unavailable) as full:
        store.adopt(path, compute_digest(LARGE), len(LARGE))
    assert full.value.rule == "blob.write"
    assert not store.has(compute_digest(LARGE))


def test_the_client_loads_no_network_code_before_its_first_call() -> None:
    """Importing `requester` is to be quick; aiohttp and the parser of signatures would be most of it."""
    heavy = ("aiohttp", "http_message_signatures")
    program = f"import sys, broker.rpc.client; print([one for one in {heavy} if one in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
