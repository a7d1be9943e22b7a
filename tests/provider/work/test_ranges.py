"""Ranges of many segments: hand-ins at their pace, leaving with what is done, calls, cancels, cut leases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from broker.protocol.api import MAX_DELIVERED
from broker.protocol.provenance import WorkFacts, check_provenance
from chain.base.errors import Fault
from chain.base.hashing import compute_digest
from chain.base.merkle import is_consistent
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Span, compute_records_root
from chain.ledger.transactions import Answer, Deliver, Extend, GiveBack, Settle
from provider.work.events import (
    AcceptanceArrived,
    FetchFailed,
    HolderLost,
    LeaseOpened,
    LeaseState,
    PostReceipt,
    Restarted,
    Run,
    SegmentsRan,
    Stopping,
    StoreFailed,
    Submit,
    Task,
    TransactionFinal,
    TransactionRefused,
    WorkEvent,
)
from provider.work.handing import MAX_LOSSES, PREFIX_MS
from provider.work.papers import EMPTY, Papers
from provider.work.phases import Patience, Phase
from tests.provider.scene import (
    CHAIN,
    LOG,
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
from tests.provider.work.life import LATER, Life, begin, kinds

MAP = make_spec(kind=Kind.MAP)
DUE = LATER + PREFIX_MS
LEAVE_AND_POST = ["Kill", "FreeSlot", "PostReceipt"]


def open_map(segments: int = 5, first: int = 0, **changes: Any) -> LeaseOpened:
    """A lease on the last segments of a map, from `first` on."""
    changes = {"segment_wall": 1_000} | changes
    order = make_order(spec=MAP, segments=first + segments, **changes)
    return open_lease(order, MAP, Span(first, segments))


def batch(first: int, count: int, attempt: int = 0) -> SegmentsRan:
    return SegmentsRan(
        attempt, "ns", "openblas", tuple(make_segment(first + n, output=b"%d" % (first + n)) for n in range(count))
    )


def begin_with(done: int, opened: LeaseOpened | None = None) -> Life:
    """A life with so many records, of which none was handed in yet."""
    opened = opened or open_map()
    life = begin(opened)
    life.tell(batch(opened.first, done))
    return life


# Hand-ins at their pace


def test_a_prefix_goes_out_a_quarter_second_after_the_first_record_and_then_as_often() -> None:
    life = begin_with(1)
    assert life.wake(DUE - 1) == []
    life.tell(batch(1, 1), now=DUE - 1)
    assert kinds(life.wake(DUE)) == ["PostReceipt"]
    first = life.posted
    assert (first.since, first.receipt.body.count, len(first.records)) == (0, 2, 2)
    assert kinds(life.tell(batch(2, 1), now=DUE + 900)) == ["Report"]
    assert life.tell(life.stored(), now=DUE + 901) == []
    assert kinds(life.wake(DUE + 901)) == ["PostReceipt"], "the pace was kept long ago"
    assert (life.posted.since, life.posted.receipt.body.count, len(life.posted.records)) == (2, 3, 1)


def test_there_is_one_hand_in_at_a_time() -> None:
    life = begin_with(2)
    life.wake(DUE)
    life.tell(batch(2, 1), now=DUE + 5_000)
    assert life.wake(DUE + 10_000) == [] and len(life.find(PostReceipt)) == 1


def test_an_answer_to_an_earlier_hand_in_is_none_to_the_one_on_its_way() -> None:
    life = begin_with(2)
    life.wake(DUE)
    late = life.stored()
    life.tell(Restarted(), batch(2, 1, attempt=1), now=DUE)
    life.wake(DUE + PREFIX_MS)
    assert (life.posted.since, life.posted.receipt.body.count) == (0, 3)
    assert life.tell(late, batch(3, 1, attempt=1), now=DUE + PREFIX_MS)
    assert life.wake(DUE + 9 * PREFIX_MS) == [], "its storage receipt is not on the receipt that is waited for (R8)"
    life.tell(life.stored(), now=DUE + 9 * PREFIX_MS)
    assert kinds(life.wake(DUE + 9 * PREFIX_MS)) == ["PostReceipt"] and life.posted.since == 3


def test_nothing_new_is_not_handed_in_again() -> None:
    life = begin_with(2)
    life.wake(DUE)
    life.tell(life.stored(), now=DUE + 1)
    assert life.wake(DUE + 10_000) == []


def test_a_prefix_says_nothing_of_log_and_provenance_and_the_final_receipt_does() -> None:
    opened = open_map(3)
    life = begin_with(2, opened)
    life.wake(DUE)
    prefix = life.posted.receipt.body
    assert (prefix.log, prefix.provenance, prefix.cause) == (EMPTY, EMPTY, Cause.OK)
    assert prefix.records == compute_records_root(life.posted.records) and life.posted.provenance == b""
    assert prefix.finished == life.posted.records[-1].started + 7
    life.tell(batch(2, 1), run_ended(), now=DUE + 10)
    assert len(life.find(PostReceipt)) == 1, "the final one waits for the one on its way"
    assert kinds(life.tell(life.stored(), now=DUE + 20)) == ["PostReceipt"], "the pace is for prefixes"
    final = life.posted.receipt.body
    assert (life.posted.since, final.count, final.log) == (2, 3, compute_digest(LOG))
    assert final.provenance == compute_digest(life.posted.provenance)
    order, papers = opened.announcement.order.body, life.work.papers
    assert papers is not None
    facts = WorkFacts(
        CHAIN, order, opened.bid.body.order, MAP, opened.lease, papers.records, final.environment, final.finished
    )
    check_provenance(life.posted.provenance, PROVIDER.key, facts)


def test_the_last_record_of_a_range_waits_for_the_final_receipt() -> None:
    life = begin_with(5)
    assert life.wake(DUE) == []
    life.tell(run_ended(), now=DUE)
    assert life.posted.receipt.body.count == 5 and len(life.find(PostReceipt)) == 1


def test_a_long_range_is_handed_in_by_several_deliveries() -> None:
    total = 2 * MAX_DELIVERED + 7
    life = begin(open_map(total, segment_wall=1))
    for first in range(0, total, 256):
        life.tell(batch(first, min(256, total - first)))
    life.tell(run_ended())
    while not life.find(PostReceipt)[-1].provenance:
        life.tell(life.stored())
    assert [(post.since, post.receipt.body.count) for post in life.find(PostReceipt)] == [
        (0, MAX_DELIVERED), (MAX_DELIVERED, 2 * MAX_DELIVERED), (2 * MAX_DELIVERED, total),
    ]  # fmt: skip
    assert all(len(post.records) <= MAX_DELIVERED for post in life.find(PostReceipt))
    life.tell(life.stored())
    assert life.work.phase is Phase.STORED


def test_a_failed_segment_ends_the_range_and_its_receipt_is_final() -> None:
    life = begin_with(2)
    life.wake(DUE)
    life.tell(life.stored(), now=DUE)
    failed = SegmentsRan(0, "ns", "openblas", (make_segment(2, output=b"", cause=Cause.PROGRAM), make_segment(3)))
    assert kinds(life.tell(failed, now=DUE + 1)) == ["Report"]
    life.tell(run_ended(cause=Cause.PROGRAM), now=DUE + 2)
    receipt = life.posted.receipt.body
    assert (receipt.count, receipt.cause, life.posted.since) == (3, Cause.PROGRAM, 2)
    life.tell(life.stored(), now=DUE + 3)
    [submit] = life.wake(DUE + 4_000)
    assert isinstance(submit, Submit) and isinstance(submit.body, Deliver) and submit.body.proof == ()


def test_a_train_begins_from_the_state_that_the_award_names() -> None:
    spec = make_spec(kind=Kind.TRAIN)
    order = make_order(spec=spec, segments=5, segment_wall=1_000)
    opened = open_lease(order, spec, Span(3, 2), compute_digest(b"state 3"))
    life = begin(opened)
    assert life.find(Run) == [Run(0, 3, 2)]
    life.tell(ran(index=3, input=b"state 3", output=b"state 4"), ran(index=4, input=b"state 4"))
    life.tell(run_ended())
    assert [record.index for record in life.posted.records] == [3, 4]
    assert life.posted.receipt.body.first == 3
    other = begin(opened)
    assert kinds(other.tell(ran(index=3, input=b"inputs"))) == ["Kill", "FreeSlot", "submit return"]


# Restart


def test_after_a_restart_the_same_records_are_signed_again_from_where_the_holder_is() -> None:
    life = begin_with(2)
    life.wake(DUE)
    life.tell(life.stored(), batch(2, 1), now=DUE)
    life.wake(DUE + PREFIX_MS)
    sent = life.posted
    life.tell(Restarted(), now=DUE + 300)
    assert kinds(life.wake(DUE + 2 * PREFIX_MS)) == ["PostReceipt"]
    assert life.posted == sent and sent.since == 2


def test_what_a_later_life_runs_under_is_in_its_receipts() -> None:
    life = begin_with(2)
    life.tell(Restarted())
    life.tell(msgspec.structs.replace(batch(2, 1, attempt=1), level="ns+cgroup"), now=LATER + 1)
    life.wake(DUE)
    assert life.posted.receipt.body.environment.level == "ns+cgroup"
    assert life.work.papers is not None
    assert life.work.papers.sign_prefix(2).body.environment.level == "ns"


def test_a_host_that_gets_on_between_its_failures_goes_on() -> None:
    life = begin_with(1)
    for attempt in range(3):
        effects = life.tell(run_ended(attempt, Cause.HOST))
        assert kinds(effects) == ["FreeSlot", "Fetch"]
        life.tell(batch(1 + attempt, 1, attempt + 1))
    assert kinds(life.tell(run_ended(3, Cause.HOST))) == ["FreeSlot", "Fetch"]
    assert kinds(life.tell(run_ended(4, Cause.HOST)))[:2] == ["Kill", "FreeSlot"]


def test_a_holder_that_lost_its_records_gets_them_again_and_not_for_ever() -> None:
    life = begin_with(2)
    life.wake(DUE)
    life.tell(life.stored(), batch(2, 1), now=DUE)
    life.wake(DUE + PREFIX_MS)
    assert life.posted.since == 2
    for loss in range(MAX_LOSSES):
        life.tell(HolderLost(), now=DUE + PREFIX_MS)
        life.wake(DUE + (2 + loss) * PREFIX_MS)
        assert (life.posted.since, life.posted.receipt.body.count) == (0, 3)
    effects = life.tell(HolderLost(), now=DUE + 10 * PREFIX_MS)
    assert kinds(effects) == ["Kill", "FreeSlot", "submit extend"], "what it did sign for is put on the chain"


# Leaving with what is done

LAST = open_map().deadline - Patience().deadline
REASONS: dict[str, Callable[[Life], list[Any]]] = {
    "stop": lambda life: life.tell(Stopping()),
    "host failure": lambda life: life.tell(run_ended(0, Cause.HOST), run_ended(1, Cause.HOST)),
    "deadline": lambda life: life.wake(LAST),
    "contradiction": lambda life: life.tell(ran(index=4)),
    "inputs gone": lambda life: life.tell(FetchFailed("gone")),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_done_is_handed_in_and_put_on_the_chain_before_the_rest_is_given_back(name: str) -> None:
    life = begin_with(1)
    life.wake(DUE)
    life.tell(life.stored(), batch(1, 1), now=DUE)
    effects = REASONS[name](life)
    assert kinds(effects) == LEAVE_AND_POST
    assert (life.posted.since, life.posted.receipt.body.count) == (1, 2)
    [extend] = life.tell(life.stored())
    assert isinstance(extend, Submit) and isinstance(extend.body, Extend)
    assert (extend.body.receipt, extend.body.storage, extend.body.proof) == (
        life.posted.receipt, store(life.posted.receipt), (),
    )  # fmt: skip
    [back] = life.tell(TransactionFinal(Task.EXTEND))
    assert isinstance(back, Submit) and back.body == GiveBack(open_map().lease)
    assert life.wake(open_map().deadline) == [], "nothing is asked twice"


def test_what_the_holder_has_already_needs_no_hand_in() -> None:
    life = begin_with(2)
    life.wake(DUE)
    life.tell(life.stored(), now=DUE)
    assert kinds(life.tell(Stopping(), now=DUE)) == ["Kill", "FreeSlot", "submit extend"]


def test_a_hand_in_on_its_way_is_waited_for() -> None:
    life = begin_with(2)
    life.wake(DUE)
    assert kinds(life.tell(Stopping(), now=DUE)) == ["Kill", "FreeSlot"]
    assert kinds(life.tell(life.stored(), now=DUE)) == ["submit extend"]


@pytest.mark.parametrize("stored", [0, 1])
def test_a_holder_that_does_not_answer_in_time_costs_what_it_does_not_have(stored: int) -> None:
    life = begin_with(1)
    if stored:
        life.wake(DUE)
        life.tell(life.stored(), batch(1, 1), now=DUE)
    life.tell(Stopping(), now=DUE)
    end = DUE + Patience().leaving
    assert life.work.wake_at() == end and life.wake(end - 1) == []
    assert kinds(life.wake(end)) == (["submit extend"] if stored else ["submit return"])
    assert life.tell(life.stored(), now=end + 1) == [], "too late"


def test_a_hand_in_that_is_refused_for_good_is_a_return_alone() -> None:
    life = begin_with(2)
    life.tell(Stopping())
    assert kinds(life.tell(StoreFailed("no"))) == ["submit return"]
    other = begin_with(2)
    other.wake(DUE)
    assert kinds(other.tell(StoreFailed("no"), now=DUE)) == ["Kill", "FreeSlot", "submit return"], "while it runs"


def test_an_extension_that_is_refused_is_a_return_alone() -> None:
    life = begin_with(2)
    life.tell(Stopping())
    life.tell(life.stored())
    assert kinds(life.tell(TransactionRefused(Task.EXTEND, "R8.kept"))) == ["submit return"]


def test_what_somebody_else_put_on_the_chain_is_continued_with_a_proof() -> None:
    life = begin_with(4)
    life.tell(Stopping())
    life.tell(life.stored(), moved(LeaseState.OPEN, served=3, held=5))
    [submit] = life.tell(TransactionRefused(Task.EXTEND, "R5.proof"))
    assert isinstance(submit, Submit) and isinstance(submit.body, Extend)
    papers = life.work.papers
    assert papers is not None
    old, new = papers.sign_prefix(3).body, submit.body.receipt.body
    assert is_consistent(3, old.records, new.count, new.records, submit.body.proof) and submit.body.proof
    assert kinds(life.tell(TransactionRefused(Task.EXTEND, "R5.proof"))) == ["submit return"], "that is meant"


def test_a_delivery_continues_what_is_on_the_chain() -> None:
    life = begin_with(5)
    life.tell(run_ended())
    life.tell(moved(LeaseState.OPEN, served=2, held=5), life.stored())
    [submit] = life.wake(LATER + 3_000)
    assert isinstance(submit, Submit) and isinstance(submit.body, Deliver) and life.work.papers is not None
    old, new = life.work.papers.sign_prefix(2).body, submit.body.receipt.body
    assert is_consistent(2, old.records, 5, new.records, submit.body.proof) and submit.body.proof
    life.tell(moved(LeaseState.OPEN, served=3, held=5))
    [again] = life.tell(TransactionRefused(Task.DELIVER, "R5.proof"))
    assert isinstance(again, Submit) and isinstance(again.body, Deliver) and again.body.proof != submit.body.proof


def test_a_range_of_which_only_the_log_is_wanting_is_finished_instead_of_left() -> None:
    life = begin_with(5)
    assert life.tell(Stopping())[-1] == Run(1, 5, 0)
    life.tell(run_ended(1))
    assert kinds(life.tell(life.stored())) == ["AwaitAcceptance", "submit deliver"]


def test_a_log_that_cannot_be_closed_does_not_keep_the_lease_beyond_its_deadline() -> None:
    life = begin_with(5)
    life.wake(LAST)
    assert life.wake(LAST + 1_999) == []
    assert kinds(life.wake(LAST + 2_000)) == ["Kill", "FreeSlot", "submit return"]


def test_a_whole_receipt_that_arrives_while_the_lease_is_left_is_delivered() -> None:
    life = begin_with(5)
    life.tell(run_ended())
    assert life.wake(open_map().deadline - 2_001) == []
    late = life.stored()
    assert kinds(life.tell(Stopping(), late)) == ["AwaitAcceptance", "submit deliver"]


def test_a_lease_that_was_left_is_left_again_after_a_restart() -> None:
    life = begin_with(2)
    life.tell(Stopping())
    assert kinds(life.tell(Restarted())) == ["PostReceipt"]
    life.tell(life.stored())
    assert kinds(life.tell(Restarted())) == ["submit extend"]
    life.tell(TransactionFinal(Task.EXTEND), moved(LeaseState.OPEN, served=2, held=5))
    assert kinds(life.tell(Restarted())) == ["submit return"]


# What the chain says


def test_a_call_is_answered_once_and_again_after_a_restart() -> None:
    life, opened = begin_with(1), open_map()
    call = moved(LeaseState.CALLED, held=5, called=77)
    [answer] = life.tell(call)
    assert isinstance(answer, Submit) and answer.body == Answer(opened.lease, 77)
    assert life.tell(call) == []
    assert kinds(life.tell(Restarted()))[0] == "submit answer"
    life.tell(moved(LeaseState.OPEN, held=5, called=77))
    assert "submit answer" not in kinds(life.tell(Restarted()))
    [again] = life.tell(moved(LeaseState.CALLED, held=5, called=60_077))
    assert isinstance(again, Submit) and again.body == Answer(opened.lease, 60_077)


def test_a_cancel_stops_the_work_and_saves_what_is_done() -> None:
    life = begin_with(2)
    assert kinds(life.tell(moved(LeaseState.CANCELLING, held=5))) == LEAVE_AND_POST
    assert kinds(life.tell(life.stored())) == ["submit extend"]
    assert kinds(life.tell(TransactionFinal(Task.EXTEND))) == ["AwaitAcceptance"]
    assert life.work.phase is Phase.STOPPED
    assert not [one for one in life.find(Submit) if isinstance(one.body, GiveBack)], "what is cancelled can't return"
    assert kinds(life.tell(life.accepted())) == ["submit settle"]


def test_a_cancel_waits_for_the_holder_half_the_grace() -> None:
    life = begin_with(2)
    life.tell(moved(LeaseState.CANCELLING, held=5))
    assert life.work.wake_at() == LATER + 5_000
    assert life.wake(LATER + 5_000) == [] and life.work.phase is Phase.STOPPED


def test_a_cancel_behind_the_last_segment_delivers() -> None:
    life = begin_with(5)
    assert life.tell(moved(LeaseState.CANCELLING, held=5))[-1] == Run(1, 5, 0)
    life.tell(run_ended(1))
    assert kinds(life.tell(life.stored())) == ["AwaitAcceptance", "submit deliver"]


@pytest.mark.parametrize("early", [True, False], ids=["accepted before the cancel", "accepted behind it"])
def test_a_cancel_does_not_settle_on_the_first_of_many_segments(early: bool) -> None:
    """A greedy requester takes the outputs of all prefixes, accepts the shortest and cancels: row 3 would pay that."""
    life = begin_with(1)
    life.wake(DUE)
    short = life.accepted()
    assert life.tell(life.stored(), *([short] if early else []), now=DUE) == []
    life.tell(batch(1, 3), now=DUE)
    told = life.tell(moved(LeaseState.CANCELLING, held=5), now=DUE)
    told += [] if early else life.tell(short, now=DUE)
    told += life.tell(life.stored(), now=DUE)
    assert "submit settle" not in kinds(told) and "submit extend" in kinds(told)
    life.tell(TransactionFinal(Task.EXTEND), now=DUE)
    assert kinds(life.tell(life.accepted(), now=DUE)) == ["submit settle"], "of all four there is no reason to wait"
    [settle] = [one.body for one in life.find(Submit) if isinstance(one.body, Settle)]
    assert settle.receipt.body.count == 4


def cut(served: int) -> WorkEvent:
    """Rows 7 and 10: the rest is gone, `served` segments wait for their acceptance."""
    return moved(LeaseState.DELIVERED, served=served, held=served)


def test_an_acceptance_of_a_prefix_settles_once_nothing_more_is_at_stake() -> None:
    life = begin_with(3)
    life.wake(DUE)
    acceptance = AcceptanceArrived(accept(life.posted.receipt))
    assert life.tell(life.stored(), acceptance, now=DUE) == [], "to settle now would be a return with damages (R7)"
    assert kinds(life.tell(cut(3))) == ["Kill", "FreeSlot", "AwaitAcceptance", "submit settle"]
    [submit] = [one for one in life.find(Submit) if isinstance(one.body, Settle)]
    assert submit.body == Settle(life.posted.receipt, acceptance.acceptance)


def test_a_shorter_prefix_that_the_broker_put_on_the_chain_is_known_again() -> None:
    life = begin_with(2)
    life.wake(DUE)
    shorter = life.accepted()
    life.tell(life.stored(), batch(2, 2), now=DUE)
    life.wake(DUE + PREFIX_MS)
    life.tell(cut(2))
    assert life.tell(life.accepted()) == [], "more than is at stake"
    assert kinds(life.tell(shorter)) == ["submit settle"]


def test_an_acceptance_of_more_than_is_at_stake_is_no_settle_however_it_ended() -> None:
    life = begin_with(2)
    life.tell(SegmentsRan(0, "ns", "openblas", (make_segment(2, output=b"", cause=Cause.PROGRAM),)))
    life.tell(run_ended(cause=Cause.PROGRAM))
    life.tell(cut(2))
    assert life.posted.receipt.body.count == 3
    assert life.tell(life.accepted()) == [], "the chain would refuse it (R5)"


def test_a_life_that_begins_behind_the_time_to_leave_hands_in_nothing_more() -> None:
    life = begin_with(2)
    life.tell(Stopping())
    late = LATER + Patience().leaving
    assert kinds(life.work.handle(Restarted(), late)) == ["submit return"]


def test_the_papers_sign_no_second_final_receipt_and_no_prefix_in_its_place() -> None:
    papers = Papers(PROVIDER, CHAIN, open_map(2))
    papers.add_record(make_segment(0), "ns", "openblas")
    with pytest.raises(Fault, match="final"):
        papers.sign_final(run_ended())
    prefix = papers.sign_prefix(1)
    papers.add_record(make_segment(1), "ns", "openblas")
    with pytest.raises(Fault, match="the final one"):
        papers.sign_prefix(2)
    with pytest.raises(Fault, match="of 2 records"):
        papers.sign_prefix(3)
    assert papers.sign_prefix(1) == prefix
    final = papers.sign_final(run_ended())
    assert papers.sign_final(run_ended(finished=LATER + 99)) is final
    assert papers.prove(0, 2) == papers.prove(3, 2) == papers.prove(1, 9) == ()
