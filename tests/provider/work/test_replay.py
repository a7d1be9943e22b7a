"""Replay: a machine rebuilt from its journal stands where the one that died stood, and nothing it signed changes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.codec import decode, encode
from chain.base.errors import Fault
from chain.base.merkle import is_consistent
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from chain.ledger.transactions import GiveBack
from provider.work.events import (
    AcceptanceArrived,
    BlobsFetched,
    FetchFailed,
    LeaseEnded,
    LeaseMoved,
    LeaseOpened,
    LeaseState,
    PostReceipt,
    Report,
    Restarted,
    Run,
    RunEnded,
    SegmentRan,
    SlotGranted,
    Stopping,
    Stored,
    StoreFailed,
    Submit,
    Task,
    TransactionRefused,
    WorkEffect,
    WorkEvent,
)
from provider.work.machine import Phase, Work
from provider.work.papers import Papers
from tests.provider.scene import CHAIN, NOW, PROVIDER, accept, make_order, make_spec, open_lease, ran, run_ended, store

Step = tuple[str, int]
SEGMENTS = 3
ODD = ["wait", "host fails", "job fails", "wrong output", "stored", "accepted", "stale", "deliver refused"]
ODD += ["settle refused", "cancelling", "delivered", "settled", "stopping", "fetch failed", "store failed"]
NAMES = st.sampled_from(["go on"] * 12 + ["die"] * 3 + ODD)
STEPS = st.lists(st.tuples(NAMES, st.integers(0, 20_000)), max_size=40)
EVENT: Any = WorkEvent


class Provider:
    """A machine under a journal, a sandbox and a holder that do what they are asked; it may die at any step."""

    def __init__(self, opened: LeaseOpened) -> None:
        self.opened = opened
        self.now = opened.opened
        self.journal: list[tuple[int, bytes]] = []
        self.work = Work(PROVIDER, CHAIN)
        self.todo: list[WorkEffect] = []
        self.records: dict[int, Any] = {}
        self.receipts: set[bytes] = set()
        self.tell(opened)

    def tell(self, event: WorkEvent) -> None:
        """What the driver does, in the same order."""
        self.wake()
        if getattr(event, "durable", True):
            self.journal.append((self.now, encode(event)))
        self.perform(self.work.handle(event, self.now))

    def wake(self) -> None:
        while (due := self.work.wake_at()) is not None and due <= self.now:
            self.journal.append((self.now, b""))
            self.perform(self.work.wake(self.now))

    def perform(self, effects: Any) -> None:
        for effect in effects:
            self.todo.append(effect)
            if isinstance(effect, Report):
                self.records.setdefault(effect.record.body.index, effect.record)
                assert self.records[effect.record.body.index] == effect.record, "two records of one segment"
            if isinstance(effect, PostReceipt):
                self.receipts.add(encode(effect.receipt))
                assert effect.records == tuple(self.records.values())
            if isinstance(effect, Submit) and not isinstance(effect.body, GiveBack):
                self.receipts.add(encode(effect.body.receipt))

    def rebuild(self) -> Work:
        work = Work(PROVIDER, CHAIN)
        for now, row in self.journal:
            if row:
                work.handle(decode(row, EVENT), now)
            else:
                work.wake(now)
        return work

    def die(self) -> None:
        assert_same(self.rebuild(), self.work)
        self.work, self.todo = self.rebuild(), []
        self.tell(Restarted())

    def next_run(self) -> Run | None:
        runs = [effect for effect in self.todo if isinstance(effect, Run)]
        return runs[-1] if runs else None

    def go_on(self, output: bytes = b"") -> None:
        """The next thing that a healthy host would report."""
        match self.work.phase:
            case Phase.FETCHING:
                self.tell(BlobsFetched())
            case Phase.QUEUED:
                self.tell(SlotGranted())
            case Phase.RUNNING:
                self.run_on(output)
            case Phase.POSTING:
                self.answer("stored")
            case Phase.STORED | Phase.DELIVERED:
                self.answer("accepted")
            case _:
                pass

    def run_on(self, output: bytes) -> None:
        run, papers = self.next_run(), self.work.papers
        assert papers is not None
        if run is None or run.count == 0 or papers.is_complete:
            self.tell(run_ended(run.attempt if run else 0, papers.cause, self.now))
            return
        index = papers.done
        made = output or b"state %d" % (index + 1)
        self.tell(ran(run.attempt, index, input=b"state %d" % index if index else b"inputs", output=made))

    def answer(self, name: str) -> None:
        papers = self.work.papers
        if papers is not None and papers.receipt is not None:
            good: dict[str, WorkEvent] = {
                "stored": Stored(store(papers.receipt)),
                "accepted": AcceptanceArrived(accept(papers.receipt)),
            }
            self.tell(good[name])


def assert_same(one: Work, other: Work) -> None:
    """A rebuilt machine agrees with the one that died on all that matters. What is not stored: how far the start had
    come, an acceptance (it is asked for again), the lease's end (the chain is asked first).
    """
    if other.phase is Phase.ENDED:
        return
    early = {Phase.RUNNING: Phase.FETCHING, Phase.QUEUED: Phase.FETCHING}
    assert early.get(one.phase, one.phase) is early.get(other.phase, other.phase)
    if other._acceptance is None:
        assert one.wake_at() == other.wake_at()
        assert one.failures == other.failures
    if one.papers is not None and other.papers is not None:
        assert one.papers.records == other.papers.records
        assert one.papers.receipt == other.papers.receipt


ONE_OFF: dict[str, WorkEvent] = {
    "deliver refused": TransactionRefused(Task.DELIVER, "R8"),
    "settle refused": TransactionRefused(Task.SETTLE, "R7"),
    "cancelling": LeaseMoved(LeaseState.CANCELLING),
    "delivered": LeaseMoved(LeaseState.DELIVERED),
    "settled": LeaseEnded(LeaseState.SETTLED),
    "stopping": Stopping(),
    "fetch failed": FetchFailed("gone"),
    "store failed": StoreFailed("gone"),
    "stale": ran(99, 0, output=b"stale"),
}


def play(provider: Provider, steps: list[Step]) -> None:
    for name, span in steps:
        run = provider.next_run()
        attempt = run.attempt if run else 0
        if name == "go on":
            provider.go_on()
        elif name == "die":
            provider.die()
        elif name == "wait":
            provider.now += span
            provider.wake()
        elif name == "host fails":
            provider.tell(run_ended(attempt, Cause.HOST, provider.now))
        elif name == "job fails" and provider.work.phase is Phase.RUNNING and run is not None and run.count:
            done = provider.work.papers.done if provider.work.papers else 0
            start = b"state %d" % done if done else b"inputs"
            provider.tell(ran(attempt, done, input=start, output=b"", cause=Cause.PROGRAM))
        elif name == "wrong output":
            provider.go_on(output=b"not the same twice %d" % span)
        elif name in ("stored", "accepted"):
            provider.answer(name)
        elif name in ONE_OFF:
            provider.tell(ONE_OFF[name])


def make_provider(kind: Kind) -> Provider:
    spec = make_spec(kind=kind)
    order = make_order(spec=spec, segments=1 if kind is Kind.RUN else SEGMENTS, start=spec.inputs)
    return Provider(open_lease(order, spec))


@given(st.sampled_from([Kind.RUN, Kind.TRAIN]), STEPS)
def test_nothing_signed_ever_contradicts_however_often_it_dies(kind: Kind, steps: list[Step]) -> None:
    provider = make_provider(kind)
    play(provider, steps)
    provider.die()
    assert len(provider.receipts) <= 1, "two receipts of one lease"
    bodies = [record.body for record in provider.records.values()]
    assert [body.index for body in bodies] == list(range(len(bodies)))
    if kind is Kind.TRAIN:
        assert all(one.output == after.input for one, after in pairwise(bodies))


@pytest.mark.parametrize("kind", [Kind.RUN, Kind.TRAIN])
def test_a_cut_at_every_point_of_the_happy_path_leads_to_the_same_payment(kind: Kind) -> None:
    straight = make_provider(kind)
    while straight.next_run() is None or not any(isinstance(effect, Submit) for effect in straight.todo):
        straight.go_on()
    length = len(straight.journal)
    outputs = [record.body.output for record in straight.records.values()]
    for cut in range(length * 3):
        provider = make_provider(kind)
        for step in range(length * 6):
            if step == cut:
                provider.die()
            if any(isinstance(effect, Submit) for effect in provider.todo):
                break
            provider.go_on()
        submits = [effect for effect in provider.todo if isinstance(effect, Submit)]
        assert [submit.task for submit in submits] == [Task.SETTLE], f"cut {cut}"
        assert [record.body.output for record in provider.records.values()] == outputs


def test_events_survive_the_journal() -> None:
    provider = make_provider(Kind.RUN)
    for _ in range(6):
        provider.go_on()
    provider.tell(ONE_OFF["delivered"])
    told: list[WorkEvent] = [decode(row, EVENT) for _, row in provider.journal if row]
    assert {type(event) for event in told} >= {LeaseOpened, SegmentRan, RunEnded, Stored, LeaseMoved}
    assert [encode(event) for event in told] == [row for _, row in provider.journal if row]


def test_papers_refuse_what_would_contradict() -> None:
    papers = Papers(PROVIDER, CHAIN, open_lease())
    with pytest.raises(Fault, match="at least one"):
        papers.sign_receipt(run_ended())
    assert papers.find_objection(accept(make_receipt())) == "it is on another receipt"
    papers.add_record(ran())
    first = papers.sign_receipt(run_ended())
    assert papers.sign_receipt(run_ended(1, finished=NOW + 999_999)) is first
    with pytest.raises(Fault, match="closed"):
        papers.add_record(ran())
    assert is_consistent(1, first.body.records, 1, first.body.records, ())


def make_receipt() -> Any:
    papers = Papers(PROVIDER, CHAIN, open_lease())
    papers.add_record(ran())
    return papers.sign_receipt(run_ended())


def test_a_machine_without_a_lease_is_not_asked_for_one() -> None:
    work = Work(PROVIDER, CHAIN)
    assert work.handle(Restarted(), NOW) == () and work.wake_at() is None and work.wake(NOW) == ()
    assert msgspec.structs.asdict(Restarted()) == {}
