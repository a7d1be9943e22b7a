"""Replay: a machine rebuilt from its journal stands where the one that died stood, and nothing it signed changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.codec import decode, encode
from chain.base.errors import Fault
from chain.base.hashing import Tag
from chain.base.merkle import is_consistent, prove_consistency
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Receipt, SegmentRecord, compute_records_root, is_final
from chain.ledger.transactions import Deliver, Extend, Settle
from provider.work.events import (
    AcceptanceArrived,
    BlobsFetched,
    FetchFailed,
    HolderLost,
    LeaseEnded,
    LeaseMoved,
    LeaseOpened,
    LeaseState,
    PostReceipt,
    Report,
    Restarted,
    Run,
    RunEnded,
    SegmentsRan,
    SlotGranted,
    Stopping,
    Stored,
    StoreFailed,
    Submit,
    Task,
    TransactionFinal,
    TransactionRefused,
    WorkEffect,
    WorkEvent,
)
from provider.work.machine import Work
from provider.work.papers import EMPTY, Papers
from provider.work.phases import Phase
from tests.provider.scene import (
    CHAIN,
    NOW,
    PROVIDER,
    accept,
    make_order,
    make_segment,
    make_spec,
    moved,
    open_lease,
    ran,
    run_ended,
    store,
)

Step = tuple[str, int]
SEGMENTS = 6
ODD = ["wait", "host fails", "job fails", "wrong output", "stored", "accepted", "stale", "deliver refused", "called"]
ODD += ["settle refused", "cancelling", "delivered", "settled", "stopping", "fetch failed", "store failed", "cut"]
ODD += ["holder lost", "extend final", "extend refused", "extended", "prefix accepted"]
NAMES = st.sampled_from(["go on"] * 20 + ["wait"] * 4 + ["stored"] * 4 + ["die"] * 4 + ODD)
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
        self.records: dict[int, SegmentRecord] = {}
        self.receipts: dict[bytes, Receipt] = {}
        self.has_left = False
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

    def perform(self, effects: Sequence[WorkEffect]) -> None:
        for effect in effects:
            self.todo.append(effect)
            if isinstance(effect, Report):
                for record in effect.records:
                    assert self.records.setdefault(record.index, record) == record, "two records of one segment"
            if isinstance(effect, PostReceipt):
                self.check_post(effect)
            if isinstance(effect, PostReceipt) or (isinstance(effect, Submit) and effect.task is Task.DELIVER):
                assert not self.has_left, "handed in or delivered behind the return"
            if isinstance(effect, Submit) and isinstance(effect.body, Settle | Deliver | Extend):
                assert encode(effect.body.receipt) in self.receipts, "a receipt that was never handed in"
            self.has_left = self.has_left or (isinstance(effect, Submit) and effect.task is Task.GIVE_BACK)

    def check_post(self, effect: PostReceipt) -> None:
        """What is handed in fits together: the new records, the root over all, and at most one receipt for a count."""
        receipt, known = effect.receipt.body, list(self.records.values())
        assert receipt.count == effect.since + len(effect.records) and effect.records
        assert effect.records == tuple(known[effect.since : receipt.count])
        assert receipt.records == compute_records_root(known[: receipt.count])
        assert (receipt.provenance == EMPTY) == (not effect.provenance)
        assert is_final(receipt, self.opened.count) == bool(effect.provenance)
        self.receipts[encode(effect.receipt)] = receipt

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
            case Phase.POSTING | Phase.LEAVING:
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
        """The holder signs what was posted last, the requester accepts the final receipt."""
        posts = [effect.receipt for effect in self.todo if isinstance(effect, PostReceipt)]
        final = self.work.papers.final if self.work.papers is not None else None
        if name == "stored" and posts:
            self.tell(Stored(store(posts[-1]), posts[-1].body.count))
        elif name == "accepted" and final is not None:
            self.tell(AcceptanceArrived(accept(final)))


def assert_same(one: Work, other: Work) -> None:
    """A rebuilt machine agrees with the one that died on all that matters. What is not stored: how far the start had
    come, an acceptance (it is asked for again), the lease's end (the chain is asked first), that a transaction is final
    (so leaving begins again).
    """
    if other.phase is Phase.ENDED:
        return
    assert one.papers is not None and other.papers is not None
    assert one.papers.records == other.papers.records
    assert one.papers.final == other.papers.final
    assert one._known.handing.stored == other._known.handing.stored
    if other._known.standing._accepted is not None:
        return
    early = {Phase.RUNNING: Phase.FETCHING, Phase.QUEUED: Phase.FETCHING}
    if not (one.phase is Phase.LEAVING and other.phase is Phase.STOPPED):
        assert early.get(one.phase, one.phase) is early.get(other.phase, other.phase)
        assert one.wake_at() == other.wake_at()
    assert one.failures == other.failures


ONE_OFF: dict[str, WorkEvent] = {
    "deliver refused": TransactionRefused(Task.DELIVER, "R8"),
    "settle refused": TransactionRefused(Task.SETTLE, "R7"),
    "called": moved(LeaseState.CALLED, held=SEGMENTS, called=7),
    "cancelling": moved(LeaseState.CANCELLING, held=SEGMENTS),
    "delivered": moved(LeaseState.DELIVERED, held=SEGMENTS),
    "settled": LeaseEnded(LeaseState.SETTLED),
    "stopping": Stopping(),
    "fetch failed": FetchFailed("gone"),
    "store failed": StoreFailed("gone"),
    "holder lost": HolderLost(),
    "stale": ran(99, 0, output=b"stale"),
}


def play(provider: Provider, steps: list[Step]) -> None:
    for name, span in steps:
        if name in ("stored", "accepted"):
            provider.answer(name)
        elif name in ONE_OFF:
            provider.tell(ONE_OFF[name])
        else:
            STORIES[name](provider, span)


def wait(provider: Provider, span: int) -> None:
    provider.now += span
    provider.wake()


def fail_host(provider: Provider, span: int) -> None:
    run = provider.next_run()
    provider.tell(run_ended(run.attempt if run else 0, Cause.HOST, provider.now))


def fail_job(provider: Provider, span: int) -> None:
    run, done = provider.next_run(), len(provider.records)
    if provider.work.phase is Phase.RUNNING and run is not None and run.count:
        start = b"state %d" % done if done else b"inputs"
        provider.tell(ran(run.attempt, done, input=start, output=b"", cause=Cause.PROGRAM))


def cut(provider: Provider, span: int) -> None:
    served = min(len(provider.records), span % 4)
    provider.tell(moved(LeaseState.DELIVERED, served=served, held=served))


def extend(provider: Provider, span: int) -> None:
    provider.tell(moved(LeaseState.OPEN, served=min(len(provider.records), span % 4), held=SEGMENTS))


def answer_extend(provider: Provider, event: WorkEvent) -> None:
    """The chain's word on an extension that this life asked for."""
    if any(isinstance(effect, Submit) and effect.task is Task.EXTEND for effect in provider.todo):
        provider.tell(event)


def accept_prefix(provider: Provider, span: int) -> None:
    if provider.receipts:
        body = list(provider.receipts.values())[span % len(provider.receipts)]
        provider.tell(AcceptanceArrived(accept(PROVIDER.sign(Tag.RECEIPT, CHAIN, body))))


STORIES: dict[str, Callable[[Provider, int], None]] = {
    "go on": lambda provider, _: provider.go_on(),
    "die": lambda provider, _: provider.die(),
    "wrong output": lambda provider, span: provider.go_on(output=b"not the same twice %d" % span),
    "wait": wait,
    "host fails": fail_host,
    "job fails": fail_job,
    "cut": cut,
    "extended": extend,
    "extend refused": lambda provider, _: answer_extend(provider, TransactionRefused(Task.EXTEND, "R5")),
    "extend final": lambda provider, _: answer_extend(provider, TransactionFinal(Task.EXTEND)),
    "prefix accepted": accept_prefix,
}


def make_provider(kind: Kind) -> Provider:
    spec = make_spec(kind=kind)
    order = make_order(spec=spec, segments=1 if kind is Kind.RUN else SEGMENTS, segment_wall=5_000)
    return Provider(open_lease(order, spec))


@given(st.sampled_from(Kind), STEPS)
def test_nothing_signed_ever_contradicts_however_often_it_dies(kind: Kind, steps: list[Step]) -> None:
    provider = make_provider(kind)
    play(provider, steps)
    provider.die()
    receipts = sorted(provider.receipts.values(), key=lambda receipt: receipt.count)
    finals = [receipt for receipt in receipts if is_final(receipt, provider.opened.count)]
    assert len(finals) <= 1, "two final receipts of one lease"
    counts = [receipt.count for receipt in receipts]
    assert len(set(counts)) == len(counts), "two receipts over the same records"
    records = list(provider.records.values())
    assert [record.index for record in records] == list(range(len(records)))
    for shorter, longer in pairwise(receipts):
        leaves = [encode(record) for record in records[: longer.count]]
        proof = prove_consistency(leaves, shorter.count)
        assert is_consistent(shorter.count, shorter.records, longer.count, longer.records, proof)
    if kind is Kind.TRAIN:
        assert all(one.output == after.input for one, after in pairwise(records))


@pytest.mark.parametrize("kind", Kind)
def test_a_cut_at_every_point_of_the_happy_path_leads_to_the_same_payment(kind: Kind) -> None:
    straight = make_provider(kind)
    pass_through(straight, cut=None)
    outputs = [record.output for record in straight.records.values()]
    for cut in range(len(straight.journal) * 3):
        provider = make_provider(kind)
        pass_through(provider, cut)
        submits = [effect for effect in provider.todo if isinstance(effect, Submit)]
        assert [submit.task for submit in submits] == [Task.SETTLE], f"cut {cut}"
        assert [record.output for record in provider.records.values()] == outputs


def test_a_prefix_handed_in_by_a_life_that_died_is_known_to_the_next() -> None:
    provider = make_provider(Kind.MAP)
    while not provider.receipts:
        provider.go_on()
        wait(provider, 100)
    [prefix] = provider.receipts.values()
    provider.go_on()
    provider.die()
    provider.tell(moved(LeaseState.DELIVERED, served=prefix.count, held=prefix.count))
    accept_prefix(provider, 0)
    assert [effect.task for effect in provider.todo if isinstance(effect, Submit)] == [Task.SETTLE]


def pass_through(provider: Provider, cut: int | None) -> None:
    """The happy path with hand-ins of prefixes on the way; it dies before step number `cut`."""
    for step in range(20 * SEGMENTS):
        if step == cut:
            provider.die()
        if any(isinstance(effect, Submit) for effect in provider.todo):
            return
        provider.go_on()
        provider.now += 100
        provider.wake()
        if step % 5 == 4:
            provider.answer("stored")


def test_events_survive_the_journal() -> None:
    provider = make_provider(Kind.MAP)
    pass_through(provider, None)
    provider.tell(ONE_OFF["delivered"])
    told: list[WorkEvent] = [decode(row, EVENT) for _, row in provider.journal if row]
    assert {type(event) for event in told} >= {LeaseOpened, SegmentsRan, RunEnded, Stored, LeaseMoved}
    assert [encode(event) for event in told] == [row for _, row in provider.journal if row]


def test_papers_refuse_what_would_contradict() -> None:
    papers = Papers(PROVIDER, CHAIN, open_lease())
    with pytest.raises(Fault, match="of a whole range"):
        papers.sign_final(run_ended())
    papers.add_record(make_segment(), "ns", "openblas")
    assert papers.find_accepted(accept(make_other())) is None
    first = papers.sign_final(run_ended())
    assert papers.sign_final(run_ended(1, finished=NOW + 999_999)) is first
    with pytest.raises(Fault, match="closed"):
        papers.add_record(make_segment(), "ns", "openblas")
    assert papers.find_accepted(accept(first)) is first


@pytest.mark.parametrize("cause", [Cause.OK, Cause.PROGRAM])
def test_no_record_follows_the_last_one_of_a_range_whose_final_receipt_is_still_to_come(cause: Cause) -> None:
    papers = Papers(PROVIDER, CHAIN, make_provider(Kind.MAP).opened)
    for index in range(SEGMENTS if cause is Cause.OK else 2):
        papers.add_record(make_segment(index), "ns", "openblas")
    if cause is not Cause.OK:
        papers.add_record(make_segment(2, cause=cause), "ns", "openblas")
    assert papers.is_complete and papers.final is None
    with pytest.raises(Fault, match="closed"):
        papers.add_record(make_segment(papers.done), "ns", "openblas")


def make_other() -> Any:
    """The receipt that the same records would have under another log."""
    other = Papers(PROVIDER, CHAIN, open_lease())
    other.add_record(make_segment(), "ns", "openblas")
    return other.sign_final(run_ended(finished=NOW + 1))


def test_a_machine_without_a_lease_is_not_asked_for_one() -> None:
    work = Work(PROVIDER, CHAIN)
    assert work.handle(Restarted(), NOW) == () and work.wake_at() is None and work.wake(NOW) == ()
    assert msgspec.structs.asdict(Restarted()) == {}
