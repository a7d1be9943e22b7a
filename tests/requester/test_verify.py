"""A finished job checked offline: nothing that was changed passes, each change named by its check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.codec import decode, encode
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_digest
from chain.ledger.terms.work import Acceptance, Span, compute_receipt_id
from chain.ledger.transactions import Deliver, Settle, sign_transaction
from requester.purchase.documents import MAX_DOCUMENTS_BYTES, Documents
from requester.purchase.verify import COUNT, is_verified, verify_job
from tests.requester.fakes import FakeMarket
from tests.requester.world import BROKER, NOW, PROVIDER, REQUESTER, RIVAL, World, change

Spoil = Callable[[Documents], Documents]
OTHER = compute_digest(b"other")
MARKET = FakeMarket()


def make_documents(world: World) -> Documents:
    body = Acceptance(
        world.lease, compute_receipt_id(world.chain, world.receipt_body), REQUESTER.key, (Span(0, 1),), release=False
    )
    acceptance = REQUESTER.sign(Tag.ACCEPTANCE, world.chain, body)
    return Documents(
        chain=world.chain,
        order=world.order,
        spec=world.spec,
        lease=world.lease,
        award=world.award,
        bid=world.bid,
        book=world.book,
        delivery=world.delivery,
        storage=world.storage,
        acceptance=acceptance,
        proof=prove(Settle(world.receipt, acceptance)),
    )


def prove(body: Any) -> Any:
    return MARKET.prove(sign_transaction(PROVIDER, MARKET.chain, body, NOW + 60_000, bytes(16)))


WORLD = World(chain=MARKET.chain)
GOOD = make_documents(WORLD)
BLOBS = {compute_digest(blob): blob for blob in WORLD.blobs}


def first_failure(documents: Documents, blobs: dict[bytes, bytes] | None = None) -> int:
    verdicts = verify_job(documents, BLOBS if blobs is None else blobs, MARKET.genesis)
    failed = [one.number for one in verdicts if not one.passed]
    assert is_verified(verdicts) == (not failed)
    return failed[0] if failed else 0


def test_a_good_job_passes_every_check() -> None:
    verdicts = verify_job(GOOD, BLOBS, MARKET.genesis)
    assert [one.number for one in verdicts] == [40, *range(1, 20), *range(20, 38), *range(41, 46)]
    assert is_verified(verdicts)
    assert len(verdicts) == COUNT


def accept(signing: Any = REQUESTER, /, **fields: Any) -> Spoil:
    """Another acceptance, honestly settled on the chain."""

    def spoil(documents: Documents) -> Documents:
        assert documents.acceptance is not None
        acceptance = signing.sign(Tag.ACCEPTANCE, MARKET.chain, change(documents.acceptance.body, **fields))
        changed: Documents = change(documents, acceptance=acceptance, proof=prove(Settle(WORLD.receipt, acceptance)))
        return changed

    return spoil


def swap_settle(make: Callable[[], Any]) -> Spoil:
    return lambda documents: change(documents, proof=prove(make()))


def bend_proof(**fields: Any) -> Spoil:
    return lambda documents: change(documents, proof=change(documents.proof, **fields))


def drop(name: str) -> Spoil:
    return lambda documents: change(documents, **{name: None})


def keep_by_provider(documents: Documents) -> Documents:
    changed: Documents = change(documents, storage=PROVIDER.sign(Tag.STORAGE, MARKET.chain, WORLD.storage_body))
    return changed


def other_receipt() -> Any:
    body = change(WORLD.receipt_body, finished=NOW)
    return Settle(PROVIDER.sign(Tag.RECEIPT, MARKET.chain, body), GOOD.acceptance)  # type: ignore[arg-type]  # GOOD is complete


def other_acceptance() -> Any:
    body = change(GOOD.acceptance.body, release=True)  # type: ignore[union-attr]  # GOOD is complete
    return Settle(WORLD.receipt, REQUESTER.sign(Tag.ACCEPTANCE, MARKET.chain, body))


FORGERIES: list[tuple[str, int, Spoil]] = [
    ("another chain", 40, lambda d: change(d, chain=OTHER)),
    ("another order", 1, lambda d: change(d, order=change(d.order, body=change(d.order.body, cap=9)))),
    ("another spec", 1, lambda d: change(d, spec=change(d.spec, seed=9))),
    ("an award by a rival", 2, lambda d: change(d, award=RIVAL.sign(Tag.AWARD, d.chain, WORLD.award_body))),
    ("another price", 2, lambda d: change(d, award=change(d.award, body=change(WORLD.award_body, price=9)))),
    ("the rival's bid", 6, lambda d: change(d, bid=WORLD.bids[0])),
    ("another lease", 12, lambda d: change(d, lease=OTHER)),
    ("no award", 1, drop("award")),
    ("no bid", 1, drop("bid")),
    ("no book", 13, drop("book")),
    ("a book without the rival", 13, lambda d: change(d, book=change(d.book, body=change(WORLD.book_body, bids=())))),
    ("a winner explained away", 19, lambda d: change(d, tried=(WORLD.award_body.bid,))),
    ("no delivery", 20, drop("delivery")),
    ("no storage receipt", 20, drop("storage")),
    ("a storage receipt of the provider", 32, keep_by_provider),
    ("no acceptance", 41, drop("acceptance")),
    ("no proof", 41, drop("proof")),
    ("an acceptance by the provider", 41, accept(PROVIDER, signer=PROVIDER.key)),
    ("an acceptance signed by the broker", 41, accept(BROKER)),
    ("an acceptance of another lease", 42, accept(lease=OTHER)),
    ("an acceptance of another receipt", 42, accept(receipt=OTHER)),
    ("an acceptance of nothing", 42, accept(segments=())),
    ("an acceptance of more", 42, accept(segments=(Span(0, 2),))),
    ("a leaf that is not there", 43, bend_proof(index=1)),
    ("a tree of another size", 43, bend_proof(size=3)),
    ("a truncated path", 43, bend_proof(path=())),
    ("a delivery instead of a settle", 44, swap_settle(lambda: Deliver(WORLD.receipt, WORLD.storage))),
    ("a settle of another receipt", 44, swap_settle(other_receipt)),
    ("a settle with another acceptance", 45, swap_settle(other_acceptance)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "number", "spoil"), FORGERIES, ids=[row[0] for row in FORGERIES])
def test_a_consistent_forgery_is_named_by_its_check(name: str, number: int, spoil: Spoil) -> None:
    assert first_failure(spoil(GOOD)) == number, name


@pytest.mark.parametrize("index", [0, 2], ids=["output", "log"])
def test_blobs_are_hashed_again(index: int) -> None:
    digest = compute_digest(WORLD.blobs[index])
    number = {0: 35, 2: 37}[index]
    assert first_failure(GOOD, {**BLOBS, digest: WORLD.blobs[index] + b"!"}) == number
    assert first_failure(GOOD, {key: blob for key, blob in BLOBS.items() if key != digest}) == number


RAW = encode(GOOD)


@given(position=st.integers(0, len(RAW) - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_refused(position: int, bit: int) -> None:
    spoiled = bytearray(RAW)
    spoiled[position] ^= 1 << bit
    try:
        documents = decode(bytes(spoiled), Documents, max_bytes=MAX_DOCUMENTS_BYTES)
    except Refused:
        return
    assert first_failure(documents) > 0


def test_documents_survive_their_encoding() -> None:
    assert decode(RAW, Documents, max_bytes=MAX_DOCUMENTS_BYTES) == GOOD
