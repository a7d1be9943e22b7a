"""Handing in a receipt: large blobs first, small ones with it, again and again until the holder signs for all (R8)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from broker.protocol.api import INLINE_BYTES, MAX_PARCEL_BYTES, Delivery
from chain.base.errors import Fault, Refused, Unavailable
from chain.base.hashing import Tag
from chain.base.keys import BadSignature, Signed, verify
from chain.ledger.terms.work import StorageReceipt, compute_receipt_id
from chain.runtime.logs import get_logger, show_job
from provider.daemon.folder import LeaseFolder
from provider.daemon.links import Backoff, Gear
from provider.work.events import HolderLost, LeaseOpened, PostReceipt, Stored, StoreFailed
from provider.work.papers import EMPTY

MAX_INLINE = 512
"""Most blobs in one delivery."""

MAX_REFUSALS = 12
"""A broker may refuse what it does not know yet (it was restarted, its chain lags); after so many tries it means it."""

_FOR_GOOD = ("R5.", "R9.", "codec.", "signature.", "workspace.")
"""Refusals of the receipt itself: the same bytes are refused again."""

_LOST = "R5.since"
"""The holder has fewer records than it signed for."""


class Load(msgspec.Struct, frozen=True):
    """How the blobs of one hand-in travel: with the delivery, in parcels of small ones, as files of their own."""

    inline: tuple[bytes, ...]
    parcels: tuple[tuple[bytes, ...], ...]
    files: tuple[bytes, ...]


class HandOver:
    """Brings one receipt to the broker."""

    def __init__(self, gear: Gear, opened: LeaseOpened, folder: LeaseFolder) -> None:
        self._gear = gear
        self._opened = opened
        self._folder = folder
        self._log = get_logger("work").bind(job=show_job(opened.bid.body.order))

    async def post(self, effect: PostReceipt) -> Stored | HolderLost | StoreFailed:
        """Try until the broker holds everything, says that it lost what it had, or that it never will."""
        backoff, refusals, ahead = Backoff(), 0, False
        self._folder.put(effect.provenance)
        while True:
            try:
                load = self._divide(effect)
                if not ahead:
                    await self._send_ahead(load)
                    ahead = True
                delivery = Delivery(effect.receipt, effect.since, effect.records, self._read(load.inline))
                storage = await self._gear.broker.deliver(self._opened.lease, delivery)
                return Stored(self._check(storage, effect), effect.receipt.body.count)
            except Unavailable as error:
                self._log.info("the broker is waited for", why=str(error))
            except (Refused, Fault) as error:
                refusals, ahead = refusals + 1, False
                self._log.warning("not handed in", why=str(error))
                if error.rule == _LOST:
                    return HolderLost()
                if refusals >= MAX_REFUSALS or error.rule.startswith(_FOR_GOOD):
                    return StoreFailed(str(error)[:1_000])
            await backoff.wait()

    def _divide(self, effect: PostReceipt) -> Load:
        """Sort the blobs that receipt and new records name by how they travel."""
        body, folder = effect.receipt.body, self._folder
        digests = {body.log, body.provenance}
        for record in effect.records:
            digests |= {record.output, record.error}
        small: dict[bytes, int] = {}
        files: list[bytes] = []
        for digest in sorted(digests - {EMPTY}):
            size = folder.measure(digest)
            if size is None:
                raise Fault("an output is no longer on disk", rule="workspace.missing")
            if folder.is_packed(digest):
                small[digest] = size
            else:
                files.append(digest)
        inline, parcels = divide_blobs(small)
        return Load(inline, parcels, tuple(files))

    async def _send_ahead(self, load: Load) -> None:
        """What does not ride with the delivery."""
        broker, folder = self._gear.broker, self._folder
        for digest in load.files:
            await broker.put_file(folder.get_path(digest), digest, folder.measure(digest) or 0)
        for parcel in load.parcels:
            await broker.put_many(self._read(parcel))

    def _read(self, digests: Iterable[bytes]) -> tuple[bytes, ...]:
        blobs = []
        for digest in digests:
            data = self._folder.get(digest)
            if data is None:
                raise Fault("an output is no longer on disk as it was", rule="workspace.missing")
            blobs.append(data)
        return tuple(blobs)

    def _check(self, storage: Signed[StorageReceipt], effect: PostReceipt) -> Signed[StorageReceipt]:
        """The storage receipt, if it is one that the chain would take (R8)."""
        body, order, bid = storage.body, self._opened.announcement.order.body, self._opened.bid.body
        if body.holder not in (*order.holders, *bid.holders) or body.lease != self._opened.lease:
            raise Fault("the storage receipt is by another holder or for another lease", rule="R8.holder")
        if body.receipt != compute_receipt_id(self._gear.chain_id, effect.receipt.body):
            raise Fault("the storage receipt is for another receipt", rule="R8.receipt")
        if body.kept_until < order.deadline + order.windows.acceptance:
            raise Fault("the holder keeps the outputs too short for the chain to take its receipt", rule="R8.kept")
        try:
            verify(storage, Tag.STORAGE, self._gear.chain_id, body.holder)
        except BadSignature as error:
            raise Fault(
                f"the broker's storage receipt is not signed by its holder: {error}", rule="R8.holder"
            ) from error
        return storage


def divide_blobs(sizes: Mapping[bytes, int]) -> tuple[tuple[bytes, ...], tuple[tuple[bytes, ...], ...]]:
    """(blobs that ride with the delivery, the smallest first; the others in parcels, each with room for at least one).
    Blobs are named by digest.
    """
    ordered = sorted(sizes, key=lambda digest: (sizes[digest], digest))
    inline, room = 0, INLINE_BYTES
    while inline < min(len(ordered), MAX_INLINE) and sizes[ordered[inline]] <= room:
        room -= sizes[ordered[inline]]
        inline += 1
    parcels: list[list[bytes]] = []
    room = 0
    for digest in ordered[inline:]:
        if sizes[digest] > room or len(parcels[-1]) >= MAX_INLINE:
            parcels.append([])
            room = MAX_PARCEL_BYTES
        parcels[-1].append(digest)
        room -= sizes[digest]
    return tuple(ordered[:inline]), tuple(tuple(parcel) for parcel in parcels)
