"""Blocks as the ledger and the light client read them: the final header of R16 (g), and the certificate of one or
many seats.

The engine of consensus sees a block as an id and bytes; only the ledger reads these.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from chain.base.codec import Record
from chain.base.hashing import Digest, Tag, compute_id
from chain.base.keys import Signed
from chain.base.units import Count, Height, Instant
from chain.ledger.transactions import Transaction

MAX_BLOCK_BYTES = 1 << 20
"""Largest encoding of a block."""

MAX_BLOCK_TXS = 4096
"""Most transactions of a block."""


class Header(Record, frozen=True, tag="header"):
    """R16 (g). `transactions` and `results` are RFC 6962 roots (leaves: transaction ids; canonical results), `state`
    the root after this block, `seats` the digest of the epoch's seats, `beacon` that of R17.

    The header of genesis has height 0, slot 0 and a zero parent.
    """

    epoch: Count
    slot: Height
    height: Height
    time: Instant
    parent: Digest
    seats: Digest
    seats_changed: Height
    transactions: Digest
    results: Digest
    state: Digest
    beacon: Digest


class Block(Record, frozen=True, tag="block"):
    """A header, the beacon preimage its leader reveals (R17), and the signed transactions in order. Due timers fire
    before them and are implied by the state.
    """

    header: Header
    reveal: Digest
    transactions: Annotated[tuple[Signed[Transaction], ...], msgspec.Meta(max_length=MAX_BLOCK_TXS)]


def compute_block_id(chain_id: bytes, header: Header) -> bytes:
    """Id of a block: that of its header, which commits to all the rest."""
    return compute_id(Tag.BLOCK, chain_id, header)
