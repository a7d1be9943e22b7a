"""What the chain would show and prove of a lease: its record by the ledger's own arithmetic, blocks of one seat."""

from __future__ import annotations

from typing import Any

import msgspec

from chain.base.codec import encode
from chain.base.hashing import Tag
from chain.base.keys import Signed, Signer
from chain.base.merkle import compute_root, prove_inclusion
from chain.base.units import MICRO, compute_share
from chain.consensus.messages import Certificate, SeatSignature, Step, Vote
from chain.ledger import money
from chain.ledger.blocks import Header, compute_block_id
from chain.ledger.entries import LeaseRecord, LeaseState, LeaseTerms, get_lease_key
from chain.ledger.genesis import Seat, compute_chain_id, compute_seats_digest, make_genesis
from chain.ledger.rules.receipts import make_note
from chain.ledger.terms.agreement import compute_bid_id
from chain.ledger.terms.work import Acceptance, Receipt, Span, compute_receipt_id
from chain.ledger.transactions import Body, SignedTransaction, compute_transaction_id, sign_transaction
from chain.ledger.tree import StateTree, get_hash
from chain.rpc.proofs import Finality, LeaseProof, TxProof
from requester.purchase.documents import Documents, LeasePapers
from requester.purchase.events import LeaseSeen
from tests.requester.world import NOW, PROVIDER, REQUESTER, World

SEAT = Signer(b"s" * 32)
GENESIS = make_genesis("test", NOW, [Seat(SEAT.key, bytes(32))], [(REQUESTER.key, 1_000 * MICRO)])
CHAIN_ID = compute_chain_id(GENESIS)


# ---- records ----


def make_terms(world: World) -> LeaseTerms:
    """What the ledger keeps of a world's award."""
    order, award, bid = world.order.body, world.award.body, world.bid.body
    price = award.price * award.count
    return LeaseTerms(
        order=world.order_id,
        award=world.award_id,
        bid=compute_bid_id(world.chain, bid),
        requester=order.requester,
        provider=bid.provider,
        auctioneer=order.auctioneer,
        requester_key=order.requester,
        provider_key=bid.provider,
        watcher=order.watcher,
        holders=(*order.holders, *bid.holders),
        kind=order.kind,
        comparator=order.comparator,
        start=award.start,
        replica=award.replica,
        first=award.first,
        count=award.count,
        weights=(),
        segment_wall=order.segment_wall,
        lanes=bid.lanes,
        unit=award.price,
        price=price,
        commission=award.commission,
        bond=compute_share(price, bid.bond),
        damages=order.damages,
        panel=order.panel,
        deposit=order.deposit,
        windows=order.windows,
        opened=world.now + 2_000,
        height=3,
        deadline=order.deadline,
    )


def make_open(world: World) -> LeaseRecord:
    """The lease as it opens."""
    terms = make_terms(world)
    return LeaseRecord(
        id=world.lease,
        terms=terms,
        state=LeaseState.OPEN,
        timer=terms.deadline,
        receipt=None,
        held=terms.count,
        called=None,
        fee=0,
        locked=terms.price + compute_share(terms.price, terms.commission),
        bond=terms.bond,
        paid=0,
        commission=0,
        refunded=0,
        damages=0,
        burned=0,
    )


def apply_split(lease: LeaseRecord, split: money.Split, **fields: Any) -> LeaseRecord:
    """The lease after money moved, as the ledger does it."""
    moved = {
        "locked": lease.locked - split.unlocked,
        "bond": lease.bond - split.unbound,
        "paid": lease.paid + split.paid,
        "commission": lease.commission + split.commission,
        "refunded": lease.refunded + split.refunded,
        "damages": lease.damages + split.damages,
        "burned": lease.burned + split.burned + split.forfeited,
    }
    return msgspec.structs.replace(lease, **(moved | fields))


def settle(world: World, receipt: Receipt | None = None, lease: LeaseRecord | None = None) -> LeaseRecord:
    """Rows 3 and 13: everything under a receipt is paid; by default the world's own."""
    lease, receipt = lease or make_open(world), receipt or world.receipt_body
    split = money.split_payment(lease, receipt.count)
    note = make_note(world.chain, receipt)
    return apply_split(lease, split, state=LeaseState.SETTLED, receipt=note, timer=None)


def cut(world: World, receipt: Receipt, *, burn: bool) -> LeaseRecord:
    """Rows 7 and 10: what the receipt covers stays, the rest moves."""
    lease = msgspec.structs.replace(make_open(world), receipt=make_note(world.chain, receipt))
    split = money.split_cut(lease, damages=True, burn=burn)
    return apply_split(lease, split, state=LeaseState.DELIVERED, held=receipt.count)


def end_unserved(world: World, state: LeaseState) -> LeaseRecord:
    """Rows 5, 7, 10, 12 with nothing served."""
    lease = make_open(world)
    if state is LeaseState.CANCELLED:
        lease = msgspec.structs.replace(lease, fee=money.compute_cancel_fee(lease.terms, lease.terms.opened))
    split = {
        LeaseState.UNSTARTED: lambda: money.split_unstarted(lease),
        LeaseState.RETURNED: lambda: money.split_cut(lease, damages=True, burn=False),
        LeaseState.EXPIRED: lambda: money.split_cut(lease, damages=True, burn=True),
        LeaseState.CANCELLED: lambda: money.split_cut(lease, damages=False, burn=False),
    }[state]()
    return apply_split(lease, split, state=state, timer=None)


def see_record(lease: LeaseRecord, tx: str = "") -> LeaseSeen:
    """What a node tells of a lease in this state."""
    return LeaseSeen(
        lease=lease.id,
        state=lease.state.value,
        first=lease.terms.first,
        count=lease.terms.count,
        held=lease.held,
        served=lease.served,
        receipt=b"" if lease.receipt is None else lease.receipt.id,
        paid=lease.paid,
        commission=lease.commission,
        refunded=lease.refunded,
        damages=lease.damages,
        burned=lease.burned,
        height=9,
        time=NOW + 60_000,
        tx=tx,
    )


# ---- proofs ----


def finalise(time: int, transactions: list[bytes], state: bytes) -> Finality:
    """A final header over these roots, signed by the one seat."""
    seats = compute_seats_digest(CHAIN_ID, 0, [SEAT.key])
    root = compute_root(transactions)
    header = Header(0, 1, 9, time, bytes(32), seats, 0, root, bytes(32), state, bytes(32))
    vote = Vote(Step.FINALIZE, 0, 1, compute_block_id(CHAIN_ID, header))
    signature = SEAT.sign(Tag.VOTE, CHAIN_ID, vote).signature
    return Finality(header, (), Certificate(vote, (SeatSignature(0, signature),)))


def prove_transaction(signed: SignedTransaction) -> TxProof:
    """Proof of a transaction in a block of two."""
    leaves = [compute_transaction_id(signed.body), bytes(32)]
    finality = finalise(signed.body.valid_until, leaves, bytes(32))
    return TxProof(finality, signed, 0, 2, prove_inclusion(leaves, 0))


def prove_body(body: Body, signer: Signer = PROVIDER) -> TxProof:
    """Proof of a transaction with this body."""
    return prove_transaction(sign_transaction(signer, CHAIN_ID, body, NOW + 60_000, bytes(16)))


def prove_record(lease: LeaseRecord) -> LeaseProof:
    """Proof of a lease in a state that holds another entry too."""
    tree, key, value = StateTree(CHAIN_ID), get_lease_key(lease.id), encode(lease)
    root = tree.update(None, {key: value, b"t": b"totals"})
    return LeaseProof(finalise(NOW + 60_000, [], get_hash(root)), key, value, tree.prove(root, key))


# ---- documents ----


def accept(world: World, by: Signer = REQUESTER, /, **fields: Any) -> Signed[Acceptance]:
    """The requester's acceptance of all under the world's receipt, or another one."""
    receipt = world.receipt_body
    body = Acceptance(
        lease=world.lease,
        receipt=compute_receipt_id(world.chain, receipt),
        signer=REQUESTER.key,
        segments=(Span(receipt.first, receipt.count),),
        release=False,
    )
    return by.sign(Tag.ACCEPTANCE, world.chain, msgspec.structs.replace(body, **fields))


def make_papers(world: World, lease: LeaseRecord, body: Body | None = None, **fields: Any) -> LeasePapers:
    """Papers of a lease that ended in this state, by a transaction with `body` (None: by a timer)."""
    proof = None if body is None else prove_body(body)
    tx = "" if proof is None else compute_transaction_id(proof.transaction.body).hex()
    served = lease.state is LeaseState.SETTLED
    papers = LeasePapers(
        lease=world.lease,
        round=world.round,
        award=world.award,
        bid=world.bid,
        receipt=world.receipt if served else None,
        storage=world.storage if served else None,
        seen=see_record(lease, tx),
        proof=proof,
        state=prove_record(lease),
    )
    return msgspec.structs.replace(papers, **fields)


def gather(*worlds: World, leases: tuple[LeasePapers, ...], tried: tuple[bytes, ...] = ()) -> Documents:
    """The documents of a job of these leases."""
    first, books = worlds[0], {world.round: world.book for world in worlds}
    return Documents(
        chain=first.chain,
        order=first.order,
        spec=first.spec,
        items=first.items,
        books=tuple(books[number] for number in sorted(books)),
        tried=tried,
        leases=leases,
    )
