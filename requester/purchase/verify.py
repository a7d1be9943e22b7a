"""The whole of a finished job checked offline, by someone who holds its documents and the genesis file.

Checks 1 to 37 are those of `checks`; 40 is the chain's id, 41 to 45 the settlement: acceptance, and the settle in a
final block (R7, R16 c). No network, no trust in whoever kept the documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from broker.protocol.api import Delivery
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import Signed
from chain.ledger.genesis import Genesis, compute_chain_id
from chain.ledger.terms.agreement import Order
from chain.ledger.terms.work import Acceptance, Span, compute_receipt_id
from chain.ledger.transactions import Settle
from chain.light.verifier import TxProof, verify_transaction
from requester.purchase import checks, deliveries
from requester.purchase.checking import Check, Verdict, is_signed_by, judge
from requester.purchase.documents import Documents


@dataclass(frozen=True)
class SettlementFacts:
    """The end of a job: its delivery (already checked), the acceptance and the proof of the settle."""

    chain: bytes
    genesis: Genesis
    order: Order
    delivery: Delivery
    acceptance: Signed[Acceptance]
    proof: TxProof


def _is_wholly_accepted(facts: SettlementFacts) -> bool:
    receipt, body = facts.delivery.receipt.body, facts.acceptance.body
    if body.lease != receipt.lease or body.receipt != compute_receipt_id(facts.chain, receipt):
        return False
    return body.segments == (Span(receipt.first, receipt.count),)


def _is_final(facts: SettlementFacts) -> bool:
    try:
        verify_transaction(facts.genesis, facts.proof)
    except Refused:
        return False
    return True


def _is_settle(facts: SettlementFacts) -> bool:
    body = facts.proof.transaction.body.body
    return isinstance(body, Settle) and body.receipt.body == facts.delivery.receipt.body


def _is_my_acceptance(facts: SettlementFacts) -> bool:
    body = facts.proof.transaction.body.body
    return isinstance(body, Settle) and body.acceptance.body == facts.acceptance.body


CHAIN_CHECKS: tuple[Check[tuple[Genesis, Documents]], ...] = (
    Check(40, "genesis", "the job is on the chain of this genesis", lambda f: compute_chain_id(f[0]) == f[1].chain),
)

SETTLEMENT_CHECKS: tuple[Check[SettlementFacts], ...] = (
    Check(
        41,
        "acceptance signature",
        "the acceptance is signed by the requester or its watcher",
        lambda f: (
            f.acceptance.body.signer in (f.order.requester, f.order.watcher)
            and is_signed_by(f.acceptance, Tag.ACCEPTANCE, f.chain, f.acceptance.body.signer)
        ),
    ),
    Check(42, "acceptance", "the acceptance is of every segment of this receipt", _is_wholly_accepted),
    Check(43, "finality", "the transaction stands in a final block of this chain", _is_final),
    Check(44, "settle", "the transaction settles this receipt", _is_settle),
    Check(45, "settled acceptance", "the transaction carries this acceptance", _is_my_acceptance),
)


def verify_job(documents: Documents, blobs: Mapping[bytes, bytes], genesis: Genesis) -> list[Verdict]:
    """All verdicts in order: 40, 1 to 37, 41 to 45. `blobs` maps digests to bytes, which are hashed again.

    What follows a failure is skipped; a document that is missing fails the first check that needs it.
    """
    verdicts = judge(CHAIN_CHECKS, (genesis, documents))
    groups: tuple[Callable[[], list[Verdict]], ...] = (
        lambda: judge(checks.AWARD_CHECKS, _make_award_facts(documents)),
        lambda: judge(checks.BOOK_CHECKS, _make_book_facts(documents)),
        lambda: judge((*deliveries.DELIVERY_CHECKS, *deliveries.BLOB_CHECKS), _make_delivery_facts(documents, blobs)),
        lambda: judge(SETTLEMENT_CHECKS, _make_settlement_facts(documents, genesis)),
    )
    for group in groups:
        if all(verdict.passed for verdict in verdicts):
            verdicts += group()
    return verdicts


def is_verified(verdicts: list[Verdict]) -> bool:
    """Whether every check there is was made and passed."""
    return len(verdicts) == COUNT and all(verdict.passed for verdict in verdicts)


COUNT = sum(
    len(table)
    for table in (
        CHAIN_CHECKS,
        checks.AWARD_CHECKS,
        checks.BOOK_CHECKS,
        deliveries.DELIVERY_CHECKS,
        deliveries.BLOB_CHECKS,
        SETTLEMENT_CHECKS,
    )
)
"""How many checks a finished job passes."""


def _make_award_facts(documents: Documents) -> checks.AwardFacts | None:
    if documents.award is None or documents.bid is None:
        return None
    return checks.AwardFacts(
        documents.chain, documents.order, documents.spec, documents.award, documents.bid, documents.lease
    )


def _make_book_facts(documents: Documents) -> checks.BookFacts | None:
    if documents.award is None or documents.book is None:
        return None
    tried = frozenset(documents.tried)
    return checks.BookFacts(documents.chain, documents.order.body, documents.award.body, documents.book, tried)


def _make_delivery_facts(documents: Documents, blobs: Mapping[bytes, bytes]) -> deliveries.DeliveryFacts | None:
    if None in (documents.delivery, documents.storage):
        return None
    assert documents.award is not None
    assert documents.bid is not None
    assert documents.delivery is not None
    assert documents.storage is not None
    return deliveries.DeliveryFacts(
        documents.chain,
        documents.order.body,
        documents.spec,
        documents.award.body,
        documents.bid.body,
        documents.delivery,
        documents.storage,
        {digest: len(data) for digest, data in blobs.items() if compute_digest(data) == digest},
    )


def _make_settlement_facts(documents: Documents, genesis: Genesis) -> SettlementFacts | None:
    if documents.delivery is None or documents.acceptance is None or documents.proof is None:
        return None
    return SettlementFacts(
        documents.chain,
        genesis,
        documents.order.body,
        documents.delivery,
        documents.acceptance,
        documents.proof,
    )
