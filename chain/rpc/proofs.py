"""What a node hands to those who don't believe it: canonical structs, verified by `chain.light.verifier`.

They lie here because both the client and the node speak them. Nothing is checked here but form.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from chain.base.codec import Record
from chain.base.hashing import Digest
from chain.base.keys import Signed
from chain.base.units import Count
from chain.consensus.messages import Certificate
from chain.ledger.blocks import Header
from chain.ledger.transactions import Transaction
from chain.ledger.tree import MapProof

__all__ = ["MAX_DESCENDANTS", "MAX_LEASE_BYTES", "MAX_PATH", "Finality", "LeaseProof", "TxProof"]

MAX_DESCENDANTS = 1024
"""Most headers between a block and the descendant whose certificate makes it final (R16 c)."""

MAX_PATH = 32
"""Most nodes of an audit path: a block's tree has at most 2^32 leaves, far more than any block."""


MAX_LEASE_BYTES = 1 << 19
"""Largest encoding of a lease: most of it are the weights of its segments."""


class Finality(Record, frozen=True, tag="finality"):
    """Why a block is final (R16 c): a finalize certificate for it, or for the last of `descendants`, whose headers
    lead there one by one.
    """

    header: Header
    descendants: Annotated[tuple[Header, ...], msgspec.Meta(max_length=MAX_DESCENDANTS)]
    certificate: Certificate


class TxProof(Record, frozen=True, tag="tx-proof"):
    """Why a transaction happened: a final header, and the RFC 6962 path from the transaction's id, leaf `index` of
    `size`, to the header's root of transactions.
    """

    finality: Finality
    transaction: Signed[Transaction]
    index: Count
    size: Count
    path: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_PATH)]


class LeaseProof(Record, frozen=True, tag="lease-proof"):
    """How a lease stood after a final block: the state under the header's root holds `value`, the canonical
    `LeaseRecord`, under `key` (`chain.ledger.entries`). A later block may have changed it; a lease that has ended never
    changes any more.
    """

    finality: Finality
    key: Annotated[bytes, msgspec.Meta(min_length=33, max_length=33)]
    value: Annotated[bytes, msgspec.Meta(max_length=MAX_LEASE_BYTES)]
    proof: MapProof
