"""A finished job checked offline: nothing that was changed passes, each change named by its check.

Jobs: a `run` that was accepted, a `map` of two leases in two rounds after one that did not open, a `train` that went
on at another provider after a cut, and leases that ended unserved. Forgeries are consistent where their maker could
make them so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import pytest

from broker.protocol.api import Unmatched
from broker.protocol.messages import Decline, Reason
from chain.base.codec import encode
from chain.base.hashing import Tag, compute_digest
from chain.base.merkle import compute_root
from chain.ledger.entries import LeaseState
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import SegmentRecord, Span
from chain.ledger.transactions import Deliver, GiveBack, Settle, compute_transaction_id
from requester.purchase import checks, deliveries, endings, verify
from requester.purchase.checking import judge
from requester.purchase.documents import (
    Documents,
    LeasePapers,
)
from requester.purchase.verify import hash_blobs, is_verified, verify_job
from tests.requester.chainside import (
    CHAIN_ID,
    GENESIS,
    accept,
    cut,
    end_unserved,
    gather,
    make_papers,
    prove_body,
    prove_record,
    see_record,
    settle,
)
from tests.requester.shell import go_on, make_train
from tests.requester.world import BROKER, NOW, PROVIDER, REQUESTER, RIVAL, STRANGER, World, change

OTHER = compute_digest(b"other")


@dataclass(frozen=True)
class Job:
    """Documents, records and blobs of a job."""

    documents: Documents
    records: Mapping[bytes, tuple[SegmentRecord, ...]]
    blobs: Mapping[bytes, bytes]
    worlds: tuple[World, ...]

    def replace(self, **fields: Any) -> Job:
        """Other documents."""
        return Job(change(self.documents, **fields), self.records, self.blobs, self.worlds)

    def repaper(self, at: int = 0, **fields: Any) -> Job:
        """Other papers of one lease."""
        leases = list(self.documents.leases)
        leases[at] = change(leases[at], **fields)
        return self.replace(leases=tuple(leases))

    def rerecord(self, lease: bytes, records: tuple[SegmentRecord, ...]) -> Job:
        """Other records of one lease."""
        return Job(self.documents, {**self.records, lease: records}, self.blobs, self.worlds)


def make_job(*worlds: World, leases: tuple[LeasePapers, ...], tried: tuple[bytes, ...] = ()) -> Job:
    served = [world for world, papers in zip(worlds, leases, strict=True) if papers.receipt is not None]
    blobs = {compute_digest(blob): blob for world in served for blob in world.blobs.values()}
    records = {world.lease: world.record_bodies for world in served}
    return Job(gather(*worlds, leases=leases, tried=tried), records, blobs, worlds)


def settle_accepted(world: World) -> LeasePapers:
    """Papers of a lease that was accepted and settled."""
    acceptance = accept(world)
    return make_papers(world, settle(world), Settle(world.receipt, acceptance), acceptance=acceptance)


@cache
def make_run() -> Job:
    world = World(chain=CHAIN_ID)
    return make_job(world, leases=(settle_accepted(world),))


@cache
def make_silent() -> Job:
    """Nobody accepted; the acceptance window passed."""
    world = World(chain=CHAIN_ID, causes=(Cause.PROGRAM,))
    return make_job(world, leases=(make_papers(world, settle(world)),))


@cache
def make_map() -> Job:
    """The provider's award did not open; the rival had its part, failed at the second segment, and then took the rest
    in a second round.
    """
    settings = {"segments": 4, "kind": Kind.MAP, "prices": (200_000, 300_000), "chain": CHAIN_ID}
    gone = World(causes=(Cause.OK,), **settings)  # type: ignore[arg-type]  # a mapping of fields
    failed = gone.award_body.bid
    first = gone.also(first=0, causes=(Cause.OK, Cause.PROGRAM), failed=frozenset([failed]))
    rest = go_on(first, Cause.OK, Cause.OK)
    return make_job(first, rest, leases=(settle_accepted(first), settle_accepted(rest)), tried=(failed,))


@cache
def make_chained() -> Job:
    """A train that was cut at two of four segments and went on elsewhere."""
    first = make_train(Cause.OK, Cause.OK)
    first.chain = CHAIN_ID
    rest = go_on(first, Cause.OK, Cause.OK)
    acceptance = accept(first)
    state = settle(first, lease=cut(first, first.receipt_body, burn=True))
    papers = make_papers(first, state, Settle(first.receipt, acceptance), acceptance=acceptance)
    return make_job(first, rest, leases=(papers, settle_accepted(rest)))


def make_unserved(state: LeaseState) -> Job:
    world = World(chain=CHAIN_ID)
    given_back = state in (LeaseState.UNSTARTED, LeaseState.RETURNED)
    papers = make_papers(world, end_unserved(world, state), GiveBack(world.lease) if given_back else None)
    return make_job(world, leases=(papers,))


def first_failure(job: Job) -> int:
    verdicts = verify_job(job.documents, job.records, job.blobs, GENESIS)
    failed = [one.number for one in verdicts if not one.passed]
    assert is_verified(verdicts) == (not failed)
    return failed[0] if failed else 0


# ---- what is right passes ----

RIGHT: list[tuple[str, Callable[[], Job]]] = [
    ("accepted", make_run),
    ("by silence", make_silent),
    ("two rounds", make_map),
    ("cut and gone on", make_chained),
    *((state.value, lambda state=state: make_unserved(state)) for state in (
        LeaseState.UNSTARTED, LeaseState.RETURNED, LeaseState.EXPIRED, LeaseState.CANCELLED,
    )),
]  # fmt: skip


@pytest.mark.parametrize("make", [row[1] for row in RIGHT], ids=[row[0] for row in RIGHT])
def test_a_good_job_passes_every_check(make: Callable[[], Job]) -> None:
    assert first_failure(make()) == 0


NUMBERS = {*range(1, 39), *range(40, 57), *range(60, 67)}


def test_each_check_has_one_number_and_is_made() -> None:
    tables: list[Any] = [verify.CHAIN_CHECKS, checks.AWARD_CHECKS, checks.BOOK_CHECKS, checks.SHARE_CHECKS]
    tables += [deliveries.DELIVERY_CHECKS, deliveries.BLOB_CHECKS, endings.END_CHECKS, endings.SETTLEMENT_CHECKS]
    tables += [verify.JOB_CHECKS, verify.TOTAL_CHECKS]
    numbers = [check.number for table in tables for check in table]
    assert sorted(numbers) == sorted(NUMBERS)
    job = make_map()
    verdicts = verify_job(job.documents, job.records, job.blobs, GENESIS)
    assert {one.number for one in verdicts} == NUMBERS
    assert {one.lease for one in verdicts} == {None, 0, 1}
    assert {one.number for one in verdicts if one.lease is None} == {40, 1, *range(13, 19), 47, *range(60, 67)}


def test_outputs_may_be_left_out_but_nothing_else() -> None:
    job = make_run()
    world = job.worlds[0]
    at_hand = hash_blobs(job.documents, job.blobs)
    output = compute_digest(world.output)
    sizes = {digest: size for digest, size in at_hand.sizes.items() if digest != output}
    without = verify.BlobsAtHand(sizes, at_hand.provenance, outputs=False)
    verdicts = verify_job(job.documents, job.records, without, GENESIS)
    assert is_verified(verdicts)
    assert 35 not in {one.number for one in verdicts}
    log = {digest: size for digest, size in sizes.items() if digest != compute_digest(world.log)}
    bare = verify.BlobsAtHand(log, at_hand.provenance, outputs=False)
    assert not is_verified(verify_job(job.documents, job.records, bare, GENESIS))


def test_a_job_that_nobody_took_is_checked_too() -> None:
    job = make_run()
    decline = Decline(job.worlds[0].order_id, STRANGER.key, Reason.PRICE, 3, "too cheap")
    signed = STRANGER.sign(Tag.DECLINE, CHAIN_ID, decline)
    bare = change(job.documents, leases=(), unmatched=Unmatched(NOW, 3, "a cap of 3", (signed,)))
    assert is_verified(verify_job(bare, {}, {}, GENESIS))


# ---- what was changed does not ----


def swap_settle(body: Any) -> Job:
    """Another last transaction, really on the chain, and seen there."""
    proof = prove_body(body)
    seen = see_record(settle(make_run().worlds[0]), compute_transaction_id(proof.transaction.body).hex())
    return make_run().repaper(proof=proof, seen=seen)


def bend_proof(**fields: Any) -> Job:
    return make_run().repaper(proof=change(make_run().documents.leases[0].proof, **fields))


def bend_state(make: Callable[[], Job] = make_run, at: int = 0, **fields: Any) -> Job:
    """Another state, really under a final header, and seen so."""
    job = make()
    papers = job.documents.leases[at]
    record = endings.read_state(GENESIS, papers)
    assert record is not None
    bent = change(record, **fields)
    assert papers.seen is not None
    return job.repaper(at, state=prove_record(bent), seen=see_record(bent, papers.seen.tx))


def bend_terms(**fields: Any) -> Job:
    record = settle(make_run().worlds[0])
    return bend_state(terms=change(record.terms, **fields))


def bend_seen(**fields: Any) -> Job:
    return make_run().repaper(seen=change(make_run().documents.leases[0].seen, **fields))


def bend_acceptance(signer: Any = REQUESTER, /, **fields: Any) -> Job:
    """Another acceptance, honestly settled on the chain."""
    world = make_run().worlds[0]
    acceptance = accept(world, signer, **fields)
    proof = prove_body(Settle(world.receipt, acceptance))
    tx = compute_transaction_id(proof.transaction.body).hex()
    return make_run().repaper(acceptance=acceptance, proof=proof, seen=see_record(settle(world), tx))


def other_provenance() -> Job:
    """A provenance of other facts, signed and named in the receipt by the provider itself."""
    world = World(chain=CHAIN_ID)
    world.environment = change(world.environment, blas="openblas")
    wrong = World(chain=CHAIN_ID, usage=world.usage)
    wrong.environment = change(world.environment, blas="mkl")
    world.provenance = wrong.provenance
    return make_job(world, leases=(settle_accepted(world),))


def cut_receipt_short() -> Job:
    """What was paid for is less than the lease held, and no failure ended it."""
    world = make_train(Cause.OK, Cause.OK)
    world.chain = CHAIN_ID
    return make_job(world, leases=(make_papers(world, settle(world)),))


def bring_unjudged_work() -> Job:
    """Work of a lease that ran out before any of it was handed to the chain."""
    world = World(chain=CHAIN_ID)
    papers = make_papers(world, end_unserved(world, LeaseState.EXPIRED), receipt=world.receipt, storage=world.storage)
    return make_job(world, leases=(papers,))


def note_another_cause() -> Job:
    """The chain judged the lease by fewer of these records, but by another cause than the last of them had."""
    job = make_chained()
    record = endings.read_state(GENESIS, job.documents.leases[0])
    assert record is not None
    root = compute_root([encode(one) for one in job.records[record.id][:1]])
    return bend_state(make_chained, receipt=change(record.receipt, count=1, records=root, cause=Cause.PROGRAM))


def put_last_first(job: Job) -> Job:
    """The lease that went on stands before the one it went on from."""
    return job.replace(leases=job.documents.leases[::-1])


def go_on_from_too_few() -> Job:
    job = make_chained()
    first, _ = job.worlds
    return put_last_first(job.rerecord(first.lease, job.records[first.lease][:1]))


def note_other_records() -> Job:
    """The chain judged the lease by other records, fewer than these."""
    job = make_chained()
    record = endings.read_state(GENESIS, job.documents.leases[0])
    assert record is not None
    assert record.receipt is not None
    return bend_state(make_chained, receipt=change(record.receipt, count=1, records=OTHER))


def overlap() -> Job:
    """A second lease was paid for segments of the first."""
    job = make_map()
    first, rest = job.worlds
    again = rest.also(round=2, first=1, causes=(Cause.OK,), count=1)
    again.spans = (Span(1, 1),)
    again.bids = (again.make_bid(RIVAL, 300_000),)
    return make_job(
        first, rest, again, leases=(*job.documents.leases, settle_accepted(again)), tried=job.documents.tried
    )


def overspend() -> Job:
    """Fees of cancelled leases and prices together pass the cap."""
    first = World(chain=CHAIN_ID, prices=(1_960_784, 1_960_785))
    second = first.also(first=0, causes=(Cause.OK,), round=1)
    second.bids = (second.bids[0],)
    unstarted = make_papers(first, end_unserved(first, LeaseState.UNSTARTED), GiveBack(first.lease))
    return make_job(first, second, leases=(unstarted, settle_accepted(second)))


def start_elsewhere() -> Job:
    job = make_chained()
    first, _ = job.worlds
    rest = go_on(first, Cause.OK, Cause.OK)
    rest.start = OTHER
    return make_job(first, rest, leases=(job.documents.leases[0], settle_accepted(rest)))


def with_decline(signer: Any, order: bytes = b"") -> Job:
    decline = Decline(order or make_run().worlds[0].order_id, STRANGER.key, Reason.PRICE, 3, "too cheap")
    return make_run().replace(unmatched=Unmatched(NOW, 3, "", (signer.sign(Tag.DECLINE, CHAIN_ID, decline),)))


def twice(job: Job) -> Job:
    return job.replace(leases=(*job.documents.leases, job.documents.leases[0]))


RUN = make_run().worlds[0]
PAPERS = make_run().documents.leases[0]
MAP = make_map()


def other_order() -> Any:
    return REQUESTER.sign(Tag.ORDER, CHAIN_ID, change(RUN.order.body, cap=1))


def put_in_another_state() -> Job:
    bent = msgspec.structs.replace(PAPERS.state, value=encode(settle(MAP.worlds[0])))  # type: ignore[type-var]  # it is there
    return make_run().repaper(state=bent)


FORGERIES: list[tuple[str, int, Callable[[], Job]]] = [
    ("another chain", 40, lambda: make_run().replace(chain=OTHER)),
    ("an order by a stranger", 1, lambda: make_run().replace(order=STRANGER.sign(Tag.ORDER, CHAIN_ID, RUN.order.body))),
    ("another job", 1, lambda: make_run().replace(spec=change(RUN.spec, seed=8))),
    ("a lease twice", 60, lambda: twice(make_run())),
    ("a bid that opened is said to be tried", 60, lambda: make_run().replace(tried=(RUN.award_body.bid,))),
    ("a bid that is said to be tried twice", 60, lambda: MAP.replace(tried=MAP.documents.tried * 2)),
    ("books out of order", 61, lambda: MAP.replace(books=MAP.documents.books[::-1])),
    ("a book twice", 61, lambda: make_run().replace(books=make_run().documents.books * 2)),
    ("tried who never bid", 61, lambda: make_run().replace(tried=(OTHER,))),
    ("other items", 62, lambda: MAP.replace(items=MAP.documents.items[::-1])),
    ("an item left out", 62, lambda: MAP.replace(items=MAP.documents.items[:-1])),
    ("items of a run", 62, lambda: make_run().replace(items=(OTHER,))),
    ("a decline nobody signed", 63, lambda: with_decline(RIVAL)),
    ("a decline of another order", 63, lambda: with_decline(STRANGER, OTHER)),
    ("records of no lease", 64, lambda: make_run().rerecord(OTHER, RUN.record_bodies)),
    ("another order under the award", 14, lambda: make_run().replace(order=other_order())),
    ("a book by a stranger", 13, lambda: make_run().replace(books=(RIVAL.sign(Tag.BOOK, CHAIN_ID, RUN.book_body),))),
    ("a book of another order", 14, lambda: make_run().replace(
        books=(BROKER.sign(Tag.BOOK, CHAIN_ID, change(RUN.book_body, order=OTHER)),))),
    ("no book", 46, lambda: make_run().replace(books=())),
    ("papers of another round", 46, lambda: make_run().repaper(round=1)),
    ("an award by the provider", 2, lambda: make_run().repaper(
        award=PROVIDER.sign(Tag.AWARD, CHAIN_ID, RUN.award_body))),
    ("another price in the award", 2, lambda: make_run().repaper(
        award=change(PAPERS.award, body=change(RUN.award_body, price=1)))),
    ("another bid", 6, lambda: make_run().repaper(bid=RUN.bids[0])),
    ("another lease id", 12, lambda: make_run().repaper(lease=OTHER).rerecord(RUN.lease, ())),
    ("a winner explained away", 19, lambda: MAP.replace(tried=())),
    ("a train that starts anew elsewhere", 10, start_elsewhere),
    ("a train that goes on from a lease that was not settled", 10, lambda: put_last_first(
        bend_state(make_chained, state=LeaseState.DELIVERED))),
    ("a train that goes on from a record that is not here", 10, go_on_from_too_few),
    ("no storage receipt", 20, lambda: make_run().repaper(storage=None)),
    ("no receipt, but records", 20, lambda: make_run().repaper(receipt=None)),
    ("a receipt of another lease", 20, lambda: make_run().repaper(receipt=MAP.documents.leases[0].receipt)),
    ("a record left out", 23, lambda: MAP.rerecord(MAP.worlds[0].lease, MAP.worlds[0].record_bodies[:1])),
    ("no records", 23, lambda: make_run().rerecord(RUN.lease, ())),
    ("records in another order", 26, lambda: MAP.rerecord(MAP.worlds[1].lease, MAP.worlds[1].record_bodies[::-1])),
    ("a record of another output", 26, lambda: make_run().rerecord(
        RUN.lease, (change(RUN.record_bodies[0], output=OTHER),))),
    ("a storage receipt of the provider", 32, lambda: make_run().repaper(
        storage=PROVIDER.sign(Tag.STORAGE, CHAIN_ID, RUN.storage_body))),
    ("a provenance of other facts", 49, other_provenance),
    ("an acceptance by the provider", 41, lambda: bend_acceptance(PROVIDER, signer=PROVIDER.key)),
    ("an acceptance signed by the broker", 41, lambda: bend_acceptance(BROKER)),
    ("an acceptance of another lease", 42, lambda: bend_acceptance(lease=OTHER)),
    ("an acceptance of another receipt", 42, lambda: bend_acceptance(receipt=OTHER)),
    ("an acceptance of nothing", 42, lambda: bend_acceptance(segments=())),
    ("an acceptance of more", 42, lambda: bend_acceptance(segments=(Span(0, 2),))),
    ("no proof of the lease", 50, lambda: make_run().repaper(state=None)),
    ("the proof of another lease", 50, lambda: make_run().repaper(state=MAP.documents.leases[0].state)),
    ("a state that is not under the header", 50, put_in_another_state),
    ("terms of another order", 51, lambda: bend_terms(order=OTHER)),
    ("terms at another price", 51, lambda: bend_terms(unit=2)),
    ("terms with another deadline", 51, lambda: bend_terms(deadline=1)),
    ("terms with another start", 51, lambda: bend_terms(start=OTHER)),
    ("terms with other holders", 51, lambda: bend_terms(holders=())),
    ("a lease that is not over", 52, lambda: bend_state(state=LeaseState.OPEN)),
    ("a lease with money in it", 52, lambda: bend_state(locked=1)),
    ("a settled lease without receipt", 53, lambda: bend_state(receipt=None)),
    ("a lease judged by another receipt", 53, lambda: bend_state(receipt=change(settle(RUN).receipt, id=OTHER))),
    ("a lease judged by more than is here", 53, lambda: bend_state(receipt=change(settle(RUN).receipt, count=2))),
    ("a lease judged by fewer, other records", 53, note_other_records),
    ("work that the chain never judged", 53, bring_unjudged_work),
    ("a lease judged by fewer records and another cause", 53, note_another_cause),
    ("a receipt that is not final", 29, cut_receipt_short),
    ("more paid than the price", 54, lambda: bend_state(paid=1_000_001)),
    ("more commission", 54, lambda: bend_state(commission=20_001)),
    ("less refunded", 54, lambda: bend_state(make_chained, refunded=1)),
    ("damages for nothing", 54, lambda: bend_state(damages=1)),
    ("a fee that is none", 54, lambda: bend_state(fee=7)),
    ("a return without damages", 54, lambda: bend_state(lambda: make_unserved(LeaseState.RETURNED), damages=0)),
    ("an end that this chain has not", 54, lambda: bend_state(state=LeaseState.VOID)),
    ("another cost as it was seen", 55, lambda: bend_seen(paid=1)),
    ("another state as it was seen", 55, lambda: bend_seen(state="expired")),
    ("never seen", 55, lambda: make_run().repaper(seen=None)),
    ("another transaction than was seen", 56, lambda: bend_seen(tx=OTHER.hex())),
    ("no proof of the transaction", 56, lambda: make_run().repaper(proof=None)),
    ("a leaf that is not there", 43, lambda: bend_proof(index=1)),
    ("a tree of another size", 43, lambda: bend_proof(size=3)),
    ("a truncated path", 43, lambda: bend_proof(path=())),
    ("a delivery instead of a settle", 44, lambda: swap_settle(Deliver(RUN.receipt, RUN.storage, ()))),
    ("a settle of another receipt", 44, lambda: swap_settle(
        Settle(PROVIDER.sign(Tag.RECEIPT, CHAIN_ID, change(RUN.receipt_body, finished=NOW)), accept(RUN)))),
    ("a return of another lease", 44, lambda: make_unserved(LeaseState.RETURNED).replace(
        leases=(make_papers(RUN, end_unserved(RUN, LeaseState.RETURNED), GiveBack(OTHER)),))),
    ("a return that nobody made", 44, lambda: make_unserved(LeaseState.RETURNED).replace(
        leases=(make_papers(RUN, end_unserved(RUN, LeaseState.RETURNED)),))),
    ("a settle with another acceptance", 45, lambda: swap_settle(Settle(RUN.receipt, accept(RUN, release=True)))),
    ("a settle without its acceptance", 45, lambda: make_run().repaper(acceptance=None)),
    ("segments paid for twice", 65, overlap),
    ("more than the cap", 66, overspend),
]  # fmt: skip


@pytest.mark.parametrize(("name", "number", "forge"), FORGERIES, ids=[row[0] for row in FORGERIES])
def test_a_consistent_forgery_is_named_by_its_check(name: str, number: int, forge: Callable[[], Job]) -> None:
    assert first_failure(forge()) == number, name


def test_every_number_that_is_only_made_here_has_a_forgery() -> None:
    """The others have their rows in `test_checks`."""
    here = {40, *range(41, 46), 29, *range(49, 57), *range(60, 67)}
    assert here <= {number for _, number, _ in FORGERIES}


def test_what_was_paid_for_lies_within_the_order() -> None:
    """Award and terms are checked before, lease by lease; coverage by itself lets nothing beyond the order pass."""
    job = make_run()
    record = endings.read_state(GENESIS, job.documents.leases[0])
    assert record is not None
    blobs = hash_blobs(job.documents, job.blobs)
    for first, right in ((0, True), (1, False)):
        states = (change(record, terms=change(record.terms, first=first)),)
        facts = verify.JobFacts(GENESIS, job.documents, job.records, blobs, states)
        assert judge(verify.TOTAL_CHECKS[:1], facts)[0].passed is right


@pytest.mark.parametrize("name", ["0", "log", "provenance"])
def test_blobs_are_hashed_again(name: str) -> None:
    job = make_run()
    digest = compute_digest(RUN.blobs[name])
    number = {"0": 35, "log": 37, "provenance": 48}[name]
    for blobs in (
        {**job.blobs, digest: RUN.blobs[name] + b"!"},
        {key: blob for key, blob in job.blobs.items() if key != digest},
    ):
        assert first_failure(Job(job.documents, job.records, blobs, job.worlds)) == number
