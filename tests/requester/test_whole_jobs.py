"""Whole jobs, from order to archive: what broker and chain sign goes through machine and store, and passes every check
of `verify_job` in the end, with the proofs of a final block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.protocol.api import PROTOCOL_VERSION, Accepted, Submission
from broker.protocol.values import pack, pack_list
from chain.base.hashing import Tag, compute_digest
from chain.base.merkle import compute_root
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from chain.ledger.transactions import Settle, sign_transaction
from chain.rpc.schema import LeaseView
from requester.purchase import events as e
from requester.purchase.documents import RecordChunk
from requester.purchase.machine import Purchase
from requester.purchase.order import Parties, Terms, make_order
from requester.purchase.phases import Phase
from requester.purchase.verify import is_verified, verify_job
from requester.store.jobs import JobStore
from tests.requester.chainside import prove_record
from tests.requester.fakes import Deed, FakeMarket
from tests.requester.world import BROKER, NOW, REQUESTER, make_spec

ITEMS = [pack(number) for number in range(7)]


def make_submission(market: FakeMarket, kind: Kind, parallelism: int) -> tuple[Submission, tuple[bytes, ...]]:
    items = tuple(compute_digest(item) for item in ITEMS) if kind is Kind.MAP else ()
    inputs = b"".join(bytes(part) for part in pack_list(ITEMS)) if items else b"inputs"
    spec = msgspec.structs.replace(make_spec(kind, parallelism), inputs=compute_digest(inputs))
    market.blobs[spec.inputs] = inputs
    segments = 1 if kind is Kind.RUN else len(ITEMS)
    terms = Terms(
        cap=20_000_000, segment_wall=60_000, segments=segments, item_root=compute_root(items) if items else None
    )
    order = make_order(spec, terms, Parties(market.chain, REQUESTER.key, BROKER.key), now=NOW, salt=bytes(16))
    return Submission(PROTOCOL_VERSION, REQUESTER.sign(Tag.ORDER, market.chain, order), spec, ()), items


def see(view: LeaseView, height: int, time: int, tx: str) -> e.LeaseSeen:
    names = ("state", "first", "count", "held", "served", "paid", "commission", "refunded", "damages", "burned")
    shown: dict[str, Any] = {name: getattr(view, name) for name in names}
    receipt = bytes.fromhex(view.receipt)
    return e.LeaseSeen(lease=bytes.fromhex(view.id), receipt=receipt, height=height, time=time, tx=tx, **shown)


class Buyer:
    """The dull shell of a machine: performs effects against the fake market, without a clock or a loop."""

    def __init__(self, market: FakeMarket, store: JobStore, kind: Kind, parallelism: int) -> None:
        self.market, self.store = market, store
        submission, items = make_submission(market, kind, parallelism)
        self.job = store.add(market.chain, submission.order, submission.spec, NOW, ("", ""), items)
        self.machine = Purchase(market.chain, REQUESTER, submission.order, submission.spec, items)
        self.told: list[int] = []
        market.take(submission)
        self.handle(e.Restarted())
        self.handle(e.Submitted())

    def handle(self, event: e.PurchaseEvent) -> None:
        for effect in self.machine.handle(event, NOW):
            self.perform(effect)

    def perform(self, effect: e.PurchaseEffect) -> None:
        match effect:
            case e.KeepRecords():
                self.store.keep_records(self.job, RecordChunk(effect.lease, effect.since, effect.records))
            case e.FetchBlobs():
                here = {**self.market.pages, **self.market.blobs}
                found = [here[digest] for digest in effect.digests if digest in here]
                for blob in found:
                    self.store.blobs.put(blob)
                self.handle(
                    e.BlobsFetched(effect.lease, tuple(e.Found(compute_digest(one), len(one)) for one in found))
                )
            case e.TellSegments():
                self.told += [record.index for record in effect.records]
            case e.PostAcceptance():
                lease = effect.acceptance.body.lease
                world = self.market.find(lease)
                body = Settle(world.receipt, effect.acceptance)
                self.market.tell(world.order_id, Accepted(NOW, effect.acceptance))
                self.market.carry_out(
                    sign_transaction(world.winner, self.market.chain, body, NOW + 60_000, lease[:16]),
                )
            case e.KeepProof():
                proof = self.market.proofs[bytes.fromhex(effect.tx)]
                from_state = self.market.records[effect.lease]
                self.store.keep_proof(self.job, effect.lease, proof, prove_record(from_state))
            case _:
                pass

    def follow(self) -> None:
        """Hear broker and chain by turns until neither has news."""
        after = seen = 0
        items, blocks = self.market.events[self.job], self.market.blocks
        while after < len(items) or seen < len(blocks):
            if after < len(items):
                after += 1
                self.handle(e.Heard(items[after - 1], after))
            if seen < len(blocks):
                block, seen = blocks[seen], seen + 1
                assert block.lease is not None
                self.handle(see(block.lease, block.height, block.time, block.tx))
        self.store.update(self.job, self.machine.phase, (self.machine.rule, self.machine.text), self.machine.documents)


JOBS: list[tuple[str, Kind, int, int, Deed, Phase, list[int]]] = [
    # what, kind, parallelism, step, deed, how it ends, segments told as done
    ("a run", Kind.RUN, 1, 0, Deed(), Phase.SETTLED, [0]),
    ("a run that fails", Kind.RUN, 1, 0, Deed(cause=Cause.OOM, trace="no"), Phase.SETTLED, [0]),
    ("a map", Kind.MAP, 1, 2, Deed(values=lambda index: index), Phase.SETTLED, [*range(7)]),
    ("a divided map", Kind.MAP, 2, 1, Deed(values=lambda index: index), Phase.SETTLED, [*range(7)]),
    ("a train", Kind.TRAIN, 1, 3, Deed(values=lambda index: [index]), Phase.SETTLED, [*range(7)]),
    (
        "a divided map with a segment that fails",
        Kind.MAP,
        2,
        0,
        Deed(values=lambda index: index, cause=Cause.PROGRAM, trace="no", fails=5),
        Phase.PARTLY,
        [*range(6)],
    ),
]


@pytest.mark.parametrize(("kind", "parallelism", "step", "deed", "phase", "told"), [row[1:] for row in JOBS])
def test_a_whole_job_passes_every_check(
    kind: Kind, parallelism: int, step: int, deed: Deed, phase: Phase, told: list[int], tmp_path: Path
) -> None:
    market, store = FakeMarket(deed=deed, step=step), JobStore(tmp_path)
    buyer = Buyer(market, store, kind, parallelism)
    buyer.follow()
    assert (buyer.machine.phase, buyer.told) == (phase, told)
    documents = store.load_documents(buyer.job)
    records = store.load_records(buyer.job, documents)
    verdicts = verify_job(documents, records, store.load_blobs(documents, records), market.genesis)
    assert [(one.number, one.lease) for one in verdicts if not one.passed] == []
    assert is_verified(verdicts)
    assert len(documents.leases) == (2 if parallelism == 2 else 1)
