"""Handing in a receipt: large blobs first, small ones with it, again and again until the holder signs for all of it
(R8).
"""

from __future__ import annotations

from broker.protocol.api import INLINE_BYTES, Delivery
from chain.base.errors import Fault, Refused, Unavailable
from chain.base.hashing import Tag
from chain.base.keys import BadSignature, Signed, verify
from chain.ledger.terms.work import StorageReceipt, compute_receipt_id
from chain.runtime.logs import get_logger, show_job
from provider.daemon.links import Backoff, Gear
from provider.daemon.workspace import LeaseFolder
from provider.work.events import LeaseOpened, PostReceipt, Stored, StoreFailed
from provider.work.papers import EMPTY

MAX_INLINE = 64
"""Most blobs in one delivery."""

MAX_REFUSALS = 12
"""A broker may refuse what it does not know yet (it was restarted, its chain lags); after so many tries it means it."""

_FOR_GOOD = ("R5.", "codec.", "signature.")
"""Refusals of the receipt itself: the same bytes are refused again."""


class HandOver:
    """Brings one receipt to the broker."""

    def __init__(self, gear: Gear, opened: LeaseOpened, folder: LeaseFolder) -> None:
        self._gear = gear
        self._opened = opened
        self._folder = folder
        self._log = get_logger("work").bind(job=show_job(opened.bid.body.order))

    async def post(self, effect: PostReceipt) -> Stored | StoreFailed:
        """Try until the broker holds everything or says that it never will."""
        digests = {effect.receipt.body.log} | {one.body.output for one in effect.records}
        digests |= {one.body.error for one in effect.records}
        blobs = [self._folder.get(digest) for digest in sorted(digests - {EMPTY})]
        if any(blob is None for blob in blobs):
            return StoreFailed("an output is no longer on disk")
        small, large = split_blobs([blob for blob in blobs if blob is not None])
        delivery = Delivery(effect.receipt, effect.records, tuple(small))
        backoff, refusals = Backoff(), 0
        while True:
            try:
                for blob in large:
                    await self._gear.broker.put_blob(blob)
                storage = await self._gear.broker.deliver(self._opened.lease, delivery)
                return Stored(self._check(storage, effect))
            except Unavailable as error:
                self._log.info("the broker is waited for", why=str(error))
            except (Refused, Fault) as error:
                refusals += 1
                self._log.warning("the broker refuses the receipt", why=str(error))
                if refusals >= MAX_REFUSALS or error.rule.startswith(_FOR_GOOD):
                    return StoreFailed(str(error)[:1_000])
            await backoff.wait()

    def _check(self, storage: Signed[StorageReceipt], effect: PostReceipt) -> Signed[StorageReceipt]:
        """The storage receipt, if it is one that the chain would take (R8)."""
        body, order, bid = storage.body, self._opened.announcement.order.body, self._opened.bid.body
        if body.holder not in (*order.holders, *bid.holders) or body.lease != self._opened.lease:
            raise Fault("the storage receipt is by another holder or for another lease", rule="R8.holder")
        if body.receipt != compute_receipt_id(self._gear.chain_id, effect.receipt.body):
            raise Fault("the storage receipt is for another receipt", rule="R8.receipt")
        try:
            verify(storage, Tag.STORAGE, self._gear.chain_id, body.holder)
        except BadSignature as error:
            raise Fault(
                f"the broker's storage receipt is not signed by its holder: {error}", rule="R8.holder"
            ) from error
        return storage


def split_blobs(blobs: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """(those that ride with the delivery, smallest first; those that go ahead by themselves)."""
    small: list[bytes] = []
    room = INLINE_BYTES
    ordered = sorted(blobs, key=len)
    for blob in ordered:
        if len(blob) > room or len(small) >= MAX_INLINE:
            break
        room -= len(blob)
        small.append(blob)
    return small, ordered[len(small) :]
