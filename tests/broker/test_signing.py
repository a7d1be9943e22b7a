"""Signatures of requests, attacks as rows: what is altered, what it is refused for (RFC 9421, threats.md rows 1, 6,
37).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from http_message_signatures import HTTPMessageSigner
from multidict import CIMultiDict

from broker.rpc import signing
from broker.rpc.signing import (
    AHEAD_MS,
    TAG,
    WINDOW_MS,
    BadRequestSignature,
    HttpMessage,
    RequestChecker,
    compute_content_digest,
    sign_request,
)
from chain.base.errors import Refused, Unavailable
from chain.base.hashing import compute_digest
from chain.base.keys import Signer, show_key
from tests.broker.world import NOW, REQUESTER, STRANGER

URL = "http://127.0.0.1:7101/v1/orders?after=1&wait_ms=2"
BODY = compute_digest(b"the body")


def make(method: str = "POST", url: str = URL, nonce: str = "nonce-0001", signer: Signer = REQUESTER) -> HttpMessage:
    message = HttpMessage(method, url, CIMultiDict({"X-Other": "1"}))
    sign_request(signer, message, BODY, NOW, nonce)
    return message


def test_a_signed_request_names_its_account_and_body() -> None:
    signed = RequestChecker().check(make(), NOW)
    assert (signed.account, signed.digest) == (REQUESTER.key, BODY)
    signed.check_body(BODY)
    with pytest.raises(BadRequestSignature) as refused:
        signed.check_body(compute_digest(b"another body"))
    assert refused.value.rule == "http.digest"


def test_the_form_on_the_wire_is_that_of_the_standards() -> None:
    headers = make().headers
    assert headers["Content-Digest"] == f"sha-256=:{b64encode(BODY).decode()}:"
    assert headers["Signature-Input"] == (
        'tally=("@method" "@authority" "@path" "@query" "content-digest");'
        f'created={NOW // 1000};keyid="{show_key(REQUESTER.key)}";alg="ed25519";nonce="nonce-0001";tag="{TAG}"'
    )


def alter(**changes: str) -> Callable[[HttpMessage], HttpMessage]:
    def apply(message: HttpMessage) -> HttpMessage:
        message.method = changes.get("method", message.method)
        message.url = changes.get("url", message.url)
        return message

    return apply


def header(name: str, change: Callable[[str], str | None]) -> Callable[[HttpMessage], HttpMessage]:
    def apply(message: HttpMessage) -> HttpMessage:
        value = change(message.headers.popone(name))
        if value is not None:
            message.headers[name] = value
        return message

    return apply


def flip(text: str) -> str:
    """The signature with one bit of its bytes changed."""
    place = len("tally=:") + 10
    return text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]


def twice(message: HttpMessage) -> HttpMessage:
    for name in ("Signature-Input", "Signature"):
        value = message.headers[name]
        message.headers[name] = f"{value}, again{value.removeprefix('tally')}"
    return message


INPUT = "Signature-Input"
ATTACKS: list[tuple[str, Callable[[HttpMessage], HttpMessage], str]] = [
    ("no signature", header("Signature", lambda _: None), "http.signature"),
    ("no signature input", header(INPUT, lambda _: None), "http.signature"),
    ("another method", alter(method="PUT"), "http.signature"),
    ("another path", alter(url=URL.replace("orders", "leases")), "http.signature"),
    ("another case of the path", alter(url=URL.replace("orders", "Orders")), "http.signature"),
    ("another query", alter(url=URL.replace("after=1", "after=0")), "http.signature"),
    ("no query", alter(url=URL.partition("?")[0]), "http.signature"),
    ("another host", alter(url=URL.replace("127.0.0.1", "127.0.0.2")), "http.signature"),
    ("another port", alter(url=URL.replace("7101", "7102")), "http.signature"),
    ("no body digest", header("Content-Digest", lambda _: None), "http.signature"),
    (
        "another body digest",
        header("Content-Digest", lambda _: compute_content_digest(compute_digest(b"x"))),
        "http.signature",
    ),
    ("a flipped signature", header("Signature", flip), "http.signature"),
    ("another account", header(INPUT, lambda text: text.replace(show_key(REQUESTER.key), show_key(STRANGER.key))), ""),
    ("an account that is none", header(INPUT, lambda text: text.replace("did:key:z6Mk", "did:key:z6Mz")), ""),
    ("another nonce", header(INPUT, lambda text: text.replace("0001", "0002")), "http.signature"),
    ("another time", header(INPUT, lambda text: text.replace(f"={NOW // 1000}", f"={NOW // 1000 + 1}")), ""),
    ("another algorithm", header(INPUT, lambda text: text.replace("ed25519", "hmac-sha256")), "http.signature"),
    ("another purpose", header(INPUT, lambda text: text.replace(TAG, "elsewhere")), "http.signature"),
    ("the query not covered", header(INPUT, lambda text: text.replace(' "@query"', "")), "http.signature"),
    ("the digest not covered", header(INPUT, lambda text: text.replace(' "content-digest"', "")), "http.signature"),
    ("two signatures", twice, "http.signature"),
    ("no structured field", header(INPUT, lambda _: "tally=("), "http.signature"),
]


@pytest.mark.parametrize(("attack", "rule"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_an_altered_request_is_refused(attack: Any, rule: str) -> None:
    with pytest.raises(Refused) as refused:
        RequestChecker().check(attack(make()), NOW)
    assert refused.value.rule == (rule or "http.signature")


def sign_with(**changes: Any) -> HttpMessage:
    """A request whose signature covers something else than ours do."""
    message = HttpMessage(
        "POST", URL, CIMultiDict({"Content-Digest": changes.pop("digest", compute_content_digest(BODY))})
    )
    parameters: dict[str, Any] = {
        "key_id": show_key(REQUESTER.key),
        "created": datetime.fromtimestamp(NOW // 1000, tz=UTC),
        "nonce": "nonce-0001",
        "label": "tally",
        "tag": TAG,
        "covered_component_ids": signing.COVERED,
        "use_existing_digest": True,
    }
    signer = HTTPMessageSigner(signature_algorithm=signing.LibsodiumEd25519, key_resolver=signing._Keys(REQUESTER))
    signer.sign(message, **{**parameters, **changes})
    return message


HOLES: list[tuple[str, dict[str, Any], str]] = [
    ("as it should be", {}, ""),
    ("covers too little", {"covered_component_ids": ("@method", "@path")}, "http.signature"),
    ("no nonce", {"nonce": None}, "http.signature"),
    ("a short nonce", {"nonce": "1234567"}, "http.signature"),
    ("a long nonce", {"nonce": "1" * 65}, "http.signature"),
    ("another digest algorithm", {"digest": f"sha-512=:{b64encode(bytes(64)).decode()}:"}, "http.digest"),
    (
        "two digests",
        {"digest": f"{compute_content_digest(BODY)}, sha-512=:{b64encode(bytes(64)).decode()}:"},
        "http.digest",
    ),
]


@pytest.mark.parametrize(("changes", "rule"), [row[1:] for row in HOLES], ids=[row[0] for row in HOLES])
def test_a_signature_with_a_hole_is_refused(changes: dict[str, Any], rule: str) -> None:
    message = sign_with(**changes)
    if not rule:
        assert RequestChecker().check(message, NOW).account == REQUESTER.key
        return
    with pytest.raises(Refused) as refused:
        RequestChecker().check(message, NOW)
    assert refused.value.rule == rule


SECOND = NOW // 1000 * 1000


@pytest.mark.parametrize(
    ("now", "good"),
    [
        (SECOND + WINDOW_MS, True),
        (SECOND + WINDOW_MS + 1_000, False),
        (SECOND - AHEAD_MS, True),
        (SECOND - AHEAD_MS - 1, False),
    ],
    ids=["just young enough", "too old", "just near enough", "from the future"],
)
def test_requests_age(now: int, good: bool) -> None:
    if good:
        RequestChecker().check(make(), now)
        return
    with pytest.raises(BadRequestSignature) as refused:
        RequestChecker().check(make(), now)
    assert refused.value.rule == "http.stale"


def test_a_change_counts_once() -> None:
    checker = RequestChecker()
    checker.check(make(), NOW)
    for later in (0, 1, WINDOW_MS - 1):
        with pytest.raises(BadRequestSignature) as refused:
            checker.check(make(), NOW + later)
        assert refused.value.rule == "http.replay"
    checker.check(make(nonce="nonce-0002"), NOW)
    checker.check(make(signer=STRANGER), NOW)


def test_a_read_may_be_repeated() -> None:
    checker = RequestChecker()
    for method in ("GET", "HEAD", "GET"):
        checker.check(make(method), NOW)


def test_a_bad_signature_uses_no_nonce_up() -> None:
    checker = RequestChecker()
    with pytest.raises(Refused):
        checker.check(alter(method="PUT")(make()), NOW)
    checker.check(make(), NOW)


def test_nonces_are_forgotten_only_when_their_request_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "MAX_NONCES", 2)
    checker = RequestChecker()
    for number in range(2):
        checker.check(make(nonce=f"nonce-{number:04}"), NOW)
    with pytest.raises(Unavailable) as full:
        checker.check(make(nonce="nonce-0009"), NOW)
    assert full.value.rule == "http.nonces"
    later = NOW + WINDOW_MS + AHEAD_MS + 2_000
    message = HttpMessage("POST", URL, CIMultiDict())
    sign_request(REQUESTER, message, BODY, later, "nonce-0000")
    checker.check(message, later)
