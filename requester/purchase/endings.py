"""Numbered checks of how a lease ended: its final receipt (29), acceptance (41, 42), state on the chain (50-55) and the
transaction that ended it (43-45, 56), what its provenance says (49).

Nothing here is taken from a node on trust: the lease's state stands under a header that a quorum of the seats signed,
and the sums are worked out again from award, bid and order (R4, R7, R13). Not here: what goes before (`checks`,
`deliveries`), all leases together (`verify`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.protocol.jobs import JobSpec
from broker.protocol.provenance import WorkFacts, check_provenance
from chain.base.codec import encode
from chain.base.errors import Refused
from chain.base.hashing import Tag
from chain.base.merkle import compute_root
from chain.base.units import compute_share
from chain.ledger.entries import LeaseRecord, LeaseState
from chain.ledger.genesis import Genesis
from chain.ledger.money import compute_prefix_weight
from chain.ledger.terms.agreement import Order, compute_award_id, compute_bid_id, compute_order_id
from chain.ledger.terms.work import SegmentRecord, Span, compute_receipt_id, is_final
from chain.ledger.transactions import Body, GiveBack, Settle, compute_transaction_id
from chain.light.verifier import verify_lease, verify_transaction
from requester.purchase.checking import Check, is_signed_by
from requester.purchase.deliveries import EMPTY
from requester.purchase.documents import LeasePapers
from requester.purchase.phases import LEASE_ENDS
from requester.purchase.quote import CANCEL_SHARE, UNSTARTED_SHARE


@dataclass(frozen=True)
class EndFacts:
    """The end of a lease: its papers (award and receipt already checked), all its records, and its state if that is
    proved. `envelope` is the provenance as bytes, None where it is not here.
    """

    chain: bytes
    genesis: Genesis
    order: Order
    spec: JobSpec
    papers: LeasePapers
    records: Sequence[SegmentRecord]
    state: LeaseRecord | None
    envelope: bytes | None = field(default=None, repr=False)


def read_state(genesis: Genesis, papers: LeasePapers) -> LeaseRecord | None:
    """The lease as its proof shows it; None without a proof, or with one that does not hold or is of another lease."""
    if papers.state is None:
        return None
    try:
        record = verify_lease(genesis, papers.state)
    except Refused:
        return None
    return record if record.id == papers.lease else None


# ---- acceptance and provenance ----


def _is_accepted_by_owner(facts: EndFacts) -> bool:
    acceptance = facts.papers.acceptance
    if acceptance is None:
        return True
    signer = acceptance.body.signer
    mine = signer in (facts.order.requester, facts.order.watcher)
    return mine and is_signed_by(acceptance, Tag.ACCEPTANCE, facts.chain, signer)


def _is_wholly_accepted(facts: EndFacts) -> bool:
    acceptance, receipt = facts.papers.acceptance, facts.papers.receipt
    if acceptance is None:
        return True
    if receipt is None or acceptance.body.lease != facts.papers.lease:
        return False
    if acceptance.body.receipt != compute_receipt_id(facts.chain, receipt.body):
        return False
    return acceptance.body.segments == (Span(receipt.body.first, receipt.body.count),)


def _is_provenance_true(facts: EndFacts) -> bool:
    receipt = facts.papers.receipt
    if receipt is None or receipt.body.provenance == EMPTY:
        return True
    if facts.envelope is None:
        return False
    work = WorkFacts(
        chain=facts.chain,
        order=facts.order,
        order_id=compute_order_id(facts.chain, facts.order),
        spec=facts.spec,
        lease=facts.papers.lease,
        records=facts.records,
        environment=receipt.body.environment,
        finished=receipt.body.finished,
    )
    try:
        check_provenance(facts.envelope, receipt.body.provider, work)
    except Refused:
        return False
    return True


# ---- the state on the chain ----


def _are_terms_agreed(facts: EndFacts) -> bool:
    """What the chain keeps of order, award and bid is what they say."""
    assert facts.state is not None
    terms, order = facts.state.terms, facts.order
    award, bid = facts.papers.award.body, facts.papers.bid.body
    weights = order.weights[award.first : award.first + award.count]
    price = award.price * (sum(weights) if weights else award.count)
    ids = (
        compute_order_id(facts.chain, order),
        compute_award_id(facts.chain, award),
        compute_bid_id(facts.chain, bid),
    )
    parties = (order.requester, bid.provider, order.auctioneer, order.watcher, (*order.holders, *bid.holders))
    work = (order.kind, order.comparator, order.segment_wall, bid.lanes, order.windows, order.deadline)
    part = (award.replica, award.first, award.count, weights, award.start)
    money = (award.price, price, award.commission, compute_share(price, bid.bond), order.damages, order.panel)
    return (
        (terms.order, terms.award, terms.bid) == ids
        and (terms.requester, terms.provider, terms.auctioneer, terms.watcher, terms.holders) == parties
        and (terms.kind, terms.comparator, terms.segment_wall, terms.lanes, terms.windows, terms.deadline) == work
        and (terms.replica, terms.first, terms.count, terms.weights, terms.start) == part
        and (terms.unit, terms.price, terms.commission, terms.bond, terms.damages, terms.panel) == money
    )


def _is_receipt_noted(facts: EndFacts) -> bool:
    """The chain judged the lease by these records: by this receipt, or by one of a shorter prefix of them (R5). Where
    it judged none, work that is here would be told as if it were proved.
    """
    assert facts.state is not None
    note, receipt = facts.state.receipt, facts.papers.receipt
    if note is None or note.count == 0:
        return facts.state.state is not LeaseState.SETTLED and receipt is None and not facts.records
    if receipt is None or note.count > receipt.body.count:
        return False
    if note.count == receipt.body.count:
        return note.id == compute_receipt_id(facts.chain, receipt.body)
    prefix = facts.records[: note.count]
    return note.records == compute_root([encode(record) for record in prefix]) and note.cause is prefix[-1].cause


def _is_final_for_lease(facts: EndFacts) -> bool:
    """R7, R9: what was paid for is all that the lease still held, or ended by a failure."""
    assert facts.state is not None
    receipt = facts.papers.receipt
    if facts.state.state is not LeaseState.SETTLED or facts.state.served == 0:
        return True
    if receipt is None:
        return False
    return receipt.body.count > facts.state.held or is_final(receipt.body, facts.state.held)


def _is_paid_right(facts: EndFacts) -> bool:
    """R4, R13, rows 3, 5, 7, 10, 12, 13: to the unit what the served segments cost at the award's price."""
    assert facts.state is not None
    state, terms = facts.state, facts.state.terms
    locked = terms.price + compute_share(terms.price, terms.commission)
    served = terms.unit * compute_prefix_weight(terms, state.served)
    fees = (0, min(terms.unit, compute_share(terms.price, CANCEL_SHARE)), terms.unit)
    due = min(terms.bond, compute_share(terms.price - served, terms.damages))
    if state.fee not in fees and not terms.weights:
        return False
    paid, commission, spent, damages = 0, 0, 0, range(1)
    match state.state:
        case LeaseState.SETTLED:
            paid, commission, damages = max(state.fee, served), compute_share(served, terms.commission), range(due + 1)
            spent = paid + commission
        case LeaseState.UNSTARTED:
            spent = compute_share(terms.price, UNSTARTED_SHARE)
        case LeaseState.RETURNED | LeaseState.EXPIRED:
            damages = range(due, due + 1)
        case LeaseState.CANCELLED:
            paid = spent = state.fee
        case _:
            return False
    return (state.paid, state.commission, state.refunded) == (paid, commission, locked - spent) and (
        state.damages in damages
    )


def _is_seen_true(facts: EndFacts) -> bool:
    """What was kept of the node's word is what the state proves."""
    assert facts.state is not None
    seen, state = facts.papers.seen, facts.state
    if seen is None:
        return False
    note = b"" if state.receipt is None else state.receipt.id
    told = (seen.lease, seen.state, seen.first, seen.count, seen.held, seen.served, seen.receipt)
    money = (seen.paid, seen.commission, seen.refunded, seen.damages, seen.burned)
    return told == (
        state.id,
        state.state.value,
        state.terms.first,
        state.terms.count,
        state.held,
        state.served,
        note,
    ) and money == (state.paid, state.commission, state.refunded, state.damages, state.burned)


END_CHECKS: tuple[Check[EndFacts], ...] = (
    Check(49, "provenance statement", "the provenance says what receipt and records say", _is_provenance_true),
    Check(
        41,
        "acceptance signature",
        "the acceptance, if there is one, is signed by the requester or its watcher",
        _is_accepted_by_owner,
    ),
    Check(42, "acceptance", "the acceptance is of every segment of this receipt", _is_wholly_accepted),
    Check(
        50,
        "lease proof",
        "the lease's state stands under a final header of this chain",
        lambda f: f.state is not None,
    ),
    Check(51, "lease terms", "the lease was opened on what order, award and bid say", _are_terms_agreed),
    Check(
        52,
        "lease end",
        "the lease has ended, and nothing is locked in it",
        lambda f: f.state is not None and f.state.state.value in LEASE_ENDS and not f.state.locked and not f.state.bond,
    ),
    Check(
        53,
        "lease receipt",
        "the chain judged the lease by this receipt, or by a prefix of it; where by none, none is here",
        _is_receipt_noted,
    ),
    Check(29, "final", "what was paid for is all that the lease held, or ends by a failure", _is_final_for_lease),
    Check(54, "payment", "what was paid, taken and refunded is what the served segments cost", _is_paid_right),
    Check(55, "lease as seen", "the lease as it was kept is the lease as it is proved", _is_seen_true),
)


# ---- the transaction that ended it ----


def _get_body(facts: EndFacts) -> Body | None:
    proof = facts.papers.proof
    return None if proof is None else proof.transaction.body.body


def _is_transaction_named(facts: EndFacts) -> bool:
    """When it ended is looked at by `caseverify`: only a case file speaks of that to others."""
    proof, seen = facts.papers.proof, facts.papers.seen
    tx = "" if proof is None else compute_transaction_id(proof.transaction.body).hex()
    return seen is not None and seen.tx == tx


def _is_transaction_final(facts: EndFacts) -> bool:
    if facts.papers.proof is None:
        return True
    try:
        verify_transaction(facts.genesis, facts.papers.proof)
    except Refused:
        return False
    return True


def _is_end_of_lease(facts: EndFacts) -> bool:
    """Row 3 by this receipt; rows 5 and 7 of this lease. All other ends are a timer's, and have no transaction."""
    assert facts.state is not None
    body, receipt = _get_body(facts), facts.papers.receipt
    if body is None:
        return facts.state.state not in (LeaseState.UNSTARTED, LeaseState.RETURNED)
    if facts.state.state is LeaseState.SETTLED:
        return isinstance(body, Settle) and receipt is not None and body.receipt.body == receipt.body
    given_back = facts.state.state in (LeaseState.UNSTARTED, LeaseState.RETURNED)
    return given_back and isinstance(body, GiveBack) and body.lease == facts.papers.lease


def _is_my_acceptance(facts: EndFacts) -> bool:
    body, acceptance = _get_body(facts), facts.papers.acceptance
    return not isinstance(body, Settle) or (acceptance is not None and body.acceptance.body == acceptance.body)


SETTLEMENT_CHECKS: tuple[Check[EndFacts], ...] = (
    Check(
        56,
        "last transaction",
        "the transaction that is proved is the one that was seen to end the lease, or there is none",
        _is_transaction_named,
    ),
    Check(43, "finality", "the transaction stands in a final block of this chain", _is_transaction_final),
    Check(44, "settle", "the transaction settles this receipt, or gives back this lease", _is_end_of_lease),
    Check(45, "settled acceptance", "the transaction carries this acceptance", _is_my_acceptance),
)
