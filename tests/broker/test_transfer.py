"""The client's transfers: what goes on after a lost connection or a lost process, and what a lying broker can do."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from broker.protocol.api import MAX_PARCEL_BYTES, MAX_PIECE_BYTES, Parcel
from broker.rpc import transfer
from broker.rpc.client import BrokerClient
from broker.service.web import send_file
from chain.base.codec import encode
from chain.base.errors import Fault, Refused, TallyError, Unavailable
from chain.base.hashing import compute_digest
from tests.broker.market import eventually
from tests.broker.shelf import Shelf, blob_path, open_shelf, send_half, serve
from tests.broker.world import REQUESTER, STRANGER

WHOLE = os.urandom(1 << 20) * 20
DIGEST = compute_digest(WHOLE)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.001)


@asynccontextmanager
async def lying_broker(handle: Callable[[web.Request], Any]) -> AsyncIterator[BrokerClient]:
    async with serve(handle) as url, BrokerClient(url, REQUESTER) as client:
        yield client


async def store(shelf: Shelf, data: bytes = WHOLE) -> None:
    await shelf.blobs.write(compute_digest(data), data)
    shelf.custody.hold({compute_digest(data): len(data)}, REQUESTER.key, shelf.clock.now() + 60_000)


async def test_a_file_goes_up_in_pieces_and_comes_back(tmp_path: Path) -> None:
    async with open_shelf(tmp_path) as shelf:
        client, file, back = shelf.client(), tmp_path / "file", tmp_path / "deep" / "back"
        file.write_bytes(WHOLE)
        up, down = list[tuple[int, int]](), list[tuple[int, int]]()
        await client.put_file(file, DIGEST, len(WHOLE), lambda *done: up.append(done))
        ends = [MAX_PIECE_BYTES, 2 * MAX_PIECE_BYTES, len(WHOLE)]
        assert up == [(end, len(WHOLE)) for end in ends]
        assert await client.get_file(DIGEST, back, len(WHOLE), lambda *done: down.append(done)) == len(WHOLE)
        assert back.read_bytes() == WHOLE
        assert down == sorted(down)
        assert down[-1] == (len(WHOLE), len(WHOLE))
        assert [path.name for path in back.parent.iterdir()] == ["back"]
        up.clear()
        await client.put_file(file, DIGEST, len(WHOLE), lambda *done: up.append(done))
        assert up == [(len(WHOLE), len(WHOLE))]
        assert await client.put_blob(WHOLE) == DIGEST
        assert await client.get_blob(DIGEST, len(WHOLE)) == WHOLE
        with pytest.raises(Refused) as short:
            await client.put_file(file, compute_digest(b"x"), len(WHOLE) + 1)
        assert short.value.rule == "blob.digest"
        with pytest.raises(Unavailable) as absent:
            await client.put_file(tmp_path / "absent", DIGEST, 1)
        assert absent.value.rule == "file.read"


class Flaky:
    """A broker whose connections break: each request numbered in `breaks` ends before its answer, `late` ones after
    the broker has carried them out.
    """

    def __init__(self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, breaks: set[int], late: bool) -> None:
        self.seen: list[str] = []
        real = shelf.routes.uploads.receive

        async def receive(piece: Any, chunks: Any, now: int) -> bool:
            self.seen.append(str(piece.offset))
            if len(self.seen) in breaks:
                if late:
                    await real(piece, chunks, now)
                piece.abort()
                await asyncio.sleep(3600)
            return await real(piece, chunks, now)

        monkeypatch.setattr(shelf.routes.uploads, "receive", receive)


@pytest.mark.parametrize("late", [False, True], ids=["before", "behind"])
async def test_an_upload_goes_on_after_lost_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    async with open_shelf(tmp_path) as shelf:
        flaky = Flaky(shelf, monkeypatch, {1, 3, 4}, late)
        assert await shelf.client().put_blob(WHOLE) == DIGEST
        assert (await shelf.call("GET", blob_path(WHOLE)))[3] == WHOLE
        ends = ["0", "0", str(MAX_PIECE_BYTES), str(MAX_PIECE_BYTES), str(MAX_PIECE_BYTES), str(2 * MAX_PIECE_BYTES)]
        assert flaky.seen == (sorted(set(ends), key=int) if late else ends)


async def test_an_upload_that_never_gets_on_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_shelf(tmp_path) as shelf:
        flaky = Flaky(shelf, monkeypatch, set(range(100)), late=False)
        with pytest.raises(Unavailable) as lost:
            await shelf.client().put_blob(WHOLE)
        assert lost.value.rule == "broker.unreachable"
        assert len(flaky.seen) == transfer.TRIES + 1


async def test_an_upload_goes_on_in_another_process(tmp_path: Path) -> None:
    async with open_shelf(tmp_path) as shelf:
        assert await shelf.put_piece(WHOLE, 0, 3_000_000) == (204, "")
        ends: list[int] = []
        file = tmp_path / "file"
        file.write_bytes(WHOLE)
        await shelf.client().put_file(file, DIGEST, len(WHOLE), lambda done, _: ends.append(done))
        assert ends == [3_000_000 + MAX_PIECE_BYTES, 3_000_000 + 2 * MAX_PIECE_BYTES, len(WHOLE)]


async def test_an_upload_whose_beginning_was_spoiled_is_sent_anew_once(tmp_path: Path) -> None:
    async with open_shelf(tmp_path) as shelf:
        assert await shelf.put_piece(WHOLE, 0, 3_000_000) == (204, "")
    (half,) = (tmp_path / "blobs" / "uploads").iterdir()
    half.write_bytes(bytes(3_000_000))
    file = tmp_path / "file"
    file.write_bytes(WHOLE)
    async with open_shelf(tmp_path) as shelf:
        await shelf.client().put_file(file, DIGEST, len(WHOLE))
        assert (await shelf.call("GET", blob_path(WHOLE)))[3] == WHOLE
        other = compute_digest(b"another file by now")
        ends = list[int]()
        with pytest.raises(Refused) as refused:
            await shelf.client().put_file(file, other, len(WHOLE), lambda done, _: ends.append(done))
        assert refused.value.rule == "blob.digest"
        assert ends == [MAX_PIECE_BYTES, 2 * MAX_PIECE_BYTES]


RANGES = [
    ("bytes=0-", 206, slice(0, None)),
    ("bytes=5-", 206, slice(5, None)),
    ("bytes=5-5", 206, slice(5, 6)),
    ("bytes=-7", 206, slice(-7, None)),
    (f"bytes={len(WHOLE) - 1}-", 206, slice(-1, None)),
    (f"bytes=9-{len(WHOLE) * 2}", 206, slice(9, None)),
    (f"bytes={len(WHOLE)}-", 416, None),
    ("bytes=9-3", 416, None),
    ("bytes=0-1,3-4", 416, None),
    ("lines=1-2", 416, None),
    ("bytes=99999999999999999999-", 416, None),
]


@pytest.mark.parametrize(("text", "status", "part"), RANGES, ids=[row[0] for row in RANGES])
async def test_ranges(tmp_path: Path, text: str, status: int, part: slice | None) -> None:
    async with open_shelf(tmp_path) as shelf:
        await store(shelf)
        got = await shelf.send("GET", blob_path(WHOLE), shelf.sign(REQUESTER, "GET", blob_path(WHOLE), b"", Range=text))
        assert got[0] == status
        if part is None:
            assert got[2]["Content-Range"] == f"bytes */{len(WHOLE)}"
            return
        start, end, _ = part.indices(len(WHOLE))
        assert got[3] == WHOLE[part]
        assert got[2]["Content-Range"] == f"bytes {start}-{end - 1}/{len(WHOLE)}"


async def test_a_range_is_signed_and_gives_no_right(tmp_path: Path) -> None:
    async with open_shelf(tmp_path) as shelf:
        await store(shelf)
        headers = shelf.sign(REQUESTER, "GET", blob_path(WHOLE), b"", Range="bytes=5-")
        headers["Range"] = "bytes=6-"
        assert (await shelf.send("GET", blob_path(WHOLE), headers))[:2] == (401, "http.signature")
        got = await shelf.call("GET", blob_path(WHOLE), signer=STRANGER, Range="bytes=5-")
        assert got[:2] == (404, "blob.unknown")


def part_of(back: Path, digest: bytes = DIGEST) -> Path:
    """Where a download lies until it is whole."""
    return back.with_name(f".{back.name}.{digest.hex()[:16]}.part")


LEFT = [
    ("the beginning", WHOLE[:5_000_000], "bytes=5000000-"),
    ("all of it", WHOLE, f"bytes={len(WHOLE)}-"),
    ("other bytes", b"x" * 5_000_000, "bytes=5000000-"),
    ("too much", WHOLE + b"x", f"bytes={len(WHOLE) + 1}-"),
    ("nothing", b"", None),
]


@pytest.mark.parametrize(("left", "asked"), [row[1:] for row in LEFT], ids=[row[0] for row in LEFT])
async def test_a_download_goes_on_where_another_process_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes, asked: str | None
) -> None:
    async with open_shelf(tmp_path) as shelf:
        await store(shelf)
        back, heard = tmp_path / "back", list[str | None]()
        part_of(back).write_bytes(left)

        async def listen(request: web.Request, path: Path, seconds: float) -> web.StreamResponse:
            heard.append(request.headers.get("Range"))
            return await send_file(request, path, seconds)

        monkeypatch.setattr("broker.service.blobroutes.send_file", listen)
        client = shelf.client()
        assert await client.get_file(DIGEST, back, len(WHOLE)) == len(WHOLE)
        assert back.read_bytes() == WHOLE
        assert heard[0] == asked
        assert heard[1:] == ([] if WHOLE.startswith(left) else [None])
        assert not part_of(back).exists()


async def test_a_download_goes_on_after_lost_connections(tmp_path: Path) -> None:
    asked: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Range", "bytes=0-"))
        start = int(asked[-1][6:-1])
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(WHOLE) - start
        response.headers["Content-Range"] = f"bytes {start}-{len(WHOLE) - 1}/{len(WHOLE)}"
        await response.prepare(request)
        await response.write(WHOLE[start : start + 7_000_000])
        if start + 7_000_000 < len(WHOLE) and request.transport is not None:
            request.transport.close()
        return response

    async with lying_broker(handle) as client:
        assert await client.get_file(DIGEST, tmp_path / "back", len(WHOLE)) == len(WHOLE)
    assert (tmp_path / "back").read_bytes() == WHOLE
    starts = [int(text[6:-1]) for text in asked]
    assert len(starts) > 2
    assert all(0 < later - sooner <= 7_000_000 for sooner, later in pairwise(starts))


def answer(body: bytes, status: int = 200, **headers: str) -> Callable[[web.Request], Any]:
    async def handle(_request: web.Request) -> web.Response:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=fields)

    return handle


async def flood(request: web.Request) -> web.StreamResponse:
    """Bytes without an end."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(bytes(1 << 16))


async def flood_range(request: web.Request) -> web.StreamResponse:
    """A range of 50 bytes, and then bytes without an end."""
    response = web.StreamResponse(status=206, headers={"Content-Range": "bytes 0-49/50"})
    await response.prepare(request)
    while True:
        await response.write(bytes(1 << 16))


async def stop_short(request: web.Request) -> web.StreamResponse:
    """Ends in the middle, each time, without a byte of progress."""
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    if request.transport is not None:
        request.transport.close()
    return response


LIES: list[tuple[str, Callable[[web.Request], Any], type[TallyError], str]] = [
    ("other bytes", answer(b"x" * 50), Fault, "blob.digest"),
    ("nothing", answer(b""), Fault, "blob.digest"),
    ("more than it may be", answer(b"x" * 101), Refused, "blob.size"),
    ("without an end", flood, Fault, "broker.answer"),
    ("never whole", stop_short, Unavailable, "broker.unreachable"),
    ("another range", answer(b"x" * 50, 206, Content_Range="bytes 7-56/57"), Fault, "broker.answer"),
    ("a range without numbers", answer(b"x" * 50, 206, Content_Range="bytes a-b/c"), Fault, "broker.answer"),
    ("not the whole rest", answer(b"x" * 50, 206, Content_Range="bytes 0-49/60"), Fault, "broker.answer"),
    ("less than its range", answer(b"x" * 40, 206, Content_Range="bytes 0-49/50"), Unavailable, "broker.unreachable"),
    ("more than its range", flood_range, Fault, "broker.answer"),
    ("no such range", answer(b"", 416), Refused, "http.416"),
    ("no broker", answer(b"<h1>no</h1>", 404), Unavailable, "broker.address"),
]


@pytest.mark.parametrize(("handle", "kind", "rule"), [row[1:] for row in LIES], ids=[row[0] for row in LIES])
async def test_a_lying_broker_leaves_no_file(
    tmp_path: Path, handle: Callable[[web.Request], Any], kind: type[TallyError], rule: str
) -> None:
    async with lying_broker(handle) as client:
        with pytest.raises(kind) as lie:
            await client.get_file(DIGEST, tmp_path / "back", 100)
        assert lie.value.rule == rule
        assert not (tmp_path / "back").exists()
        if kind is not Unavailable:
            assert not part_of(tmp_path / "back").exists()


async def test_a_broker_that_lies_about_offsets_is_no_broker(tmp_path: Path) -> None:
    for fields in ({}, {"Upload_Offset": "x"}, {"Upload_Offset": str(len(WHOLE) + 1)}, {"Upload_Offset": "-1"}):
        async with lying_broker(answer(b"", 204, **fields)) as client:
            with pytest.raises(Fault) as lie:
                await client.put_blob(WHOLE)
            assert lie.value.rule == "broker.answer"


async def test_parcels_carry_small_blobs_and_keep_their_bounds(tmp_path: Path) -> None:
    async with open_shelf(tmp_path) as shelf:
        client = shelf.client()
        small = [b"%d" % number * 9_000 for number in range(100)] * 2
        large = WHOLE[: transfer.SMALL_BYTES + 1]
        digests = await client.put_many([*small, large, b""])
        assert digests == tuple(compute_digest(blob) for blob in (*small, large, b""))
        assert shelf.list_files() == [compute_digest(large).hex()]
        unknown = compute_digest(b"unknown")
        asked = [unknown, *digests[:50], digests[-2], *digests]
        found = await client.get_many(asked, 10 << 20)
        assert found == dict(zip(digests, (*small, large, b""), strict=True))
        assert await client.get_many([unknown], 10) == {}
        assert await client.get_many([], 10) == {}
        assert await shelf.client(STRANGER).get_many(digests[:3], 10 << 20) == {}
        total = sum(map(len, found.values()))
        assert len(await client.get_many(digests, total)) == len(found)
        with pytest.raises(Refused) as large_sum:
            await client.get_many(digests, total - 1)
        assert large_sum.value.rule == "blob.size"


async def test_hostile_parcels(tmp_path: Path) -> None:
    async with open_shelf(tmp_path, quota=3 << 20) as shelf:
        big = encode(Parcel((bytes(MAX_PARCEL_BYTES), b"x")))
        assert (await shelf.call("POST", "/v1/blobs", big))[:2] == (413, "blob.size")
        twice = encode(Parcel((b"x" * 1_000_000,) * 2))
        assert (await shelf.call("POST", "/v1/blobs", twice))[0] == 201
        assert shelf.custody.compute_held(REQUESTER.key) == 1_000_000
        many = b"\x92\xa6parcel\xdc" + (2_049).to_bytes(2, "big") + b"\xc4\x00" * 2_049
        assert (await shelf.call("POST", "/v1/blobs", many))[0] == 400
        assert (await shelf.call("POST", "/v1/blobs/wanted", b"\x92\xa6wanted\x91\xc4\x01x"))[0] == 400
        full = encode(Parcel((bytes(MAX_PARCEL_BYTES),)))
        assert (await shelf.call("POST", "/v1/blobs", full))[0] == 201
        assert (await shelf.call("POST", "/v1/blobs", encode(Parcel((b"y" * 100_000,)))))[:2] == (429, "blob.quota")
        assert (await shelf.call("POST", "/v1/blobs", b"x", STRANGER))[0] == 400


async def test_a_parcel_of_what_nobody_asked_for_is_a_fault(tmp_path: Path) -> None:
    async with lying_broker(answer(encode(Parcel((b"other",))))) as client:
        with pytest.raises(Fault) as lie:
            await client.get_many([DIGEST], 100)
        assert lie.value.rule == "broker.answer"


SERVER = """
import asyncio, sys
from itertools import pairwise
from pathlib import Path
from tests.broker.shelf import Shelf

async def main():
    shelf = Shelf(Path(sys.argv[1]))
    await shelf.start()
    print(shelf.url, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def start_server(home: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(home)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


async def put_rest(home: Path, file: Path) -> list[int]:
    """Start the broker again, finish the upload; the offsets behind each piece that was sent."""
    process, url = await asyncio.to_thread(start_server, home)
    ends: list[int] = []
    try:
        async with BrokerClient(url, REQUESTER) as client:
            await client.put_file(file, DIGEST, len(WHOLE), lambda done, _: ends.append(done))
            assert await client.get_blob(DIGEST, len(WHOLE)) == WHOLE
    finally:
        end(process)
    return ends


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


async def test_a_killed_broker_goes_on_where_it_was(tmp_path: Path) -> None:
    """kill -9 between two pieces: what was said to be there is there, and is not sent again."""
    process, url = await asyncio.to_thread(start_server, tmp_path)
    file = tmp_path / "file"
    file.write_bytes(WHOLE)
    async with BrokerClient(url, REQUESTER) as client:
        with pytest.raises(Unavailable):
            await client.put_file(file, DIGEST, len(WHOLE), lambda _done, _total: process.send_signal(signal.SIGKILL))
    end(process)
    ends = await put_rest(tmp_path, file)
    assert ends[0] > MAX_PIECE_BYTES
    assert ends[-1] == len(WHOLE)


async def test_a_broker_killed_within_a_piece_goes_on_too(tmp_path: Path) -> None:
    """kill -9 while bytes of a piece are written that nobody has checked yet: the digest of the whole decides."""
    process, url = await asyncio.to_thread(start_server, tmp_path)
    file = tmp_path / "file"
    file.write_bytes(WHOLE)
    writer = await send_half(url, WHOLE, 0, MAX_PIECE_BYTES)
    folder = tmp_path / "blobs" / "uploads"
    await eventually(lambda: any(path.stat().st_size > MAX_PIECE_BYTES // 4 for path in folder.iterdir()))
    end(process)
    writer.close()
    ends = await put_rest(tmp_path, file)
    assert MAX_PIECE_BYTES < ends[0] < MAX_PIECE_BYTES * 2
    assert ends[-1] == len(WHOLE)
