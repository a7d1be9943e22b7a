"""Accounts and signatures: Ed25519 by libsodium alone (R18, design.md section 3).

One strict rule on every node: OpenSSL accepts edge cases that libsodium refuses, and a chain whose nodes disagree on
a signature splits. PEM files are
`chain.runtime.keystore`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Generic, TypeVar

import msgspec
import nacl.bindings
from nacl.exceptions import CryptoError

from chain.base.codec import Record, check_bounds
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_signed_bytes

Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""An account: its Ed25519 public key, 32 bytes."""

Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
"""An Ed25519 signature, 64 bytes."""

T = TypeVar("T")

_MULTICODEC_ED25519 = b"\xed\x01"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class BadSignature(Refused):
    """A signature that does not belong to the key, tag, chain and body it is claimed for."""


class BadKey(Refused):
    """32 bytes that are no torsion-free Ed25519 point, or a text that shows no key."""


class Signed(Record, Generic[T], frozen=True, tag="signed"):
    """A body and one signature over it. Which tag and whose key is the reader's knowledge, never the message's."""

    body: T
    signature: Signature


class Signer:
    """Holds a secret key and signs. Signing is deterministic (RFC 8032), so machines may hold one."""

    __slots__ = ("_secret", "key")

    def __init__(self, seed: bytes) -> None:
        """Make the signer of a 32-byte seed."""
        self.key, self._secret = nacl.bindings.crypto_sign_seed_keypair(seed)

    def sign_bytes(self, message: bytes) -> bytes:
        """64-byte signature over `message` as it stands. For our own objects use `sign`."""
        return nacl.bindings.crypto_sign(message, self._secret)[:64]

    def sign(self, tag: Tag, chain_id: bytes, body: T) -> Signed[T]:
        """Sign `body` under a domain tag and a chain id. Raises `BadEncoding` rather than sign what no reader would
        take.
        """
        message = compute_signed_bytes(tag, chain_id, body)
        check_bounds(message[64:])
        return Signed(body, self.sign_bytes(message))

    def __repr__(self) -> str:
        return f"Signer({show_key(self.key)})"


def is_signature(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether libsodium accepts `signature` over `message` for `key`."""
    if len(key) != 32 or len(signature) != 64:
        return False
    try:
        nacl.bindings.crypto_sign_open(signature + message, key)
    except CryptoError:
        return False
    return True


def verify(signed: Signed[T], tag: Tag, chain_id: bytes, key: bytes) -> T:
    """The body, if `key` signed it under `tag` on this chain; else raises `BadSignature` whose rule names the tag."""
    if not is_signature(key, compute_signed_bytes(tag, chain_id, signed.body), signed.signature):
        raise BadSignature(
            f"the signature under {tag.value} is not by {show_key(key)}", rule=f"signature.{tag.name.lower()}"
        )
    return signed.body


@lru_cache(maxsize=65_536)
def is_key(key: bytes) -> bool:
    """Whether 32 bytes are a torsion-free point (R18). 65 us, hence the cache."""
    return len(key) == 32 and bool(nacl.bindings.crypto_core_ed25519_is_valid_point(key))


def check_key(key: bytes) -> bytes:
    """Return `key`, or raise `BadKey` (R18)."""
    if not is_key(key):
        raise BadKey(f"{key.hex()} is no torsion-free Ed25519 key", rule="R18.key")
    return key


def show_key(key: bytes) -> str:
    """`did:key:z6Mk…` of an account (W3C did:key, multibase base58-btc)."""
    number = int.from_bytes(_MULTICODEC_ED25519 + key, "big")
    digits = ""
    while number:
        number, rest = divmod(number, 58)
        digits = _BASE58[rest] + digits
    return f"did:key:z{digits}"


def parse_key(text: str) -> bytes:
    """Account of a `did:key:z…` or of 64 hex digits; raises `BadKey` for anything else, a second spelling of a key
    included. White space around it is passed over.
    """
    text = text.strip()
    try:
        if text.startswith("did:key:z"):
            raw = _decode_base58(text.removeprefix("did:key:z"))
            key = raw.removeprefix(_MULTICODEC_ED25519)
            if show_key(key) != text:
                raise ValueError(text)
        else:
            key = bytes.fromhex(text)
            if key.hex() != text.lower():
                raise ValueError(text)
    except (ValueError, OverflowError) as error:
        raise BadKey(f"{text[:80]!r} is no account; it looks like did:key:z6Mk…", rule="R18.key") from error
    return check_key(key)


def _decode_base58(text: str) -> bytes:
    if len(text) > 64:
        raise ValueError(text)
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    return number.to_bytes(34, "big")
