"""The purchase machine with one lease, by scenarios: what it asks for, whatever is gone; a replay ends where it
stood. Several leases are `test_leases`.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.api import Accepted, Advanced, Announced, Unmatched
from chain.base.errors import Refused
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import verify
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause
from chain.ledger.terms.work import Span, compute_receipt_id
from requester.purchase import events as e
from requester.purchase.lots import LAPSE_MARGIN_MS, RESULT_WAIT_MS, SETTLE_AFTER_MS
from requester.purchase.machine import Purchase
from requester.purchase.order import OPENING_MS
from requester.purchase.phases import LEASE_ENDS, LEASE_WORDS, Phase
from tests.requester.shell import Shell, end, kinds, look, make_found, make_map, replay, see, up_to_delivery
from tests.requester.test_adversary import forge_receipt, forge_record, wrong_usage
from tests.requester.world import CHAIN, LOG, NOW, OUTPUT, REQUESTER, World, change

ANNOUNCED = Announced(NOW, 0, (Span(0, 1),), 2, NOW + 2_000)

# ---- the straight way ----


def test_one_job_from_signing_to_settlement() -> None:
    shell = Shell()
    w = shell.world
    fetch: list[type] = [e.KeepRecords, e.FetchBlobs, e.TellPhase]
    told: list[type] = [e.TellSegments, e.PostAcceptance, e.TellPhase]
    steps: list[tuple[Any, list[type], Phase]] = [
        (e.Restarted(), [e.WatchChain, e.SubmitOrder], Phase.SIGNED),
        (e.Submitted(), [e.Listen, e.WatchChain, e.TellPhase], Phase.SENT),
        (ANNOUNCED, [e.TellPhase], Phase.ANNOUNCED),
        (w.closed, [], Phase.ANNOUNCED),
        (w.awarded, [e.TellPhase], Phase.AWARDED),
        (see(w), [e.TellPhase], Phase.RUNNING),
        (w.opened, [], Phase.RUNNING),
        (e.Moved(Advanced(NOW, w.lease, 0, 1, (), 0, b"hello")), [e.TellProgress], Phase.RUNNING),
        (w.delivered, fetch, Phase.DELIVERED),
        (make_found(w), told, Phase.ACCEPTED),
        (e.AcceptancePosted(w.lease), [], Phase.ACCEPTED),
        (see(w, "settled", 9), [e.KeepProof, e.TellPhase], Phase.SETTLED),
        (end(), [], Phase.SETTLED),
    ]
    for event, asked, phase in steps:
        assert kinds(shell.tell(event)) == asked, event
        assert shell.machine.phase is phase, event
    assert shell.machine.wake_at() is None
    (proof,) = shell.get(e.KeepProof)
    assert (proof.lease, proof.tx) == (w.lease, "ab")


@pytest.mark.parametrize("cause", [Cause.OK, *sorted(FINAL_FAILURES)])
def test_what_passes_is_accepted_whole_failed_or_not(cause: Cause) -> None:
    """R7, R9: every segment of the receipt, signed by the requester, so that anyone may settle."""
    shell = up_to_delivery(World(causes=(cause,)))
    (post,) = [one for one in shell.tell(make_found(shell.world)) if isinstance(one, e.PostAcceptance)]
    body = verify(post.acceptance, Tag.ACCEPTANCE, CHAIN, REQUESTER.key)
    assert body.segments == (Span(0, 1),)
    assert body.receipt == compute_receipt_id(CHAIN, shell.world.receipt_body)
    assert (body.lease, body.signer, body.release) == (shell.world.lease, REQUESTER.key, False)
    shell.tell(see(shell.world, "settled", 9))
    assert shell.machine.phase is Phase.SETTLED


def test_blobs_are_asked_for_by_digest_and_within_the_limits() -> None:
    shell = up_to_delivery()
    (fetch,) = shell.get(e.FetchBlobs)
    assert set(fetch.digests) == {compute_digest(one) for one in (OUTPUT, LOG, shell.world.provenance)}
    assert fetch.max_bytes == shell.world.spec.resources.output_bytes


def test_records_and_segments_are_handed_on_once_they_are_verified() -> None:
    shell = up_to_delivery()
    (kept,) = shell.get(e.KeepRecords)
    assert (kept.lease, kept.since, kept.records) == (shell.world.lease, 0, shell.world.record_bodies)
    assert shell.get(e.TellSegments) == []
    shell.tell(make_found(shell.world))
    (told,) = shell.get(e.TellSegments)
    assert told.records == shell.world.record_bodies


# ---- awards ----


def test_an_award_after_a_refused_one_stands_for_it() -> None:
    world = World()
    later = world.also(first=0, causes=(Cause.OK,), failed=frozenset([world.award_body.bid]))
    shell = Shell(world, later)
    shell.tell(e.Restarted(), e.Submitted(), world.closed, world.awarded, world.make_failed(), later.awarded)
    assert str(shell.machine.phase) == "awarded"
    assert shell.machine.documents.tried == (world.award_body.bid,)
    shell.feed(see(later), later.delivered, see(later, "settled", 9))
    assert shell.machine.phase is Phase.SETTLED


def test_an_award_beside_an_open_lease_of_the_same_segments_waits_and_brings_nothing() -> None:
    world = World()
    later = world.also(first=0, causes=(Cause.OK,))
    shell = Shell(world, later)
    shell.tell(e.Restarted(), e.Submitted(), world.closed, world.awarded, see(world), later.awarded, later.delivered)
    assert [effect.rule for effect in shell.get(e.TellTrouble)] == ["R2.covered"]
    assert shell.get(e.FetchBlobs) == []
    shell.feed(world.delivered, see(world, "settled", 9))
    assert [post.acceptance.body.lease for post in shell.get(e.PostAcceptance)] == [world.lease]


def test_the_chain_may_be_ahead_of_the_broker() -> None:
    shell = Shell()
    w = shell.world
    shell.tell(e.Restarted(), e.Submitted(), see(w))
    assert str(shell.machine.phase) == "running"
    assert shell.machine.documents.leases == ()
    shell.tell(w.delivered, w.awarded, w.closed)
    assert kinds(shell.tell(make_found(w))) == [e.TellSegments, e.PostAcceptance, e.TellPhase]


def test_a_delivery_may_be_ahead_of_its_award() -> None:
    shell = Shell()
    w = shell.world
    shell.tell(e.Restarted(), e.Submitted(), w.delivered, w.delivered, w.closed, w.awarded)
    assert len(shell.get(e.FetchBlobs)) == 1


# ---- something is gone ----


def test_an_unreachable_broker_is_tried_again_with_growing_pauses() -> None:
    shell = Shell()
    shell.tell(e.Restarted())
    pauses = []
    for _ in range(7):
        before = shell.now
        shell.tell(e.SubmitFailed("broker.unreachable", "no answer", again=True))
        assert kinds(shell.sleep()) == [e.SubmitOrder]
        pauses.append(shell.now - before)
    assert pauses == [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000]


def test_a_refused_order_is_over() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.SubmitFailed("R12.funds", "pay in first", again=False))
    machine = shell.machine
    assert (machine.phase, machine.rule, machine.text) == (Phase.REJECTED, "R12.funds", "pay in first")
    assert machine.wake_at() is None
    assert shell.tell(e.Restarted()) == []


def test_an_order_sent_too_late_says_so() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), at=NOW + 5_000)
    shell.tell(e.SubmitFailed("order.closes", "the auction has to close later", again=False))
    assert (shell.machine.phase, shell.machine.rule) == (Phase.REJECTED, "order.late")


def test_an_order_nobody_opened_lapses_and_a_lease_seen_late_revives_it() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), ANNOUNCED)
    assert shell.machine.wake_at() == shell.world.order.body.closes + OPENING_MS + LAPSE_MARGIN_MS
    shell.sleep()
    phases = [shell.machine.phase]
    shell.tell(see(shell.world))
    assert [*phases, shell.machine.phase] == [Phase.LAPSED, Phase.RUNNING]


def test_a_later_round_gets_its_own_time() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), ANNOUNCED, change(ANNOUNCED, round=1, closes=NOW + 100_000))
    assert shell.machine.wake_at() == NOW + 100_000 + OPENING_MS + LAPSE_MARGIN_MS
    shell.tell(change(ANNOUNCED, round=2, closes=NOW + 10**12))
    deadline = shell.world.order.body.deadline
    assert shell.machine.wake_at() == deadline + OPENING_MS + LAPSE_MARGIN_MS


def test_a_lease_only_the_broker_has_seen_lapses_with_the_order() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), shell.world.closed, shell.world.awarded, shell.world.opened)
    shell.sleep()
    shell.sleep()
    phases = [shell.machine.phase]
    assert shell.machine.wake_at() == shell.world.order.body.expiry
    shell.sleep()
    assert [*phases, shell.machine.phase] == [Phase.RUNNING, Phase.LAPSED]
    assert shell.machine.documents.tried == (shell.world.award_body.bid,)


def test_the_broker_is_gone_after_delivery_and_the_requester_settles_itself() -> None:
    """R7: anyone may submit the settle of a final receipt that is wholly accepted."""
    shell = up_to_delivery()
    w = shell.world
    shell.tell(see(w), make_found(w))
    asked = shell.tell(e.AcceptanceFailed(w.lease, "broker.unreachable", "no answer"))
    assert kinds(asked) == [e.TellTrouble, e.SubmitSettle]
    assert asked[1].receipt == w.receipt
    shell.tell(e.SettleFailed(w.lease, "chain.unreachable", "no answer"))
    assert kinds(shell.sleep()) == [e.SubmitSettle]
    shell.tell(see(w, "settled", 9))
    assert shell.machine.wake_at() is None


def test_a_provider_that_does_not_settle_is_settled_for() -> None:
    shell = up_to_delivery()
    w = shell.world
    shell.tell(see(w), make_found(w))
    shell.tell(e.AcceptancePosted(w.lease), at=NOW + 100)
    assert shell.machine.wake_at() == NOW + 100 + SETTLE_AFTER_MS
    assert kinds(shell.sleep()) == [e.SubmitSettle]


def test_silence_paid_and_the_result_is_still_fetched_without_acceptance() -> None:
    shell = Shell()
    w = shell.world
    shell.tell(e.Restarted(), e.Submitted(), w.closed, w.awarded, see(w, "settled", 9), w.delivered, make_found(w))
    assert shell.machine.phase is Phase.SETTLED
    assert shell.get(e.PostAcceptance) == []


def test_a_result_that_cannot_be_had_is_given_up_and_asked_for_again_after_a_restart() -> None:
    shell = Shell()
    w = shell.world
    shell.tell(e.Restarted(), e.Submitted(), w.closed, w.awarded, see(w, "settled", 9))
    assert shell.machine.wake_at() == NOW + RESULT_WAIT_MS
    shell.sleep()
    assert (shell.machine.phase, shell.machine.rule) == (Phase.LOST, "result.missing")
    assert kinds(shell.tell(e.Restarted())) == [e.WatchChain, e.Listen, e.KeepProof, e.TellPhase]
    shell.tell(w.delivered, make_found(w))
    assert shell.machine.phase is Phase.SETTLED


def test_a_lease_whose_award_was_never_told_is_lost() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), see(shell.world, "settled", 9))
    shell.sleep()
    assert shell.machine.phase is Phase.LOST


def test_blobs_that_cannot_be_fetched_are_asked_for_again() -> None:
    shell = up_to_delivery()
    shell.tell(e.FetchFailed(shell.world.lease, "no answer"))
    assert kinds(shell.sleep()) == [e.FetchBlobs]


def test_blobs_that_the_broker_keeps_to_itself_are_asked_for_again_and_refuse_nobody() -> None:
    """It signed that it holds them: the provider has done its part."""
    shell = up_to_delivery()
    assert [effect.rule for effect in shell.tell(e.BlobsFetched(shell.world.lease, ()))] == ["blob.missing"]
    (fetch,) = shell.sleep()
    assert compute_digest(OUTPUT) in fetch.digests
    shell.tell(make_found(shell.world))
    assert shell.machine.phase is Phase.ACCEPTED


@pytest.mark.parametrize("state", sorted(LEASE_ENDS - {"settled"}))
def test_a_lease_that_ends_without_settling_ends_the_job_with_a_reason(state: str) -> None:
    shell = Shell()
    w = shell.world
    shell.tell(e.Restarted(), e.Submitted(), w.closed, w.awarded, see(w, state, 9), end(state))
    machine = shell.machine
    assert (machine.phase, machine.rule, machine.text) == (Phase.ENDED, f"lease.{state}", LEASE_WORDS[state])
    assert machine.wake_at() is None


def test_a_broker_that_is_gone_is_waited_for_until_no_lease_could_open() -> None:
    shell = Shell()
    w = shell.world
    shell.tell(e.Restarted(), e.Submitted(), w.closed, w.awarded, see(w, "returned", 9))
    assert str(shell.machine.phase) == "running"
    assert shell.machine.wake_at() == w.order.body.deadline + LAPSE_MARGIN_MS
    shell.sleep()
    assert shell.machine.phase is Phase.ENDED


def test_older_news_of_the_chain_changes_nothing() -> None:
    shell = Shell()
    w = shell.world
    shell.tell(e.Restarted(), see(w, "delivered", 8), see(w, "open", 7))
    (lot,) = shell.machine.lots
    assert lot.seen is not None
    assert lot.seen.state == "delivered"
    shell.tell(see(w, "settled", 9), see(w, "expired", 10))
    assert lot.seen.state == "settled"


def test_nobody_bid() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), Unmatched(NOW, 3_000_000, "a cap of 3 credits", ()))
    assert (shell.machine.phase, shell.machine.text) == (Phase.UNMATCHED, "a cap of 3 credits")
    assert shell.machine.unmatched is not None
    assert shell.machine.unmatched.lowest == 3_000_000


@pytest.mark.parametrize(("state", "phase"), [("withdrawn", Phase.WITHDRAWN), ("refused", Phase.REJECTED)])
def test_the_brokers_last_word_counts_where_the_chain_has_none(state: str, phase: Phase) -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), shell.world.awarded, end(state, "why"))
    assert (shell.machine.phase, shell.machine.text) == (phase, "why")
    opened = Shell()
    opened.tell(e.Restarted(), e.Submitted(), see(opened.world), end(state, "why"))
    assert opened.machine.phase is Phase.RUNNING


def test_a_map_needs_the_items_that_were_ordered() -> None:
    world, _ = make_map()
    for items in ((), world.items[:-1], world.items[::-1]):
        with pytest.raises(Refused) as refused:
            Purchase(CHAIN, REQUESTER, world.order, world.spec, items)
        assert refused.value.rule == "job.items"
    run = World(kind=Kind.RUN)
    with pytest.raises(Refused):
        Purchase(CHAIN, REQUESTER, run.order, run.spec, world.items)


# ---- restarts and replay ----


def test_a_restart_asks_again_for_all_that_is_outstanding_and_tells_again_what_may_not_be_kept() -> None:
    shell = up_to_delivery()
    w = shell.world
    start = [e.WatchChain, e.Listen, e.KeepRecords]
    assert kinds(shell.tell(e.Restarted())) == [*start, e.FetchBlobs]
    shell.tell(make_found(w))
    assert kinds(shell.tell(e.Restarted())) == [*start, e.TellSegments, e.PostAcceptance]
    shell.tell(e.AcceptancePosted(w.lease))
    assert kinds(shell.tell(e.Restarted())) == [*start, e.TellSegments]
    shell.tell(see(w, "settled", 9))
    assert kinds(shell.tell(e.Restarted())) == [e.KeepRecords, e.TellSegments, e.KeepProof]


def list_events(shell: Shell) -> list[Any]:
    w = shell.world
    wrong = World()
    wrong_usage(wrong)
    return [
        e.Restarted(),
        e.Submitted(),
        e.SubmitFailed("broker.unreachable", "no answer", again=True),
        e.SubmitFailed("R12.funds", "pay in", again=False),
        ANNOUNCED,
        w.closed,
        w.awarded,
        w.opened,
        w.make_failed(),
        w.make_left("settled", 1),
        w.delivered,
        wrong.delivered,
        forge_receipt(w),
        forge_record(w),
        make_found(w),
        e.BlobsFetched(w.lease, ()),
        e.FetchFailed(w.lease, "no answer"),
        e.AcceptancePosted(w.lease),
        e.AcceptanceFailed(w.lease, "broker.unreachable", "no answer"),
        see(w),
        see(w, "settled", 9),
        see(w, "expired", 9, tx=""),
        e.SettleFailed(w.lease, "R7.state", "settled already"),
        e.Moved(Advanced(NOW, w.lease, 0, 1, (), 0, b"x")),
        Advanced(NOW, w.lease, 0, 1, (), 0, b"x"),
        Unmatched(NOW, 0, "nobody", ()),
        Accepted(NOW, accept(w)),
        end("withdrawn"),
    ]


def accept(world: World) -> Any:
    shell = up_to_delivery(world)
    shell.tell(make_found(world))
    return shell.get(e.PostAcceptance)[0].acceptance


EVENTS = list_events(Shell())
FINAL = (Phase.SETTLED, Phase.REFUSED, Phase.ENDED)


@given(steps=st.lists(st.tuples(st.integers(0, len(EVENTS) - 1), st.integers(0, 40_000)), max_size=40))
def test_in_any_order_of_events_a_replay_ends_where_it_stood(steps: list[tuple[int, int]]) -> None:
    """Replay equals live; nothing is accepted that was not checked, nothing twice; once settled, settled for ever."""
    shell = Shell()
    settled = False
    for index, pause in steps:
        shell.tell(EVENTS[index], at=shell.now + pause)
        assert not settled or shell.machine.phase in FINAL
        settled = settled or shell.machine.phase is Phase.SETTLED
    assert look(replay(shell)) == look(shell.machine)
    signed = {post.acceptance for post in shell.get(e.PostAcceptance)}
    assert len(signed) <= 1
    for acceptance in signed:
        assert acceptance.body.receipt == compute_receipt_id(CHAIN, shell.world.receipt_body)
