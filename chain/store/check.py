"""Checks of a store that is opened again: the tail of the chain of blocks, its indexes, and the sign guard.

A store that contradicts itself stops the node at once; going on would sign on top of it. The state root is checked
by whoever loads the state
(`chain.ledger.ledger`). Cost: about 0.3 ms a block of the tail. Blocks before the tail are checked by those who read
proofs.
"""

from __future__ import annotations

from chain.base.codec import encode
from chain.base.errors import Refused
from chain.base.merkle import compute_root
from chain.consensus.beacon import compute_beacon, verify_reveal
from chain.consensus.messages import Step
from chain.consensus.seats import Seats
from chain.consensus.tally import verify_certificate
from chain.ledger.blocks import Header, compute_block_id
from chain.ledger.transactions import compute_transaction_id
from chain.store.database import ChainStore, CorruptStore, FinalBlock, compute_row_digest
from chain.store.guard import check_guard

__all__ = ["TAIL", "check_store"]

TAIL = 1024
"""Blocks checked at start: more than any crash can touch, and checked within a second."""

_SMALL = 256 << 20
"""Bytes up to which SQLite's own check of all pages is run as well (it reads the whole file)."""


def check_store(store: ChainStore, chain_id: bytes, origin: Header, heads: tuple[bytes, ...], seats: Seats) -> Header:
    """The header of the last final block, after all checks; `origin` is the header of genesis, `heads` the seats'
    beacon heads.

    Raises `CorruptStore`, or `Fault` under `R16.guard-older` or `R16.store-older`.
    """
    _check_pages(store)
    height = store.get_height()
    _check_counts(store, height)
    first = max(1, height - TAIL + 1)
    parent, reveal = origin, heads[0]
    for number in range(max(1, first - 1), height + 1):
        final = _get(store, number)
        if number >= first:
            _check_link(store, chain_id, parent, reveal, final)
            _check_content(store, chain_id, final, seats)
        parent, reveal = final.block.header, final.block.reveal
    if store.read("SELECT count(*) FROM guard WHERE slot < ?", parent.slot)[0][0]:
        raise CorruptStore(store.path, "the sign guard holds slots that are long decided")
    check_guard(store, seats.epoch, parent.slot, compute_block_id(chain_id, parent) if height else b"")
    return parent


def _check_pages(store: ChainStore) -> None:
    if store.path.stat().st_size <= _SMALL:
        found = store.read("PRAGMA quick_check(1)")
        if found != [("ok",)]:
            raise CorruptStore(store.path, f"its pages do not fit together ({found[0][0]})")


def _get(store: ChainStore, height: int) -> FinalBlock:
    final = store.get_block(height)
    if final is None:
        raise CorruptStore(store.path, f"block {height} is missing")
    return final


def _check_link(store: ChainStore, chain_id: bytes, parent: Header, reveal: bytes, final: FinalBlock) -> None:
    header = final.block.header
    links = (
        final.id == compute_block_id(chain_id, header),
        header.parent == compute_block_id(chain_id, parent),
        header.height == parent.height + 1,
        header.slot > parent.slot,
        header.time > parent.time,
        header.beacon == compute_beacon(chain_id, parent.beacon, final.block.reveal),
    )
    if not all(links):
        raise CorruptStore(store.path, f"block {header.height} does not follow from the one before")
    try:
        verify_reveal(final.block.reveal, header.slot, reveal, parent.slot)
    except Refused as error:
        raise CorruptStore(store.path, f"block {header.height}: {error.message}") from error


def _check_content(store: ChainStore, chain_id: bytes, final: FinalBlock, seats: Seats) -> None:
    header = final.block.header
    try:
        vote = verify_certificate(final.certificate, seats, chain_id)
    except Refused as error:
        raise CorruptStore(store.path, f"the certificate of block {header.height}: {error.message}") from error
    if (vote.step, vote.slot, vote.block) != (Step.FINALIZE, header.slot, final.id):
        raise CorruptStore(store.path, f"the certificate beside block {header.height} is for something else")
    ids = [compute_transaction_id(signed.body) for signed in final.block.transactions]
    indexed = store.read("SELECT id, place FROM transactions WHERE height = ? ORDER BY place", header.height)
    if compute_root(ids) != header.transactions or indexed != [(tx, place) for place, tx in enumerate(ids)]:
        raise CorruptStore(store.path, f"the transactions of block {header.height} are not those of its header")
    _check_rows(store, header.height)


def _check_rows(store: ChainStore, height: int) -> None:
    """What no header commits to: signatures, remembered ids, events and their index."""
    body, recent, digest = store.read("SELECT body, recent, digest FROM blocks WHERE height = ?", height)[0]
    rows = store.read("SELECT payload, topics FROM events WHERE height = ? ORDER BY place", height)
    events = [(_as_bytes(payload), _as_bytes(topics)) for payload, topics in rows]
    if compute_row_digest(_as_bytes(body), _as_bytes(recent), events) != digest:
        raise CorruptStore(store.path, f"signatures, events or remembered ids of block {height} were changed")
    for place, (_, topics) in enumerate(events):
        for start in range(0, len(topics), 32):
            query = "SELECT 1 FROM topics WHERE topic = ? AND height = ? AND place = ?"
            if not store.read(query, topics[start : start + 32], height, place):
                raise CorruptStore(store.path, f"the index of events misses one of block {height}")


def _check_counts(store: ChainStore, height: int) -> None:
    """Nothing is missing and nothing was put in, also before the tail."""
    counts = store.read(
        "SELECT (SELECT count(*) FROM blocks), (SELECT coalesce(sum(length(topics)), 0) FROM events),"
        " (SELECT 32 * count(*) FROM topics), (SELECT count(*) FROM events WHERE height > ?)",
        height,
    )[0]
    if counts[0] != height or counts[1] != counts[2] or counts[3]:
        raise CorruptStore(store.path, f"blocks or events up to {height} are missing, or there are more than that")


def _as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else encode(str(value))
