"""The whole of a finished job checked offline, by someone who holds its documents, its records and the genesis file.

Check 40 is the chain's id, 1 the order, 60 to 65 the job as a whole, 13 to 18 and 47 each book. Then, lease by lease:
award (2-12), its place in the book (19, 46), receipt and records (20-34, 38), blobs (35-37, 48), and how it ended
(`endings`). No network, no trust in whoever kept the documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from chain.base.hashing import Tag, compute_digest
from chain.base.merkle import compute_root
from chain.ledger.entries import LeaseRecord, LeaseState
from chain.ledger.genesis import Genesis, compute_chain_id
from chain.ledger.terms.agreement import Kind, compute_bid_id, compute_order_id
from chain.ledger.terms.work import SegmentRecord
from requester.purchase import checks, deliveries, endings
from requester.purchase.checking import Check, Verdict, is_signed_by, judge
from requester.purchase.documents import Documents, LeasePapers

Records = Mapping[bytes, Sequence[SegmentRecord]]
"""The records of each lease by its id, in order from the lease's first."""

OUTPUTS_CHECK = 35
"""The check that needs the outputs themselves."""


@dataclass(frozen=True)
class BlobsAtHand:
    """Which blobs are here. `sizes` maps the digest of each to its size, its bytes having been hashed; `provenance`
    maps the digests of envelopes to their bytes. Where `outputs` is False they were left out on purpose: then 35 is not
    made, and the job's outputs are known by their digests alone.
    """

    sizes: Mapping[bytes, int]
    provenance: Mapping[bytes, bytes] = field(repr=False)
    outputs: bool = True


@dataclass(frozen=True)
class JobFacts:
    """A job as a whole. `states` are its leases as far as they are proved, in their order."""

    genesis: Genesis
    documents: Documents
    records: Records
    blobs: BlobsAtHand
    states: tuple[LeaseRecord | None, ...]

    @property
    def order_id(self) -> bytes:
        """The order's id."""
        return compute_order_id(self.documents.chain, self.documents.order.body)


def hash_blobs(documents: Documents, blobs: Mapping[bytes, bytes]) -> BlobsAtHand:
    """Blobs at hand from their bytes, each hashed again; one that does not match is as if it were absent."""
    envelopes = {papers.receipt.body.provenance for papers in documents.leases if papers.receipt is not None}
    sizes = {digest: len(data) for digest, data in blobs.items() if compute_digest(data) == digest}
    return BlobsAtHand(sizes, {digest: blobs[digest] for digest in envelopes if digest in sizes})


def verify_job(
    documents: Documents, records: Records, blobs: Mapping[bytes, bytes] | BlobsAtHand, genesis: Genesis
) -> list[Verdict]:
    """All verdicts in order. `blobs` maps digests to bytes, which are hashed again, or says what was hashed already.

    What follows a failure is skipped; a document that is missing fails the first check that needs it.
    """
    at_hand = blobs if isinstance(blobs, BlobsAtHand) else hash_blobs(documents, blobs)
    verdicts = judge(CHAIN_CHECKS, (genesis, documents))
    if not verdicts[-1].passed:
        return verdicts
    states = tuple(endings.read_state(genesis, papers) for papers in documents.leases)
    for group in _list_groups(JobFacts(genesis, documents, records, at_hand, states)):
        verdicts += group()
        if not all(verdict.passed for verdict in verdicts):
            break
    return verdicts


def is_verified(verdicts: Sequence[Verdict]) -> bool:
    """Whether every check there is was made and passed: the first that fails is the last that is made."""
    return bool(verdicts) and all(verdict.passed for verdict in verdicts)


def _list_groups(facts: JobFacts) -> Iterator[Callable[[], list[Verdict]]]:
    documents = facts.documents
    yield lambda: judge(ORDER_CHECKS, facts)
    yield lambda: judge(JOB_CHECKS, facts)
    for book in documents.books:
        alone = checks.BookFacts(documents.chain, documents.order.body, facts.order_id, book)
        yield partial(judge, checks.BOOK_CHECKS, alone)
    for place, papers in enumerate(documents.leases):
        yield from _list_lease_groups(facts, place, papers)
    yield lambda: judge(TOTAL_CHECKS, facts)


def _list_lease_groups(facts: JobFacts, place: int, papers: LeasePapers) -> Iterator[Callable[[], list[Verdict]]]:
    end = _gather_end(facts, place, papers)
    yield lambda: judge(checks.AWARD_CHECKS[1:], _gather_award(facts, papers), place)
    yield lambda: judge(checks.SHARE_CHECKS, _gather_share(facts, papers), place)
    if papers.receipt is not None or facts.records.get(papers.lease):
        blobs = [check for check in deliveries.BLOB_CHECKS if facts.blobs.outputs or check.number != OUTPUTS_CHECK]
        yield lambda: judge((*deliveries.DELIVERY_CHECKS, *blobs), _gather_delivery(facts, papers), place)
    yield lambda: judge(endings.END_CHECKS, end, place)
    yield lambda: judge(endings.SETTLEMENT_CHECKS, end, place)


# ---- facts of one lease ----


def _gather_award(facts: JobFacts, papers: LeasePapers) -> checks.AwardFacts:
    documents = facts.documents
    start = _find_start(facts, papers)
    return checks.AwardFacts(
        documents.chain, documents.order, documents.spec, papers.award, papers.bid, papers.lease, start
    )


def _find_start(facts: JobFacts, papers: LeasePapers) -> bytes | None:
    """What a range has to start from: the order's start, or the output of the record before it, in a lease that was
    paid for up to there.
    """
    order, first = facts.documents.order.body, papers.award.body.first
    if order.kind is Kind.MAP or first == 0:
        return order.start
    for other, state in zip(facts.documents.leases, facts.states, strict=True):
        records = facts.records.get(other.lease, ())
        served = state.served if state is not None and state.state is LeaseState.SETTLED else 0
        if 0 < served <= len(records) and other.award.body.first + served == first:
            return records[served - 1].output
    return None


def _gather_share(facts: JobFacts, papers: LeasePapers) -> checks.ShareFacts | None:
    documents = facts.documents
    book = next((one.body for one in documents.books if one.body.round == papers.round), None)
    if book is None:
        return None
    others = [one for one in documents.leases if one is not papers and one.round == papers.round]
    return checks.ShareFacts(
        chain=documents.chain,
        order=documents.order.body,
        spec=documents.spec,
        award=papers.award.body,
        book=book,
        failed=frozenset(documents.tried),
        used=frozenset(one.award.body.bid for one in others),
    )


def _gather_delivery(facts: JobFacts, papers: LeasePapers) -> deliveries.DeliveryFacts | None:
    if papers.receipt is None or papers.storage is None:
        return None
    documents = facts.documents
    return deliveries.DeliveryFacts(
        chain=documents.chain,
        order=documents.order.body,
        spec=documents.spec,
        award=papers.award.body,
        bid=papers.bid.body,
        receipt=papers.receipt,
        storage=papers.storage,
        since=0,
        records=tuple(facts.records.get(papers.lease, ())),
        items=documents.items,
        found=facts.blobs.sizes,
    )


def _gather_end(facts: JobFacts, place: int, papers: LeasePapers) -> endings.EndFacts:
    documents = facts.documents
    named = None if papers.receipt is None else papers.receipt.body.provenance
    return endings.EndFacts(
        chain=documents.chain,
        genesis=facts.genesis,
        order=documents.order.body,
        spec=documents.spec,
        papers=papers,
        records=facts.records.get(papers.lease, ()),
        state=facts.states[place],
        envelope=None if named is None else facts.blobs.provenance.get(named),
    )


# ---- the job as a whole ----


def _is_order_mine(facts: JobFacts) -> bool:
    documents = facts.documents
    return checks.is_order_mine(documents.chain, documents.order, documents.spec)


def _are_leases_distinct(facts: JobFacts) -> bool:
    """R3 c: a bid opens at most one lease, and one that was tried opened none."""
    leases = facts.documents.leases
    bids = [papers.award.body.bid for papers in leases]
    tried = facts.documents.tried
    distinct = len({papers.lease for papers in leases}) == len(set(bids)) == len(leases)
    return distinct and len(set(tried)) == len(tried) and not set(tried) & set(bids)


def _are_books_in_order(facts: JobFacts) -> bool:
    """Each round has one book at most, and only bids that stand in one were tried."""
    rounds = [book.body.round for book in facts.documents.books]
    known = {
        compute_bid_id(facts.documents.chain, bid.body) for book in facts.documents.books for bid in book.body.bids
    }
    return rounds == sorted(set(rounds)) and known.issuperset(facts.documents.tried)


def _are_items_ordered(facts: JobFacts) -> bool:
    order, items = facts.documents.order.body, facts.documents.items
    if order.kind is not Kind.MAP:
        return not items
    return len(items) == order.segments and compute_root(items) == order.start


def _are_declines_real(facts: JobFacts) -> bool:
    unmatched = facts.documents.unmatched
    return unmatched is None or all(
        one.body.order == facts.order_id and is_signed_by(one, Tag.DECLINE, facts.documents.chain, one.body.provider)
        for one in unmatched.declines
    )


def _are_records_of_leases(facts: JobFacts) -> bool:
    named = {papers.lease for papers in facts.documents.leases}
    return all(lease in named for lease, rows in facts.records.items() if rows)


def _is_coverage_disjoint(facts: JobFacts) -> bool:
    """R2: no segment was paid for twice, and none that was not ordered."""
    settled = [state for state in facts.states if state is not None and state.state is LeaseState.SETTLED]
    end: dict[int, int] = {}
    for state in sorted(settled, key=lambda one: (one.terms.replica, one.terms.first)):
        if state.served and state.terms.first < end.get(state.terms.replica, 0):
            return False
        end[state.terms.replica] = max(end.get(state.terms.replica, 0), state.terms.first + state.served)
    return all(last <= facts.documents.order.body.segments for last in end.values())


def compute_spent(state: LeaseRecord) -> int:
    """What a lease that has ended took of the mandate (R2): price, commission, and its part of what was burned."""
    return state.terms.price + state.terms.price * state.terms.commission // 10_000 - state.refunded


def _is_within_cap(facts: JobFacts) -> bool:
    spent = sum(compute_spent(state) for state in facts.states if state is not None)
    return spent <= facts.documents.order.body.cap


CHAIN_CHECKS: tuple[Check[tuple[Genesis, Documents]], ...] = (
    Check(40, "genesis", "the job is on the chain of this genesis", lambda f: compute_chain_id(f[0]) == f[1].chain),
)

ORDER_CHECKS: tuple[Check[JobFacts], ...] = (
    Check(1, "order", "the order is signed by its requester and names this job spec", _is_order_mine),
)

JOB_CHECKS: tuple[Check[JobFacts], ...] = (
    Check(60, "leases", "no lease and no bid stands here twice", _are_leases_distinct),
    Check(61, "books", "there is one book per round, and who was tried had bid", _are_books_in_order),
    Check(62, "items", "a map's items are those that were ordered", _are_items_ordered),
    Check(63, "unmatched", "who is said to have declined did", _are_declines_real),
    Check(64, "records", "no records are here but those of these leases", _are_records_of_leases),
)

TOTAL_CHECKS: tuple[Check[JobFacts], ...] = (
    Check(65, "coverage", "no segment was paid for twice", _is_coverage_disjoint),
    Check(66, "mandate", "all leases together took no more than the cap", _is_within_cap),
)
