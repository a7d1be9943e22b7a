"""Each signature is verified once: a bounded memo of what libsodium has already accepted.

A memo of a pure function changes no outcome; it spares the second and third check of a transaction (admission,
proposal, application). Refusals are not remembered, so
nobody can fill the memo with rubbish.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from chain.base.hashing import Tag, compute_digest, compute_signed_bytes
from chain.base.keys import BadSignature, Signed, is_signature, show_key

MAX_REMEMBERED = 65_536
"""Accepted signatures remembered: two full windows of the default quota of 1,000 busy accounts; 32 bytes each."""


class SignatureMemo:
    """Verifies signatures and remembers the good ones."""

    __slots__ = ("_known", "_limit", "verified")

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._limit = limit
        self.verified = 0

    def check(self, signed: Signed[Any], tag: Tag, chain_id: bytes, key: bytes, rule: str) -> None:
        """Raise `BadSignature` under `rule` unless `key` signed the body under `tag` on this chain (R18)."""
        message = compute_signed_bytes(tag, chain_id, signed.body)
        name = compute_digest(key + signed.signature + message)
        if name in self._known:
            self._known.move_to_end(name)
            return
        self.verified += 1
        if not is_signature(key, message, signed.signature):
            raise BadSignature(f"the signature under {tag.value} is not by {show_key(key)}", rule=rule)
        self._known[name] = None
        if len(self._known) > self._limit:
            self._known.popitem(last=False)
