"""The work machine, row by row: each (phase, event) has one outcome, each phase its timer."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from chain.base.hashing import compute_digest
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause
from chain.ledger.terms.work import Span, compute_receipt_id
from chain.ledger.transactions import Deliver, GiveBack, Settle
from provider.work.events import (
    AcceptanceArrived,
    AskSlot,
    AwaitAcceptance,
    BlobsFetched,
    Fetch,
    FetchFailed,
    Finish,
    FreeSlot,
    HolderLost,
    LeaseEnded,
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
    WorkEvent,
)
from provider.work.phases import Patience, Phase
from tests.provider.scene import (
    BROKER,
    CHAIN,
    INPUTS,
    OUTPUT,
    PROVIDER,
    WINDOWS,
    accept,
    make_order,
    make_segment,
    make_signer,
    make_spec,
    moved,
    open_lease,
    ran,
    run_ended,
    store,
)
from tests.provider.work.life import LATER, Life, kinds

OPENED = open_lease()
LAST_CALL = OPENED.deadline - Patience().deadline


def reach(phase: Phase, opened: LeaseOpened = OPENED) -> Life:
    """A life that has come to `phase` by the shortest way."""
    life = Life()
    way: list[tuple[Phase, Callable[[], WorkEvent]]] = [
        (Phase.NEW, lambda: opened),
        (Phase.FETCHING, BlobsFetched),
        (Phase.QUEUED, SlotGranted),
        (Phase.RUNNING, ran),
        (Phase.RUNNING, run_ended),
        (Phase.POSTING, life.stored),
        (Phase.STORED, lambda: moved(LeaseState.DELIVERED)),
        (Phase.DELIVERED, lambda: LeaseEnded(LeaseState.SETTLED)),
    ]
    if phase in (Phase.LEAVING, Phase.STOPPED):
        life.tell(opened, FetchFailed("gone"))
        if phase is Phase.STOPPED:
            life.tell(TransactionRefused(Task.GIVE_BACK, "row 5"))
    else:
        for now_at, event in way:
            if life.work.phase is phase:
                break
            assert life.work.phase is now_at
            life.tell(event())
    assert life.work.phase is phase
    return life


def test_happy_path_is_two_documents_and_one_settle() -> None:
    life = Life()
    assert life.tell(OPENED) == [Fetch(OPENED.opened + 25_000)]
    assert life.tell(BlobsFetched()) == [AskSlot()]
    assert life.tell(SlotGranted()) == [Run(0, 0, 1)]
    [report] = life.tell(ran())
    assert isinstance(report, Report) and (report.done, report.total) == (1, 1)
    [free, post] = life.tell(run_ended())
    assert isinstance(free, FreeSlot) and isinstance(post, PostReceipt)
    assert post.records == report.records and (post.since, post.receipt.body.count) == (0, 1)
    assert compute_digest(post.provenance) == post.receipt.body.provenance
    assert life.tell(life.stored()) == [AwaitAcceptance()]
    acceptance = accept(post.receipt)
    assert life.tell(AcceptanceArrived(acceptance)) == [
        Submit(Task.SETTLE, Settle(post.receipt, acceptance), "accepted")
    ]
    assert life.work.wake_at() is None
    assert life.tell(TransactionFinal(Task.SETTLE)) == []
    assert life.tell(LeaseEnded(LeaseState.SETTLED)) == [Finish(LeaseState.SETTLED)]
    assert life.work.is_quiet


def test_silence_is_delivered_after_the_patience_and_a_late_acceptance_still_settles() -> None:
    life = reach(Phase.STORED)
    assert life.work.wake_at() == LATER + 3_000
    assert life.wake(LATER + 2_999) == []
    [submit] = life.wake(LATER + 3_000)
    assert isinstance(submit, Submit) and isinstance(submit.body, Deliver)
    assert life.wake(LATER + 10_000) == []
    assert kinds(life.tell(life.accepted(), now=LATER + 10_000)) == ["submit settle"]


def test_acceptance_may_come_before_the_storage_receipt() -> None:
    life = reach(Phase.POSTING)
    assert kinds(life.tell(life.accepted())) == ["submit settle"]
    assert life.tell(life.stored()) == [AwaitAcceptance()]
    assert life.work.wake_at() is None, "what is being settled is not delivered as well"


POSTED: PostReceipt = reach(Phase.POSTING).posted
LEAVE = ["Kill", "FreeSlot", "submit return"]
BEGIN_AGAIN = ["FreeSlot", "Fetch"]
EVENTS: dict[str, Callable[[Life], WorkEvent]] = {
    "opened": lambda _: OPENED,
    "fetched": lambda _: BlobsFetched(),
    "fetch failed": lambda _: FetchFailed("gone"),
    "slot": lambda _: SlotGranted(),
    "segment": lambda _: ran(),
    "stale segment": lambda _: ran(attempt=7),
    "host segment": lambda _: ran(cause=Cause.HOST),
    "ended": lambda _: run_ended(),
    "ended by host": lambda _: run_ended(cause=Cause.HOST),
    "stale end": lambda _: run_ended(attempt=7),
    "holder lost": lambda _: HolderLost(),
    "stored": lambda _: Stored(store(POSTED.receipt), 1),
    "store failed": lambda _: StoreFailed("no"),
    "accepted": lambda _: AcceptanceArrived(accept(POSTED.receipt)),
    "settle final": lambda _: TransactionFinal(Task.SETTLE),
    "settle refused": lambda _: TransactionRefused(Task.SETTLE, "R7"),
    "deliver refused": lambda _: TransactionRefused(Task.DELIVER, "R8"),
    "extend refused": lambda _: TransactionRefused(Task.EXTEND, "R5"),
    "answer refused": lambda _: TransactionRefused(Task.ANSWER, "R6"),
    "return refused": lambda _: TransactionRefused(Task.GIVE_BACK, "R4"),
    "stopping": lambda _: Stopping(),
    "restarted": lambda _: Restarted(),
    "open": lambda _: moved(LeaseState.OPEN),
    "called": lambda _: moved(LeaseState.CALLED),
    "cancelling": lambda _: moved(LeaseState.CANCELLING),
    "delivered": lambda _: moved(LeaseState.DELIVERED),
    "disputed": lambda _: moved(LeaseState.DISPUTED),
    "over": lambda _: LeaseEnded(LeaseState.EXPIRED),
}
Rows = dict[str, tuple[Phase | None, list[str]]]
OVER: Rows = {"over": (Phase.ENDED, ["Finish"])}
RUNNING_OVER: Rows = {"over": (Phase.ENDED, ["Kill", "FreeSlot", "Finish"])}
MOVED: Rows = {"delivered": (Phase.DELIVERED, []), "disputed": (Phase.DELIVERED, [])}
HEARD: Rows = {name: (Phase.DELIVERED, ["AwaitAcceptance"]) for name in MOVED}
HALTED: Rows = {name: (Phase.DELIVERED, ["Kill", "FreeSlot"]) for name in MOVED}
CALLED: Rows = {"called": (None, ["submit answer"])}
LOST_SLOT: Rows = {"slot": (None, ["FreeSlot"])}
WORKING: Rows = {
    "fetch failed": (Phase.LEAVING, LEAVE),
    "stopping": (Phase.LEAVING, LEAVE),
    "restarted": (Phase.FETCHING, BEGIN_AGAIN),
    "cancelling": (Phase.STOPPED, ["Kill", "FreeSlot"]),
    "segment": (None, ["Report"]),
    "ended": (Phase.FETCHING, BEGIN_AGAIN),
    "ended by host": (Phase.FETCHING, BEGIN_AGAIN),
    **HALTED,
    **RUNNING_OVER,
    **CALLED,
}
TABLE: dict[Phase, Rows] = {
    # A row not named: nothing is done, the phase stays.
    Phase.NEW: {"opened": (Phase.FETCHING, ["Fetch"])},
    Phase.FETCHING: WORKING | LOST_SLOT | {
        "fetched": (Phase.QUEUED, ["AskSlot"]),
    },
    Phase.QUEUED: WORKING | {"slot": (Phase.RUNNING, ["Run"])},
    Phase.RUNNING: WORKING | LOST_SLOT,
    Phase.POSTING: HEARD | OVER | LOST_SLOT | CALLED | {
        "holder lost": (None, ["PostReceipt"]),
        "stored": (Phase.STORED, ["AwaitAcceptance"]),
        "store failed": (Phase.LEAVING, ["submit return"]),
        "accepted": (None, ["submit settle"]),
        "restarted": (None, ["PostReceipt"]),
    },
    Phase.STORED: HEARD | OVER | LOST_SLOT | CALLED | {
        "accepted": (None, ["submit settle"]),
        "settle refused": (None, ["submit deliver"]),
        "deliver refused": (Phase.LEAVING, ["submit extend"]),
        "cancelling": (None, ["submit deliver"]),
        "stopping": (None, ["submit deliver"]),
        "restarted": (None, ["AwaitAcceptance"]),
    },
    Phase.DELIVERED: OVER | LOST_SLOT | {
        "accepted": (None, ["submit settle"]),
        "restarted": (None, ["AwaitAcceptance"]),
    },
    Phase.LEAVING: MOVED | OVER | LOST_SLOT | CALLED | {
        "extend refused": (None, ["submit return"]),
        "return refused": (Phase.STOPPED, []),
        "restarted": (None, ["submit return"]),
    },
    Phase.STOPPED: MOVED | OVER | LOST_SLOT,
    Phase.ENDED: {"restarted": (None, ["Finish"])},
}  # fmt: skip


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("phase", Phase)
def test_each_phase_and_event_have_one_outcome(phase: Phase, name: str) -> None:
    life = reach(phase)
    after, effects = TABLE[phase].get(name, (None, []))
    assert kinds(life.tell(EVENTS[name](life))) == effects
    assert life.work.phase is (after or phase)


TIMERS = [
    # phase, Instant, what happens
    (Phase.FETCHING, LAST_CALL, LEAVE),
    (Phase.QUEUED, LAST_CALL, LEAVE),
    (Phase.RUNNING, LAST_CALL, LEAVE),
    (Phase.POSTING, OPENED.deadline - Patience().deadline // 2, ["submit return"]),
    (Phase.STORED, LATER + 3_000, ["submit deliver"]),
    (Phase.DELIVERED, None, []),
    (Phase.LEAVING, None, []),
    (Phase.STOPPED, None, []),
    (Phase.ENDED, None, []),
    (Phase.NEW, None, []),
]


@pytest.mark.parametrize(("phase", "due", "effects"), TIMERS)
def test_each_phase_has_one_timer(phase: Phase, due: int | None, effects: list[str]) -> None:
    life = reach(phase)
    assert life.work.wake_at() == due
    assert life.work.wake((due or 1) - 1) == ()
    assert kinds(life.wake(due or 10**15)) == effects


@pytest.mark.parametrize(("window", "span"), [(30_000, 25_000), (4_000, 2_000), (0, 0)])
def test_inputs_are_waited_for_until_shortly_before_the_start_window_ends(window: int, span: int) -> None:
    order = make_order(windows=msgspec.structs.replace(WINDOWS, start=window))
    assert Life().tell(open_lease(order), now=order.closes) == [Fetch(order.closes + span)]


def test_after_a_restart_inputs_are_waited_for_again() -> None:
    assert reach(Phase.RUNNING).tell(Restarted())[-1] == Fetch(LATER + Patience().start)


def test_the_last_segment_may_come_with_the_end_of_the_run() -> None:
    life = reach(Phase.RUNNING)
    ended = msgspec.structs.replace(run_ended(), last=(make_segment(),))
    assert kinds(life.tell(ended)) == ["Report", "FreeSlot", "PostReceipt"]
    assert life.posted.records[0].output == compute_digest(OUTPUT)


def test_a_last_segment_that_contradicts_is_given_back() -> None:
    ended = msgspec.structs.replace(run_ended(), last=(make_segment(input=b"other"),))
    assert kinds(reach(Phase.RUNNING).tell(ended)) == LEAVE


def test_patience_never_outlasts_the_deadline() -> None:
    life = reach(Phase.POSTING)
    life.tell(life.stored(), now=LAST_CALL - 1)
    assert life.work.wake_at() == LAST_CALL


@pytest.mark.parametrize("cause", sorted(FINAL_FAILURES))
def test_a_job_that_fails_is_a_segment_that_is_paid(cause: Cause) -> None:
    life = reach(Phase.RUNNING)
    error = compute_digest(b"Traceback")
    life.tell(ran(output=b"", cause=cause, error=error))
    life.tell(run_ended(cause=cause))
    receipt, [record] = life.posted.receipt.body, life.posted.records
    assert (receipt.cause, receipt.count, record.error) == (cause, 1, error)
    life.tell(life.stored())
    assert kinds(life.wake(LATER + 3_000)) == ["submit deliver"]


def test_a_receipt_that_ends_by_a_failed_segment_is_no_extension() -> None:
    life = reach(Phase.RUNNING)
    life.tell(ran(output=b"", cause=Cause.PROGRAM), run_ended(cause=Cause.PROGRAM))
    life.tell(life.stored())
    life.wake(LATER + 3_000)
    assert kinds(life.tell(TransactionRefused(Task.DELIVER, "R8"))) == ["submit return"], "the chain takes none (R5)"


def test_a_failing_host_is_tried_twice_and_then_given_back() -> None:
    life = reach(Phase.RUNNING)
    assert kinds(life.tell(run_ended(cause=Cause.HOST))) == BEGIN_AGAIN
    life.tell(BlobsFetched())
    assert life.tell(SlotGranted()) == [Run(1, 0, 1)]
    effects = life.tell(run_ended(1, Cause.HOST))
    assert kinds(effects) == LEAVE
    submit = effects[-1]
    assert isinstance(submit, Submit) and submit.body == GiveBack(OPENED.lease)


def test_a_run_that_forgets_a_segment_is_no_receipt() -> None:
    life = reach(Phase.RUNNING)
    assert kinds(life.tell(run_ended())) == BEGIN_AGAIN


def test_after_a_restart_the_job_runs_again_only_if_the_deadline_allows() -> None:
    wall, spare = 10_000, Patience().overhead + Patience().deadline
    for now, expected in [
        (OPENED.deadline - wall - spare, BEGIN_AGAIN),
        (OPENED.deadline - wall - spare + 1, LEAVE),
    ]:
        assert kinds(reach(Phase.RUNNING).tell(Restarted(), now=now)) == expected


def test_records_of_an_earlier_life_are_not_signed_again() -> None:
    spec = make_spec(kind=Kind.TRAIN)
    life = reach(Phase.RUNNING, open_lease(make_order(spec=spec, segments=3), spec))
    [first] = life.tell(ran(output=b"state 1"))
    assert kinds(life.tell(Restarted())) == BEGIN_AGAIN
    life.tell(BlobsFetched())
    assert life.tell(SlotGranted()) == [Run(1, 1, 2)]
    assert life.tell(ran(0, 1, input=b"state 1")) == [], "a segment of the run that died"
    life.tell(ran(1, 1, input=b"state 1", output=b"state 2"), ran(1, 2, input=b"state 2"))
    life.tell(run_ended(1))
    assert isinstance(first, Report) and life.posted.records[0] == first.records[0]
    assert [record.index for record in life.posted.records] == [0, 1, 2]


def test_a_finished_run_is_not_run_again_for_want_of_its_log() -> None:
    life = reach(Phase.RUNNING)
    life.tell(ran())
    assert life.tell(Restarted()) == [Run(1, 1, 0)]
    assert kinds(life.tell(run_ended(1))) == ["FreeSlot", "PostReceipt"]


CONTRADICTIONS = {
    "another start than the order's": ran(input=b"other"),
    "an index that is not next": ran(index=1),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_would_contradict_is_given_back_and_not_signed(name: str) -> None:
    life = reach(Phase.RUNNING)
    assert kinds(life.tell(CONTRADICTIONS[name])) == LEAVE


def test_a_chain_of_states_with_a_gap_is_given_back() -> None:
    spec = make_spec(kind=Kind.TRAIN)
    life = reach(Phase.RUNNING, open_lease(make_order(spec=spec, segments=3), spec))
    life.tell(ran(output=b"state 1"))
    assert kinds(life.tell(ran(index=1, input=b"state 2"))) == ["Kill", "FreeSlot", "PostReceipt"]
    assert life.posted.receipt.body.count == 1, "what was done before the gap is handed in"


def test_more_segments_than_leased_are_not_signed() -> None:
    life = reach(Phase.RUNNING)
    life.tell(ran())
    assert life.tell(ran(index=1, input=OUTPUT)) == []
    life.tell(run_ended())
    assert life.posted.receipt.body.count == 1


RECEIPT = POSTED.receipt
STRANGER = make_signer("stranger")
OBJECTIONS = {
    "forged": msgspec.structs.replace(accept(RECEIPT), signature=accept(RECEIPT, STRANGER).signature),
    "by a stranger": accept(RECEIPT, STRANGER),
    "on another receipt": accept(RECEIPT, change={"receipt": bytes(32)}),
    "on another lease": accept(RECEIPT, change={"lease": bytes(32)}),
    "of nothing": accept(RECEIPT, change={"segments": ()}),
    "of too much": accept(RECEIPT, change={"segments": (Span(0, 2),)}),
    "of something else": accept(RECEIPT, change={"segments": (Span(1, 1),)}),
    "twice the same": accept(RECEIPT, change={"segments": (Span(0, 1), Span(0, 1))}),
    "of an empty span more": accept(RECEIPT, change={"segments": (Span(0, 1), Span(1, 0))}),
}


@pytest.mark.parametrize("name", OBJECTIONS)
def test_an_acceptance_that_does_not_pay_for_all_is_no_settle(name: str) -> None:
    life = reach(Phase.STORED)
    assert life.tell(AcceptanceArrived(OBJECTIONS[name])) == []
    assert kinds(life.wake(LATER + 3_000)) == ["submit deliver"]


def test_a_watcher_may_accept_instead_and_spans_may_be_many() -> None:
    watcher, spec = make_signer("watcher"), make_spec(kind=Kind.MAP)
    life = Life()
    life.tell(open_lease(make_order(spec=spec, segments=2, watcher=watcher.key), spec), BlobsFetched(), SlotGranted())
    life.tell(ran(), ran(index=1), run_ended())
    acceptance = accept(life.posted.receipt, watcher, {"segments": (Span(0, 1), Span(1, 1))})
    assert kinds(life.tell(AcceptanceArrived(acceptance))) == ["submit settle"]


def test_a_refused_delivery_waits_for_the_settle_that_is_on_its_way() -> None:
    life = reach(Phase.STORED)
    life.wake(LATER + 3_000)
    life.tell(life.accepted())
    assert life.tell(TransactionRefused(Task.DELIVER, "R8")) == []
    assert kinds(life.tell(Restarted())) == ["submit settle", "AwaitAcceptance"]
    assert life.tell(TransactionRefused(Task.SETTLE, "R7")) == [], "both were tried"


def test_what_was_under_way_is_asked_for_again_after_a_restart() -> None:
    life = reach(Phase.STORED)
    life.wake(LATER + 3_000)
    assert kinds(life.tell(Restarted())) == ["submit deliver", "AwaitAcceptance"]


def test_a_return_that_was_refused_is_not_tried_for_ever() -> None:
    life = reach(Phase.STORED)
    life.tell(TransactionRefused(Task.GIVE_BACK, "row 5"), TransactionRefused(Task.DELIVER, "R8"))
    assert life.tell(TransactionRefused(Task.EXTEND, "R8")) == [AwaitAcceptance()]
    assert life.work.phase is Phase.STOPPED


def test_cancelled_while_handing_in_is_delivered_without_patience() -> None:
    life = reach(Phase.POSTING)
    life.tell(moved(LeaseState.CANCELLING))
    assert kinds(life.tell(life.stored())) == ["AwaitAcceptance", "submit deliver"]


def test_a_settle_wins_even_while_the_lease_is_given_back() -> None:
    life = reach(Phase.POSTING)
    life.tell(StoreFailed("the broker is gone"))
    assert kinds(life.tell(life.accepted())) == ["submit settle"]
    assert kinds(life.tell(Restarted())) == ["submit return", "submit settle"]


def test_the_receipt_names_what_was_promised_and_measured() -> None:
    receipt = POSTED.receipt.body
    assert receipt.environment.runtime == OPENED.announcement.order.body.runtime
    assert (receipt.lease, receipt.provider, receipt.first, receipt.count) == (OPENED.lease, PROVIDER.key, 0, 1)
    assert receipt.usage == POSTED.records[0].usage
    assert POSTED.records[0].input == compute_digest(INPUTS)
    assert compute_receipt_id(CHAIN, receipt) == store(POSTED.receipt).body.receipt
    assert BROKER.key in OPENED.announcement.order.body.holders


def test_an_ended_run_is_reported_once_for_each_segment() -> None:
    spec = make_spec(kind=Kind.MAP)
    life = reach(Phase.RUNNING, open_lease(make_order(spec=spec, segments=3), spec))
    reports = [life.tell(ran(index=index))[0] for index in range(3)]
    assert [report.done for report in reports if isinstance(report, Report)] == [1, 2, 3]


def test_a_map_has_no_chain_of_states_and_an_unknown_segment_of_a_host_is_none() -> None:
    life = reach(Phase.RUNNING)
    assert life.work.papers is not None
    assert "host failure" in life.work.papers.find_contradiction(make_segment(cause=Cause.HOST))


def test_every_event_is_in_the_table() -> None:
    told = {type(make(reach(Phase.POSTING))) for make in EVENTS.values()}
    assert told == set(WorkEvent.__args__)
    assert {SegmentsRan, RunEnded} <= told and set(TABLE) == set(Phase)
