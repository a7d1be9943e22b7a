"""Every domain tag in one list, and how bytes are made ready to be signed or hashed (R18).

Signed bytes = SHA-256(tag) || chain id || canonical payload; object ids = SHA-256 of the same. Exceptions, which
carry no tag of ours: blob digests (plain
SHA-256), RFC 6962 nodes (`chain.base.merkle`), DSSE's PAE, TLS.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any

import msgspec

from chain.base.codec import encode
from chain.base.errors import Fault

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""A SHA-256 value, 32 bytes."""

Salt = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""16 bytes that make two otherwise equal objects different."""

NO_CHAIN = bytes(32)
"""Chain id under which a genesis itself is hashed: its digest becomes the chain id."""


class Tag(StrEnum):
    """All domain tags. An object signed under one tag is worthless under any other (threats.md row 3)."""

    GENESIS = "tally/genesis/1"
    TX = "tally/tx/1"
    BLOCK = "tally/block/1"
    VOTE = "tally/vote/1"
    SEATS = "tally/seats/1"
    BEACON = "tally/beacon/1"
    RESULT = "tally/result/1"
    STATE_KEY = "tally/state-key/1"
    STATE_LEAF = "tally/state-leaf/1"
    STATE_NODE = "tally/state-node/1"
    ORDER = "tally/order/1"
    BID = "tally/bid/1"
    AWARD = "tally/award/1"
    LEASE = "tally/lease/1"
    RECEIPT = "tally/receipt/1"
    STORAGE = "tally/storage/1"
    ACCEPTANCE = "tally/acceptance/1"
    JOB = "tally/job/1"
    RUNTIME = "tally/runtime/1"
    OFFER = "tally/offer/1"
    ANNOUNCEMENT = "tally/announcement/1"
    DECLINE = "tally/decline/1"
    ACKNOWLEDGEMENT = "tally/acknowledgement/1"
    BOOK = "tally/book/1"
    PROGRESS = "tally/progress/1"
    WITHDRAWAL = "tally/withdrawal/1"
    CANCELLATION = "tally/cancellation/1"
    ENVELOPE = "tally/envelope/1"


@lru_cache(maxsize=64)
def _prefix(tag: Tag) -> bytes:
    return hashlib.sha256(tag.value.encode()).digest()


def compute_signed_bytes(tag: Tag, chain_id: bytes, body: Any) -> bytes:
    """The bytes a signature is made over: SHA-256(tag) || chain id || canonical encoding of `body`. Raises `Fault`
    under `R18.chain` unless the chain id has 32 bytes: any other length would blur where the body begins.
    """
    if len(chain_id) != 32:
        raise Fault(f"a chain id of {len(chain_id)} bytes; it has 32", rule="R18.chain")
    return _prefix(tag) + chain_id + encode(body)


def compute_id(tag: Tag, chain_id: bytes, body: Any) -> bytes:
    """Id of an object: SHA-256 of what would be signed. It does not depend on any signature (threats.md row 6)."""
    return hashlib.sha256(compute_signed_bytes(tag, chain_id, body)).digest()


def compute_digest(data: bytes | bytearray | memoryview) -> bytes:
    """Digest of a blob: plain SHA-256, 32 bytes."""
    return hashlib.sha256(data).digest()


def show_digest(digest: bytes) -> str:
    """`sha256:<hex>` for people."""
    return f"sha256:{digest.hex()}"
