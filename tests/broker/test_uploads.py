"""Uploads in pieces: what is refused, what survives, and what knowing a digest is worth (threats.md rows 32, 36)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.protocol.api import MAX_PIECE_BYTES
from broker.service import uploads
from broker.service.smallblobs import MAX_SMALL_BYTES
from broker.service.uploads import LIFETIME, MAX_UPLOADS_EACH
from chain.base.hashing import compute_digest
from tests.broker.market import PATIENCE, eventually
from tests.broker.shelf import blob_path, open_shelf, send_half, upload_path
from tests.broker.world import PROVIDERS, REQUESTER, STRANGER

WHOLE = bytes(range(256)) * 1_000
HALF = len(WHOLE) // 2


def name(signer: bytes = REQUESTER.key, whole: bytes = WHOLE) -> str:
    """The file of an upload under way."""
    return f"{signer.hex()}-{compute_digest(whole).hex()}-{len(whole)}"


async def test_pieces_become_a_blob(tmp_path: Path) -> None:
    async with open_shelf(tmp_path) as shelf:
        assert await shelf.find(WHOLE) == (0, "?0")
        assert await shelf.put_piece(WHOLE, 0, 1_000) == (204, "")
        assert await shelf.find(WHOLE) == (1_000, "?0")
        assert await shelf.put_piece(WHOLE, 1_000, 1) == (204, "")
        assert (await shelf.call("GET", blob_path(WHOLE)))[:2] == (404, "blob.unknown")
        assert await shelf.put_piece(WHOLE, 1_001, len(WHOLE)) == (201, "")
        assert await shelf.find(WHOLE) == (len(WHOLE), "?1")
        assert (await shelf.call("GET", blob_path(WHOLE)))[3] == WHOLE
        assert shelf.list_files() == [compute_digest(WHOLE).hex()]
        assert shelf.custody.compute_held(REQUESTER.key) == len(WHOLE)
        assert not shelf.custody._coming
        assert shelf.custody._filling == 0


HOSTILE = [
    ("ahead of the end", {"offset": HALF + 1}, (409, "upload.offset")),
    ("over what is there", {"offset": HALF - 1}, (409, "upload.offset")),
    ("from the beginning", {"offset": 0}, (409, "upload.offset")),
    ("beyond the length", {"offset": HALF, "size": HALF + 1, "Upload_Length": str(len(WHOLE))}, (422, "upload.length")),
    ("with another length", {"offset": HALF, "Upload_Length": str(len(WHOLE) - 1)}, (422, "upload.length")),
    ("without an offset", {"offset": HALF, "Upload_Offset": ""}, (400, "http.form")),
    ("at a negative offset", {"offset": HALF, "Upload_Offset": "-1"}, (400, "http.form")),
    ("at a float", {"offset": HALF, "Upload_Offset": "1e3"}, (400, "http.form")),
    ("at a vast offset", {"offset": HALF, "Upload_Offset": "9" * 19}, (400, "http.form")),
    ("of a poor account", {"offset": HALF, "signer": PROVIDERS[0]}, (403, "blob.account")),
    ("of another account", {"offset": HALF, "signer": STRANGER}, (409, "upload.offset")),
]


@pytest.mark.parametrize(("change", "answer"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
async def test_a_piece_that_does_not_fit_is_refused_and_changes_nothing(
    tmp_path: Path, change: dict[str, str], answer: tuple[int, str]
) -> None:
    async with open_shelf(tmp_path) as shelf:
        assert await shelf.put_piece(WHOLE, 0, HALF) == (204, "")
        longer = WHOLE + b"more" if change.get("size") else WHOLE
        piece = {"offset": HALF, "size": HALF} | change
        path = upload_path(WHOLE)
        body = longer[int(piece["offset"]) : int(piece["offset"]) + int(piece["size"])]
        fields = {"Upload_Offset": str(piece["offset"])}
        fields |= {key: value for key, value in change.items() if key.startswith("Upload")}
        got = await shelf.call("PATCH", path, body, change.get("signer", REQUESTER), **fields)  # type: ignore[arg-type]  # rows of several kinds
        assert got[:2] == answer
        if answer[1] == "upload.offset" and "signer" not in change:
            assert got[2]["Upload-Offset"] == str(HALF)
        assert await shelf.find(WHOLE) == (HALF, "?0")
        assert shelf.list_files() == [name()]
        assert await shelf.put_piece(WHOLE, HALF, HALF) == (201, "")


async def test_a_piece_is_taken_as_it_was_signed_or_not_at_all(tmp_path: Path) -> None:
    """The offset and the length are signed with the bytes: who changes one on the way is found out."""
    async with open_shelf(tmp_path) as shelf:
        path, half = upload_path(WHOLE), WHOLE[:HALF]
        fields = {"Upload_Offset": "0", "Upload_Length": str(len(WHOLE))}
        good = shelf.sign(REQUESTER, "PATCH", path, half, **fields)
        for field, value in (("Upload-Offset", "1"), ("Upload-Length", "9")):
            bad = shelf.sign(REQUESTER, "PATCH", path, half, **fields)
            bad[field] = value
            assert (await shelf.send("PATCH", path, bad, half))[:2] == (401, "http.signature")
        late = shelf.sign(REQUESTER, "PATCH", path, half, Upload_Offset="0")
        late["Upload-Length"] = str(len(WHOLE))
        assert (await shelf.send("PATCH", path, late, half))[:2] == (401, "http.signature")
        assert (await shelf.send("PATCH", path, {"Upload-Offset": "0"}, half))[:2] == (401, "http.signature")
        assert (await shelf.send("PATCH", path, good, b"x" * HALF))[:2] == (401, "http.digest")
        assert shelf.list_files() == []
        assert await shelf.put_piece(WHOLE, 0, HALF) == (204, "")
        rest = shelf.sign(REQUESTER, "PATCH", path, WHOLE[HALF:], Upload_Offset=str(HALF))
        assert (await shelf.send("PATCH", path, rest, b"x" * HALF))[:2] == (401, "http.digest")
        assert await shelf.find(WHOLE) == (HALF, "?0")
        assert (tmp_path / "blobs" / "uploads" / name()).stat().st_size == HALF
        assert (await shelf.send("PATCH", path, rest, WHOLE[HALF:]))[:2] == (401, "http.replay")


async def test_bytes_of_another_digest_are_refused_at_the_end_and_removed(tmp_path: Path) -> None:
    async with open_shelf(tmp_path) as shelf:
        other = b"x" + WHOLE[1:]
        path = upload_path(WHOLE)
        got = await shelf.call("PATCH", path, other[:HALF], Upload_Offset="0", Upload_Length=str(len(WHOLE)))
        assert got[0] == 204
        got = await shelf.call("PATCH", path, other[HALF:], Upload_Offset=str(HALF))
        assert got[:2] == (422, "blob.digest")
        assert shelf.list_files() == []
        assert (shelf.custody._filling, len(shelf.custody._coming)) == (0, 0)
        assert await shelf.find(WHOLE) == (0, "?0")


async def test_lengths_and_pieces_have_bounds(tmp_path: Path) -> None:
    async with open_shelf(tmp_path, max_bytes=len(WHOLE)) as shelf:
        path = upload_path(WHOLE)
        got = await shelf.call("PATCH", path, WHOLE, Upload_Offset="0", Upload_Length=str(len(WHOLE) + 1))
        assert got[:2] == (413, "blob.size")
        got = await shelf.call("PATCH", path, WHOLE, Upload_Offset="0")
        assert got[:2] == (422, "upload.length")
        large = bytes(MAX_PIECE_BYTES + 1)
        got = await shelf.call("PATCH", path, large, Upload_Offset="0", Upload_Length=str(len(WHOLE)))
        assert got[:2] == (413, "blob.size")

        async def trickle() -> AsyncIterator[bytes]:
            yield WHOLE

        headers = shelf.sign(REQUESTER, "PATCH", path, WHOLE, Upload_Offset="0", Upload_Length=str(len(WHOLE)))
        assert (await shelf.send("PATCH", path, headers, trickle()))[:2] == (400, "http.form")
        assert shelf.list_files() == []
        assert not shelf.custody._coming


async def test_the_whole_length_counts_from_the_first_piece(tmp_path: Path) -> None:
    """And only what lies on the disk counts against the store, so that announcing shuts nobody out."""
    async with open_shelf(tmp_path, quota=len(WHOLE) * 3 // 2, capacity=len(WHOLE) * 2) as shelf:
        other = WHOLE[::-1]
        assert await shelf.put_piece(WHOLE, 0, 10) == (204, "")
        assert await shelf.put_piece(other, 0, 10) == (429, "blob.quota")
        assert await shelf.put_piece(WHOLE, 10, 10) == (204, "")
        assert await shelf.put_piece(other, 0, len(other), STRANGER) == (201, "")
        assert await shelf.put_piece(WHOLE, 20, len(WHOLE)) == (201, "")
        assert await shelf.put_piece(b"z" * 500, 0, 500, STRANGER) == (503, "blob.full")
        assert shelf.custody.compute_held(REQUESTER.key) == len(WHOLE)


async def test_uploads_are_few_and_those_that_nobody_goes_on_with_are_swept(tmp_path: Path) -> None:
    async with open_shelf(tmp_path) as shelf:
        wholes = [WHOLE + bytes([number]) for number in range(MAX_UPLOADS_EACH + 1)]
        for whole in wholes[:-1]:
            assert await shelf.put_piece(whole, 0, 10) == (204, "")
        assert await shelf.put_piece(wholes[-1], 0, 10) == (429, "upload.many")
        assert await shelf.put_piece(wholes[-1], 0, 10, STRANGER) == (204, "")
        shelf.routes.uploads.sweep(shelf.clock.now() + LIFETIME - 60_000)
        assert len(shelf.list_files()) == MAX_UPLOADS_EACH + 1
        shelf.routes.uploads.sweep(shelf.clock.now() + LIFETIME + 1)
        assert shelf.list_files() == []
        assert (shelf.custody._filling, len(shelf.custody._coming)) == (0, 0)
        assert await shelf.put_piece(wholes[-1], 0, 10) == (204, "")


async def test_all_uploads_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 1)
    async with open_shelf(tmp_path) as shelf:
        assert await shelf.put_piece(WHOLE, 0, 10) == (204, "")
        assert await shelf.put_piece(WHOLE, 0, 10, STRANGER) == (503, "upload.full")


async def test_who_uploads_the_same_bytes_again_sends_them_again_unless_it_is_the_same(tmp_path: Path) -> None:
    """Row 36: knowing a digest gives nothing; having the bytes does."""
    async with open_shelf(tmp_path) as shelf:
        assert await shelf.put_piece(WHOLE, 0, len(WHOLE)) == (201, "")
        assert await shelf.find(WHOLE) == (len(WHOLE), "?1")
        assert await shelf.find(WHOLE, STRANGER) == (0, "?0")
        assert await shelf.put_piece(WHOLE, len(WHOLE), 0, STRANGER) == (409, "upload.offset")
        assert (await shelf.call("GET", blob_path(WHOLE), signer=STRANGER))[:2] == (404, "blob.unknown")
        assert await shelf.put_piece(WHOLE, 0, len(WHOLE), STRANGER) == (201, "")
        assert (await shelf.call("GET", blob_path(WHOLE), signer=STRANGER))[3] == WHOLE
        assert shelf.list_files() == [compute_digest(WHOLE).hex()]


async def test_asking_for_what_is_held_keeps_it(tmp_path: Path) -> None:
    """What an upload need not send again stays at least as long as if it had been sent."""
    async with open_shelf(tmp_path) as shelf:
        digest, now = compute_digest(WHOLE), shelf.clock.now()
        await shelf.blobs.write(digest, WHOLE)
        shelf.custody.hold({digest: len(WHOLE)}, REQUESTER.key, now + 60_000)
        shelf.custody.grant([digest], STRANGER.key, now + 60_000)
        assert await shelf.find(WHOLE) == (len(WHOLE), "?1")
        assert await shelf.find(WHOLE, STRANGER) == (0, "?0")  # may read it, and has not shown to have it
        assert shelf.custody.sweep(now + LIFETIME // 2) == []
        assert shelf.custody.get_size(digest, REQUESTER.key) == len(WHOLE)
        assert shelf.custody.get_size(digest, STRANGER.key) is None


@pytest.mark.parametrize("size", [0, 1, MAX_SMALL_BYTES, MAX_SMALL_BYTES + 1])
async def test_small_uploads_become_rows_and_large_ones_files(tmp_path: Path, size: int) -> None:
    async with open_shelf(tmp_path) as shelf:
        whole = bytes(size)
        assert await shelf.put_piece(whole, 0, size) == (201, "")
        assert len(shelf.list_files()) == (size > MAX_SMALL_BYTES)
        assert (await shelf.call("GET", blob_path(whole)))[3] == whole


async def test_a_lost_connection_costs_its_piece_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "STEP", 1_000)
    async with open_shelf(tmp_path) as shelf:
        assert await shelf.put_piece(WHOLE, 0, 1_000) == (204, "")
        writer = await send_half(shelf.url, WHOLE, 1_000, HALF)
        path = tmp_path / "blobs" / "uploads" / name()
        await eventually(lambda: path.stat().st_size > 1_000)
        writer.close()
        await eventually(lambda: path.stat().st_size == 1_000)
        assert await shelf.find(WHOLE) == (1_000, "?0")
        assert await shelf.put_piece(WHOLE, 1_000, len(WHOLE)) == (201, "")
        assert shelf.custody._filling == 0


async def test_who_comes_back_does_not_wait_for_its_dead_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline of the dead one is an hour here: the new piece ends it at once."""
    monkeypatch.setattr(uploads, "STEP", 1_000)
    monkeypatch.setattr("broker.service.blobroutes.BLOB_SECONDS", 3_600)
    async with open_shelf(tmp_path) as shelf:
        assert await shelf.put_piece(WHOLE, 0, 1_000) == (204, "")
        writer = await send_half(shelf.url, WHOLE, 1_000, HALF)
        await eventually(lambda: [path.stat().st_size > 1_000 for path in tmp_path.rglob(name())] == [True])
        async with asyncio.timeout(PATIENCE):
            assert await shelf.put_piece(WHOLE, 1_000, len(WHOLE)) == (201, "")
        writer.close()


async def test_a_piece_has_a_deadline_that_no_trickle_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.service.blobroutes.BLOB_SECONDS", 0.2)
    async with open_shelf(tmp_path) as shelf:
        writer = await send_half(shelf.url, WHOLE, 0, HALF)
        await eventually(lambda: any(tmp_path.rglob(name())))
        await eventually(lambda: shelf.list_files() == [])
        writer.close()
        assert not shelf.custody._coming


async def test_a_restart_goes_on_at_the_end_of_the_file(tmp_path: Path) -> None:
    async with open_shelf(tmp_path) as shelf:
        assert await shelf.put_piece(WHOLE, 0, HALF) == (204, "")
    folder = tmp_path / "blobs" / "uploads"
    (folder / "no upload").write_bytes(b"x")
    (folder / name(STRANGER.key, b"short")).write_bytes(b"too long")
    async with open_shelf(tmp_path, quota=len(WHOLE)) as shelf:
        assert shelf.list_files() == [name()]
        assert await shelf.find(WHOLE) == (HALF, "?0")
        assert await shelf.put_piece(b"other", 0, 5) == (429, "blob.quota")
        assert await shelf.put_piece(WHOLE, HALF, HALF) == (201, "")
        assert (await shelf.call("GET", blob_path(WHOLE)))[3] == WHOLE
        assert shelf.custody._filling == 0


async def test_what_changed_while_the_broker_was_away_is_found(tmp_path: Path) -> None:
    async with open_shelf(tmp_path) as shelf:
        assert await shelf.put_piece(WHOLE, 0, HALF) == (204, "")
    path = tmp_path / "blobs" / "uploads" / name()
    path.write_bytes(b"x" + WHOLE[1:HALF])
    async with open_shelf(tmp_path) as shelf:
        assert await shelf.put_piece(WHOLE, HALF, HALF) == (422, "blob.digest")
        assert shelf.list_files() == []
        assert await shelf.put_piece(WHOLE, 0, HALF) == (204, "")
        path.unlink()  # lost under a broker that runs: no file of zeros may take its place
        assert await shelf.put_piece(WHOLE, HALF, HALF) == (503, "blob.write")
        assert await shelf.put_piece(WHOLE, 0, len(WHOLE)) == (201, "")
