"""Signatures of HTTP requests: RFC 9421 with the content digest of RFC 9530, made and checked by libsodium (design.md
section 3).

A signature covers method, authority, path, query, content digest, time of making and a nonce; `keyid` is the
account's did:key, so no key directory is needed. The checker takes a request that is at most `WINDOW_MS` old, and one
that changes something only once (threats.md rows 1 and 37). Nothing here knows aiohttp: a request is its method, URL
and headers.

Not here: whether the account may do what it asks (`broker.service`), and reading the body.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

from http_message_signatures import (
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureAlgorithm,
    HTTPSignatureKeyResolver,
    InvalidSignature,
)
from http_message_signatures.exceptions import HTTPMessageSignaturesException
from multidict import CIMultiDict

from chain.base.errors import Refused, Unavailable
from chain.base.keys import Signer, is_signature, parse_key, show_key

TAG = "tallystick-broker-1"
"""RFC 9421 `tag`: what these signatures are for. It is signed, so that a signature made for another service is worth
nothing here.
"""

LABEL = "tally"

COVERED = ("@method", "@authority", "@path", "@query", "content-digest")
"""What every signature covers besides its own parameters."""

BINDING = ("range", "upload-length", "upload-offset")
"""Header fields that say which bytes are meant: where one is there, the signature covers it too."""

WINDOW_MS = 60_000
"""Oldest request taken; nonces are remembered this long. A client's clock may be this wrong."""

AHEAD_MS = 5_000
"""How far a request's time may lie ahead of ours."""

MAX_NONCES = 100_000
"""Nonces remembered; with all in use, changing requests are told to come back later rather than forgetting one."""

_SAFE = frozenset({"GET", "HEAD"})


class BadRequestSignature(Refused):
    """A request without a signature by the account it claims, for this request, now. Leaves: `http.signature`,
    `http.stale`, `http.replay`, `http.digest`, `http.key`.
    """


class HttpMessage:
    """What is signed of a request: `method` in capitals, absolute `url` as it goes over the wire, `headers`."""

    __slots__ = ("headers", "method", "url")

    def __init__(self, method: str, url: str, headers: CIMultiDict[str]) -> None:
        self.method = method
        self.url = url
        self.headers = headers


class SignedBy:
    """Who signed a request, and the content digest it promises for the body (32 bytes)."""

    __slots__ = ("account", "digest")

    def __init__(self, account: bytes, digest: bytes) -> None:
        self.account = account
        self.digest = digest

    def check_body(self, digest: bytes) -> None:
        """Raise `BadRequestSignature` (`http.digest`) unless the body that came has the digest that was signed."""
        if digest != self.digest:
            raise BadRequestSignature("the body is not the one that was signed", rule="http.digest")


class LibsodiumEd25519(HTTPSignatureAlgorithm):
    """Ed25519 by libsodium alone, as everywhere in this project (R18)."""

    algorithm_id = "ed25519"

    def __init__(self, public_key: bytes | None = None, private_key: Signer | None = None) -> None:
        self._public = public_key
        self._private = private_key

    def sign(self, message: bytes) -> bytes:
        """64-byte signature."""
        if self._private is None:
            raise BadRequestSignature("no key to sign with", rule="http.key")
        return self._private.sign_bytes(message)

    def verify(self, signature: bytes, message: bytes) -> None:
        """Raise unless the signature is by the public key."""
        if self._public is None or not is_signature(self._public, message, signature):
            raise InvalidSignature("not signed by this key")


class _Keys(HTTPSignatureKeyResolver):
    """The key id is the key: did:key of a torsion-free point."""

    def __init__(self, signer: Signer | None = None) -> None:
        self._signer = signer

    def resolve_public_key(self, key_id: str) -> bytes:
        return parse_key(key_id)

    def resolve_private_key(self, key_id: str) -> Signer | None:
        return self._signer


class _Verifier(HTTPMessageVerifier):
    """The library's verifier, without its own clock: `RequestChecker` judges time."""

    def validate_created_and_expires(self, sig_input: Any, max_age: timedelta | None = None) -> None:
        if type(sig_input.params.get("created")) is not int:
            raise InvalidSignature("no time of making")


def compute_content_digest(digest: bytes) -> str:
    """The `Content-Digest` field for a body with this SHA-256 (RFC 9530)."""
    return f"sha-256=:{b64encode(digest).decode()}:"


def sign_request(signer: Signer, message: HttpMessage, digest: bytes, now: int, nonce: str) -> None:
    """Add `Content-Digest`, `Signature-Input` and `Signature` to the message's headers.

    `digest` is the SHA-256 of the body (of the empty string where there is none), `now` an Instant, `nonce` something
    this account never used before.
    """
    message.headers["Content-Digest"] = compute_content_digest(digest)
    HTTPMessageSigner(signature_algorithm=LibsodiumEd25519, key_resolver=_Keys(signer)).sign(
        message,
        key_id=show_key(signer.key),
        created=datetime.fromtimestamp(now // 1000, tz=UTC),
        nonce=nonce,
        label=LABEL,
        tag=TAG,
        covered_component_ids=_list_covered(message),
        use_existing_digest=True,
    )


class RequestChecker:
    """Checks signatures of requests against `now`, and remembers the nonces of those that change something."""

    def __init__(self) -> None:
        self._verifier = _Verifier(signature_algorithm=LibsodiumEd25519, key_resolver=_Keys())
        self._seen: set[tuple[bytes, str]] = set()
        self._order: deque[tuple[int, tuple[bytes, str]]] = deque()

    def check(self, message: HttpMessage, now: int) -> SignedBy:
        """Who signed this request; raises `BadRequestSignature`, or `Unavailable` (`http.nonces`) where too many are
        remembered. The body is checked later against `SignedBy.digest`.
        """
        # 1. Exactly one signature for us, over all that must be covered, by the key it names.
        try:
            covered = _list_covered(message)
            found = self._verifier.verify(message, max_age=None, expect_tag=TAG, require_components=covered)
        except HTTPMessageSignaturesException as error:
            raise self._refuse(str(error)) from error
        if len(found) != 1:
            raise self._refuse("more than one signature")
        parameters = found[0].parameters
        # 2. Made now, as far as clocks agree.
        created = int(parameters["created"]) * 1000
        if not now - WINDOW_MS - 1000 < created <= now + AHEAD_MS:
            raise BadRequestSignature(
                f"the request was signed {(now - created) // 1000} s ago by our clock; "
                f"at most {WINDOW_MS // 1000} are taken: set the clock right",
                rule="http.stale",
            )
        # 3. A digest of the body, in the one form we use.
        digest = _parse_content_digest(found[0].covered_components['"content-digest"'])
        signed = SignedBy(parse_key(str(parameters["keyid"])), digest)
        # 4. Not seen before, if it changes something.
        nonce = str(parameters.get("nonce", ""))
        if not 8 <= len(nonce) <= 64:
            raise self._refuse("a nonce of 8 to 64 characters is needed")
        if message.method not in _SAFE:
            self._remember((signed.account, nonce), created + WINDOW_MS + AHEAD_MS + 1000, now)
        return signed

    def _remember(self, nonce: tuple[bytes, str], until: int, now: int) -> None:
        while self._order and self._order[0][0] < now:
            self._seen.discard(self._order.popleft()[1])
        if nonce in self._seen:
            raise BadRequestSignature("this very request was made before", rule="http.replay")
        if len(self._seen) >= MAX_NONCES:
            raise Unavailable("too many requests within the last minute; try again", rule="http.nonces")
        self._seen.add(nonce)
        self._order.append((until, nonce))

    def _refuse(self, why: str) -> BadRequestSignature:
        return BadRequestSignature(f"no valid signature on the request: {why}", rule="http.signature")


def _list_covered(message: HttpMessage) -> tuple[str, ...]:
    return (*COVERED, *(name for name in BINDING if name in message.headers))


def _parse_content_digest(text: str) -> bytes:
    head, _, rest = text.partition("=:")
    try:
        digest = b64decode(rest.removesuffix(":"), validate=True)
    except ValueError:
        digest = b""
    if head != "sha-256" or len(digest) != 32 or text != compute_content_digest(digest):
        raise BadRequestSignature("Content-Digest must be one sha-256 of the body (RFC 9530)", rule="http.digest")
    return digest
