"""One blob of 500 MB to a broker and back into a file, against bare aiohttp in the same run.

The broker's side is the real HTTP server with the real routes of blobs in a process of its own, without chain and bus,
which take no part in a transfer; the client's side is `BrokerClient` in another. Bare aiohttp moves the same file to a
file between two such processes, as its own examples do, with no signature, no digest and no wait for the disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from aiohttp import web

from benchmarks.figures import Figure
from broker.rpc.client import BrokerClient
from broker.service import custody
from broker.service.blobroutes import BlobRoutes
from broker.service.blobs import BlobStore
from broker.service.custody import Custody
from broker.service.web import WebServer
from chain.base.keys import Signer
from chain.runtime.clock import SystemClock
from chain.runtime.database import open_database

SIZE = 500 << 20
ROUNDS = 3
SIGNER = Signer(b"blob transfer".ljust(32))


def measure_peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(one for one in file if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


async def is_known(_account: bytes) -> bool:
    return True


async def serve_blobs(folder: Path) -> str:
    """The broker's side; returns its URL."""
    clock = SystemClock()
    rows = open_database(folder / "rows.db", kind="benchmark", version=1, schema=custody.SCHEMA)
    store = BlobStore(folder / "blobs", 1 << 40)
    store.prepare()
    routes = BlobRoutes(store, Custody(rows, 1 << 50, 1 << 50), clock, is_known)
    return await WebServer(routes.make_table(), clock).start("127.0.0.1", 0)


async def serve_bare(folder: Path) -> str:
    """Bare aiohttp; returns its URL."""

    async def take(request: web.Request) -> web.Response:
        with (folder / "taken").open("wb") as file:
            async for chunk in request.content.iter_any():
                file.write(chunk)
        return web.Response()

    async def give(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(folder / "taken")

    app = web.Application()
    app.add_routes([web.put("/blob", take), web.get("/blob", give)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


async def send_blobs(url: str, folder: Path) -> list[float]:
    """The client's side: seconds up and down."""
    data, back = folder / "data", folder / "back"
    digest = bytes.fromhex((folder / "digest").read_text())
    async with BrokerClient(url, SIGNER) as client:
        started = time.perf_counter()
        await client.put_file(data, digest, SIZE)
        between = time.perf_counter()
        await client.get_file(digest, back, SIZE)
        ended = time.perf_counter()
    return [between - started, ended - between]


async def send_bare(url: str, folder: Path) -> list[float]:
    """Bare aiohttp: seconds up and down."""
    back = folder / "bare"
    async with aiohttp.ClientSession() as session:
        started = time.perf_counter()
        with (folder / "data").open("rb") as file:
            async with session.put(f"{url}/blob", data=file) as response:
                response.raise_for_status()
        between = time.perf_counter()
        with back.open("wb") as file:
            async with session.get(f"{url}/blob") as response:
                async for chunk in response.content.iter_any():
                    file.write(chunk)
        ended = time.perf_counter()
    if back.stat().st_size != SIZE:
        raise RuntimeError("bytes are missing")
    return [between - started, ended - between]


SERVERS: dict[str, Callable[[Path], Awaitable[str]]] = {"blobs": serve_blobs, "bare": serve_bare}
CLIENTS: dict[str, Callable[[str, Path], Awaitable[list[float]]]] = {"blobs": send_blobs, "bare": send_bare}


async def serve(kind: str, folder: Path) -> None:
    """One server: its address on a line, its peak of memory on another once standard input ends."""
    print(await SERVERS[kind](folder), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(measure_peak(), flush=True)
    os._exit(0)  # nothing of it is needed any more


async def send(kind: str, url: str, folder: Path) -> None:
    """One client: seconds up and down and its peak of memory."""
    seconds = await CLIENTS[kind](url, folder)
    print(json.dumps([*seconds, measure_peak()]))


async def _run_pair(kind: str, folder: Path) -> tuple[list[float], float]:
    """Seconds up and down, peaks of client and server."""

    def start(*words: str) -> Awaitable[asyncio.subprocess.Process]:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "benchmarks.blob_transfer", *words, str(folder))
        return asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)

    server = await start("serve", kind)
    if server.stdout is None:
        raise RuntimeError("no output of the server")
    try:
        url = (await server.stdout.readline()).decode().strip()
        client = await start("send", kind, url)
        answer, _ = await client.communicate()
        peak, _ = await server.communicate(b"")
    finally:
        if server.returncode is None:
            server.kill()
    return json.loads(answer), float(peak)


def _make_data(folder: Path) -> None:
    hasher = hashlib.sha256()
    with (folder / "data").open("wb") as file:
        for _ in range(SIZE >> 20):
            block = os.urandom(1 << 20)
            hasher.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    (folder / "digest").write_text(hasher.hexdigest())


async def measure() -> dict[str, Figure]:
    """MB/s up and down, their share of bare aiohttp's, and the peaks of memory; medians of `ROUNDS` pairs."""
    rows: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="tally-bench-") as name:
        top = Path(name)
        for number in range(ROUNDS):
            folder = top / str(number)
            folder.mkdir()
            await asyncio.to_thread(_make_data, folder)
            bare, _ = await _run_pair("bare", folder)
            ours, server = await _run_pair("blobs", folder)
            if (folder / "back").stat().st_size != SIZE:
                raise RuntimeError("the blob did not come back")
            rows.append([*(SIZE / 1e6 / one for one in (*ours[:2], *bare[:2])), ours[2], server])
            print(f"  {number + 1} of {ROUNDS}: {[round(one) for one in rows[-1]]}", file=sys.stderr, flush=True)
    up, down, bare_up, bare_down, client, broker = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "blob_transfer_up": Figure(up, "MB/s"),
        "blob_transfer_down": Figure(down, "MB/s"),
        "blob_transfer_bare_up": Figure(bare_up, "MB/s"),
        "blob_transfer_bare_down": Figure(bare_down, "MB/s"),
        "blob_transfer_cost_up": Figure(bare_up / up, "times", aim=2),
        "blob_transfer_cost_down": Figure(bare_down / down, "times", aim=2),
        "blob_transfer_client": Figure(client, "MB", aim=150),
        "blob_transfer_broker": Figure(broker, "MB", aim=150),
    }


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(sys.argv[2], Path(sys.argv[3])))
    else:
        asyncio.run(send(sys.argv[2], sys.argv[3], Path(sys.argv[4])))
