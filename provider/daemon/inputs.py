"""What a lease needs before it can run: the code, and the inputs its range begins with.

Small blobs come in one answer each; large ones go straight into files and are taken up again after a lost connection.
The items of a `map` are checked against the root that the order names (R5): a requester that uploads other ones would
make honest records look forged.
"""

from __future__ import annotations

import asyncio
import mmap
from pathlib import Path

from broker.protocol import values
from broker.protocol.api import INLINE_BYTES
from broker.protocol.jobs import compute_item_root
from broker.protocol.messages import Announcement
from chain.base.errors import Refused, Unavailable
from chain.ledger.terms.agreement import Kind, Order
from provider.daemon.folder import LeaseFolder
from provider.daemon.links import Backoff, Gear


def name_inputs(announcement: Announcement, start: bytes) -> tuple[bytes, int]:
    """Digest of the inputs of a range that begins with `start`, and the most bytes they may have: the job's own, or
    the state that a `train` goes on from.
    """
    spec = announcement.spec
    if spec.kind is Kind.TRAIN and start != spec.inputs:
        return start, spec.resources.output_bytes
    return spec.inputs, spec.input_bytes


async def fetch_inputs(gear: Gear, lease: bytes, announcement: Announcement, start: bytes) -> None:
    """Bring code and inputs into a lease's folder, waiting for a broker that is away or has not granted them yet.
    Raises `Refused` or `Fault` where waiting can't help.
    """
    spec, inputs = announcement.spec, name_inputs(announcement, start)
    folder = gear.workspace.open_folder(lease)
    await asyncio.gather(_fetch(gear, folder, spec.code, spec.code_bytes), _fetch(gear, folder, *inputs))
    if spec.kind is Kind.MAP:
        path = await lay_out(folder, inputs[0])
        await asyncio.to_thread(check_items, path, announcement.order.body)


async def lay_out(folder: LeaseFolder, digest: bytes) -> Path:
    """The file that holds a blob of a lease's folder. Raises `Unavailable` where it is gone."""
    async with folder.get_lock(digest):
        path = await asyncio.to_thread(folder.lay_out, digest)
    if path is None:
        raise Unavailable("code or inputs are no longer on disk", rule="workspace.missing")
    return path


def check_items(path: Path, order: Order) -> None:
    """Raise `Refused` under `inputs.items` unless a file holds the items of a `map` that its order names."""
    if path.stat().st_size == 0:
        raise Refused("the inputs of a map are a packed list: these are empty", rule="inputs.items")
    try:
        items = values.split(_map(path))
    except values.BadValue as error:
        raise Refused(f"the inputs of a map are a packed list: {error}", rule="inputs.items") from error
    if len(items) != order.segments:
        raise Refused(f"the inputs hold {len(items)} items where the order has {order.segments}", rule="inputs.items")
    if compute_item_root(items) != order.start:
        raise Refused("the inputs are not the items whose root the order names", rule="inputs.items")


def _map(path: Path) -> memoryview:
    """A file as memory. The mapping ends with the last view of it."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


async def _fetch(gear: Gear, folder: LeaseFolder, digest: bytes, max_bytes: int) -> None:
    """Bring one blob."""
    backoff = Backoff()
    async with folder.get_lock(digest):
        while not (folder.is_packed(digest) or await asyncio.to_thread(folder.has_file, digest)):
            try:
                if max_bytes <= INLINE_BYTES:
                    folder.put(await gear.broker.get_blob(digest, max_bytes))
                else:
                    await gear.broker.get_file(digest, folder.get_path(digest), max_bytes)
                    folder.trust(digest)
            except Unavailable:
                await backoff.wait()
            except Refused as error:
                if error.rule == "blob.size":
                    raise
                await backoff.wait()
