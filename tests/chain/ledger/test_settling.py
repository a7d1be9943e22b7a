"""Rows 3 and 11: each check of R5, R7, R8, R9 and R18 on receipts has a row that is refused under its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.keys import Signed
from chain.base.merkle import EMPTY_ROOT
from chain.ledger.entries import Cover, LeaseRecord, OrderRecord, get_order_key
from chain.ledger.rules.coverage import MAX_COVERAGE
from chain.ledger.rules.receipts import check_receipt
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause
from chain.ledger.terms.work import Span
from chain.ledger.transactions import Body, Cancel, Deliver, GiveBack, Settle
from tests.chain.ledger.world import SIGNERS, World, digest

Case = tuple[World, LeaseRecord]


def settle(
    receipt: dict[str, Any] | None = None,
    acceptance: dict[str, Any] | None = None,
    *,
    count: int | None = None,
    receipt_by: str = "provider",
    accepted_by: str = "requester",
) -> Callable[[World, LeaseRecord], Settle]:
    """A settle with fields of receipt and acceptance changed, signed by others if told."""

    def make(w: World, lease: LeaseRecord) -> Settle:
        changed = w.receipt(lease, count, **(receipt or {}))
        accepted = w.acceptance(lease, changed, **(acceptance or {}))
        return Settle(w.sign(receipt_by, Tag.RECEIPT, changed), w.sign(accepted_by, Tag.ACCEPTANCE, accepted))

    return make


def deliver(
    receipt: dict[str, Any] | None = None,
    storage: dict[str, Any] | None = None,
    *,
    count: int | None = None,
    receipt_by: str = "provider",
    stored_by: str = "holder",
) -> Callable[[World, LeaseRecord], Deliver]:
    """A delivery with fields of receipt and storage receipt changed, signed by others if told."""

    def make(w: World, lease: LeaseRecord) -> Deliver:
        changed = w.receipt(lease, count, **(receipt or {}))
        kept = w.storage(lease, changed, **{k: v(w) if callable(v) else v for k, v in (storage or {}).items()})
        proof = w.prove(lease, changed) if changed.lease == lease.id else ()
        return Deliver(w.sign(receipt_by, Tag.RECEIPT, changed), w.sign(stored_by, Tag.STORAGE, kept), proof)

    return make


def spans(*pairs: tuple[int, int]) -> dict[str, Any]:
    return {"segments": tuple(Span(*pair) for pair in pairs)}


STRANGER, WATCHER, RIVAL = (SIGNERS[name].key for name in ("stranger", "watcher", "rival"))
BOTH: list[Callable[..., Any]] = [settle, deliver]
RECEIPT_ROWS = [
    (make(**changes), rule)
    for make in BOTH
    for rule, changes in cast(
        list[tuple[str, dict[str, Any]]],
        [
            ("lease.unknown", {"receipt": {"lease": digest("no")}}),
            ("R5.provider", {"receipt": {"provider": RIVAL}}),
            ("R5.first", {"receipt": {"first": 1}}),
            ("R5.count", {"count": 11}),
            ("R18.empty", {"receipt": {"records": EMPTY_ROOT}}),
            ("R18.empty", {"count": 0, "receipt": {"records": digest("something")}}),
            ("R5.signature", {"receipt_by": "rival"}),
            ("R9.cause", {"count": 0, "receipt": {"cause": Cause.PROGRAM}}),
        ],
    )
]
SETTLE_ROWS = [
    (settle(), ""),
    (settle(None, {"lease": digest("no")}), "R7.lease"),
    (settle(None, {"receipt": digest("no")}), "R7.receipt"),
    (settle(None, {"signer": STRANGER}, accepted_by="stranger"), "R7.signer"),
    (settle(None, {"signer": WATCHER}, accepted_by="watcher"), ""),
    (settle(None, spans((0, 5), (4, 6))), "R7.spans"),
    (settle(None, spans((5, 5), (0, 5))), "R7.spans"),
    (settle(None, spans((0, 0), (0, 10))), "R7.spans"),
    (settle(None, spans((0, 11))), "R7.range"),
    (settle(None, spans((0, 4), (4, 6))), ""),
    (settle(accepted_by="stranger"), "R7.signature"),
    (settle(None, spans((0, 9))), "R7.sender"),
    (settle(None, {"segments": ()}), "R7.sender"),
    (settle(count=9), "R7.sender"),
    (settle({"cause": Cause.PROGRAM}, count=3), ""),
    (settle({"cause": Cause.HOST}, count=3), "R7.sender"),
]
DELIVER_ROWS = [
    (deliver(), ""),
    (deliver(count=9), "R8.final"),
    (deliver({"cause": Cause.HOST}, count=9), "R8.final"),
    (deliver(count=0), "R8.final"),
    (deliver(None, {"lease": digest("no")}), "R8.lease"),
    (deliver(None, {"receipt": digest("no")}), "R8.receipt"),
    (deliver(None, {"holder": STRANGER}, stored_by="stranger"), "R8.holder"),
    (deliver(None, {"kept_until": lambda w: w.now + 1 + 600_000 - 1}), "R8.kept"),
    (deliver(None, {"kept_until": lambda w: w.now + 1 + 600_000}), ""),
    (deliver(stored_by="stranger"), "R8.signature"),
    *((deliver({"cause": cause}, count=3), "") for cause in sorted(FINAL_FAILURES)),
]


@pytest.mark.parametrize(("make", "rule"), [*RECEIPT_ROWS, *SETTLE_ROWS, *DELIVER_ROWS])
def test_each_check_of_settle_and_deliver_is_refused_by_its_name(
    make: Callable[[World, LeaseRecord], Body], rule: str
) -> None:
    w = World()
    lease = w.open_lease(watcher=WATCHER)
    assert w.refusal("broker", make(w, lease)) == rule


def test_a_receipt_for_another_lease_is_refused_even_under_this_ones_checks() -> None:
    """R5: the receipt names its lease, so none can be shown for another of the same provider."""
    w = World()
    lease = w.open_lease()
    with pytest.raises(Refused, match=r"R5\.lease"):
        check_receipt(lease, w.receipt(lease, lease=digest("other")))


@pytest.mark.parametrize("make", [settle(None, spans((0, 9))), settle(count=9), settle(None, {"segments": ()})])
def test_what_is_not_wholly_accepted_only_the_provider_settles(make: Callable[[World, LeaseRecord], Settle]) -> None:
    """R7, the empty acceptance: else a requester accepts nothing and keeps the outputs."""
    w = World()
    lease = w.open_lease()
    body = make(w, lease)
    for sender in ("requester", "broker", "rival"):
        assert w.refusal(sender, body) == "R7.sender"
    assert w.refusal("provider", body) == ""


def test_a_watcher_that_the_order_does_not_name_accepts_nothing() -> None:
    w = World()
    lease = w.open_lease()
    assert w.refusal("provider", settle(None, {"signer": WATCHER}, accepted_by="watcher")(w, lease)) == "R7.signer"


def test_after_a_cut_no_receipt_reaches_beyond_what_was_served() -> None:
    """R7: after rows 7, 10 and 12 a settle covers at most those r segments."""
    w = World()
    lease = w.open_lease()
    w.put_lease(lease, held=4)
    lease = w.lease(lease.id)
    assert w.refusal("provider", settle(count=5)(w, lease)) == "R5.count"
    assert w.refusal("broker", settle(count=4)(w, lease)) == ""
    assert w.refusal("broker", settle(count=3)(w, lease)) == "R7.sender"


def test_an_acceptance_cannot_break_the_orders_record_into_too_many_spans() -> None:
    """R2: the record must stay readable; a simpler acceptance, or silence, still pays."""
    w = World()
    lease = w.open_lease()
    key = get_order_key(lease.terms.order)
    entries = w.ledger._head.state.entries
    record = entries[key]
    assert isinstance(record, OrderRecord)
    others = tuple(Cover(1, 2 * i, 1) for i in range(MAX_COVERAGE - 1))
    entries[key] = msgspec.structs.replace(record, coverage=(*record.coverage, *others))
    assert w.refusal("provider", settle(None, spans((0, 2), (5, 2)))(w, lease)) == "R2.spans"
    assert w.refusal("provider", settle(None, spans((0, 2)))(w, lease)) == ""


@pytest.mark.parametrize("body", [settle(), deliver()])
def test_signatures_of_receipts_are_checked_last(body: Callable[[World, LeaseRecord], Body]) -> None:
    """R15 d: one flipped bit in an inner signature is refused under its own name, when all else is right."""
    w = World()
    lease = w.open_lease()
    good = body(w, lease)
    rules = set()
    for name in good.__struct_fields__:
        signed: Signed[Any] | tuple[bytes, ...] = getattr(good, name)
        if isinstance(signed, tuple):
            continue
        broken = msgspec.structs.replace(signed, signature=bytes([signed.signature[0] ^ 1]) + signed.signature[1:])
        rules.add(w.refusal("provider", msgspec.structs.replace(good, **{name: broken})))
    assert rules == ({"R5.signature", "R7.signature"} if isinstance(good, Settle) else {"R5.signature", "R8.signature"})


@pytest.mark.parametrize(
    ("sender", "body", "rule"),
    [
        ("provider", Cancel, "lease.cancel.sender"),
        ("broker", Cancel, "lease.cancel.sender"),
        ("requester", Cancel, ""),
        ("requester", GiveBack, "lease.return.sender"),
        ("rival", GiveBack, "lease.return.sender"),
        ("provider", GiveBack, ""),
    ],
)
def test_only_the_party_itself_cancels_or_returns(sender: str, body: type[Cancel] | type[GiveBack], rule: str) -> None:
    w = World()
    assert w.refusal(sender, body(w.open_lease().id)) == rule
    assert w.refusal(sender, body(digest("no"))) == "lease.unknown"
