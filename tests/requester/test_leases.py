"""Jobs of several leases: prefixes as they come, rounds, gaps, partial results; and that no interleaving of broker and
chain, no repetition and no restart changes where a job ends or accepts anything twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from chain.base.hashing import Tag, compute_digest
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from chain.ledger.terms.work import Span, compute_receipt_id
from requester.purchase import events as e
from requester.purchase.lots import MAX_HELD
from requester.purchase.phases import Phase
from tests.requester.shell import (
    Shell,
    end,
    go_on,
    kinds,
    look,
    make_found,
    make_map,
    make_train,
    replay,
    see,
    settle_down,
)
from tests.requester.world import BROKER, CHAIN, World, change

OK, BAD = Cause.OK, Cause.PROGRAM


def start(*worlds: World) -> Shell:
    """A shell whose order is sent, with the first world's book and award told."""
    shell = Shell(*worlds)
    shell.tell(e.Restarted(), e.Submitted(), worlds[0].closed, worlds[0].awarded)
    return shell


def list_accepted(shell: Shell) -> list[tuple[bytes, tuple[Span, ...]]]:
    bodies = [post.acceptance.body for post in shell.get(e.PostAcceptance)]
    return [(body.lease, body.segments) for body in bodies]


def make_alone(*causes: Cause) -> World:
    """A map that is not divided: one lease of these segments."""
    settings = {"kind": Kind.MAP, "prices": (200_000, 300_000), "cap": 10**10}
    return World(causes=causes, segments=len(causes), **settings)  # type: ignore[arg-type]  # a mapping of fields


# ---- prefixes ----


def test_results_come_prefix_by_prefix_and_only_the_final_receipt_is_accepted() -> None:
    world = make_alone(OK, OK, OK, OK, OK, OK)
    shell = start(world)
    shell.tell(see(world))
    told = []
    for count, since in ((1, 0), (3, 1), (5, 3), (6, 5)):
        asked = shell.feed(world.prefix(count, since))
        told += [record.index for one in asked if isinstance(one, e.TellSegments) for record in one.records]
        assert told == list(range(count))
        assert list_accepted(shell) == ([] if count < 6 else [(world.lease, (Span(0, 6),))])
    assert [len(one.records) for one in shell.get(e.KeepRecords)] == [1, 2, 2, 1]
    shell.tell(see(world, "settled", 9))
    assert shell.machine.phase is Phase.SETTLED


def test_prefixes_that_come_late_or_out_of_order_wait_for_those_before_them() -> None:
    world = make_alone(OK, OK, OK, OK, OK, OK)
    shell = start(world)
    shell.feed(world.prefix(6, 5), world.prefix(5, 3), world.prefix(3, 1))
    assert shell.get(e.KeepRecords) == []
    shell.feed(world.prefix(1))
    assert list_accepted(shell) == [(world.lease, (Span(0, 6),))]


def test_records_told_twice_are_taken_once() -> None:
    world = make_alone(OK, OK, OK, OK, OK, OK)
    shell = start(world)
    shell.feed(world.prefix(2), world.prefix(4), world.prefix(4), world.prefix(2), world.prefix(6))
    assert [(one.since, len(one.records)) for one in shell.get(e.KeepRecords)] == [(0, 2), (2, 2), (4, 2)]
    assert len(list_accepted(shell)) == 1


def test_a_receipt_that_does_not_go_on_from_the_last_one_is_ignored() -> None:
    """R5: a second receipt must be over the same records; another one may be the broker's bending."""
    world = make_alone(OK, OK, OK, OK, OK, OK)
    twin = World(**{name: getattr(world, name) for name in world.__dataclass_fields__})
    twin.record_bodies = tuple(change(record, started=1) for record in world.record_bodies)
    shell = start(world)
    shell.feed(world.prefix(2), twin.prefix(4, 2))
    assert [one.rule for one in shell.get(e.TellTrouble)] == ["check.26"]
    shell.feed(world.prefix(6, 2))
    assert list_accepted(shell) == [(world.lease, (Span(0, 6),))]


def test_deliveries_that_never_fit_are_bounded() -> None:
    world = make_alone(*[OK] * 200)
    shell = start(world)
    before = shell.machine.noise
    for count in range(2, 2 + MAX_HELD + 10):
        shell.tell(world.prefix(count, count - 1))
    assert shell.machine.noise == before + 20  # each brings one record


def test_a_lease_of_thousands_of_segments_fetches_in_requests_of_bounded_size() -> None:
    world = make_alone(*[OK] * 1_023, BAD)
    shell = start(world)
    shell.feed(world.delivered)
    assert all(len(fetch.digests) <= e.MAX_FETCH for fetch in shell.get(e.FetchBlobs))
    assert list_accepted(shell) == [(world.lease, (Span(0, 1_024),))]


# ---- several leases in one round ----


def test_a_map_of_two_leases_from_signing_to_settlement() -> None:
    mine, other = make_map()
    shell = start(mine, other)
    shell.tell(other.awarded, see(mine))
    phases = [shell.machine.phase]
    for event in (see(other), mine.delivered, other.delivered, see(mine, "settled", 9), see(other, "settled", 9)):
        shell.feed(event)
        phases.append(shell.machine.phase)
    running = [Phase.RUNNING] * 3
    assert phases == [*running, Phase.ACCEPTED, Phase.ACCEPTED, Phase.SETTLED]
    assert [span for _, span in list_accepted(shell)] == [(Span(0, 3),), (Span(3, 3),)]
    assert [papers.lease for papers in shell.machine.documents.leases] == [mine.lease, other.lease]


def test_a_lease_that_is_refused_leaves_the_others_alone() -> None:
    mine, other = make_map()
    mine.receipt_body = change(mine.receipt_body, usage=change(mine.usage, cpu_ms=1))
    shell = start(mine, other)
    shell.feed(other.awarded, see(mine), see(other), mine.delivered, other.delivered, see(other, "settled", 9))
    assert list_accepted(shell) == [(other.lease, (Span(3, 3),))]
    assert shell.machine.phase is Phase.PARTLY
    assert "0-2: they were refused (check 30 (usage) failed" in shell.machine.text


def test_an_award_that_would_pass_the_cap_waits() -> None:
    """R2: what was burned of the first lease counts as paid, so that a second at the limit has no room."""
    first = World(prices=(1_960_784, 1_960_785))
    second = first.also(first=0, causes=(OK,), round=1)
    second.bids = (second.bids[0],)
    cost, burned = 1_960_784 + 39_215, 19_607
    shell = start(first, second)
    shell.tell(see(first, "unstarted", 7, refunded=cost - burned), first.make_left("unstarted", 0))
    shell.tell(second.closed, second.awarded)
    assert [one.rule for one in shell.get(e.TellTrouble)] == ["R2.cap"]
    shell.feed(second.delivered)
    assert list_accepted(shell) == []
    free = start(first, second)
    free.feed(see(first, "returned", 7, refunded=cost), second.closed, second.awarded, second.delivered)
    assert [lease for lease, _ in list_accepted(free)] == [second.lease]


# ---- what a lease leaves is offered again ----


def test_a_failing_segment_ends_its_range_and_the_rest_goes_to_a_later_round() -> None:
    """R9: the segment that failed is paid, and has no result."""
    first = World(causes=(OK, BAD), segments=4, kind=Kind.MAP, prices=(200_000, 300_000))
    rest = go_on(first, OK, OK)
    shell = start(first, rest)
    shell.feed(see(first), first.delivered, see(first, "settled", 9))
    assert str(shell.machine.phase) == "running"
    shell.feed(first.make_left("settled", 2), rest.closed, rest.awarded, rest.delivered, see(rest), end("settled"))
    assert list_accepted(shell) == [(first.lease, (Span(0, 2),)), (rest.lease, (Span(2, 2),))]
    shell.feed(see(rest, "settled", 20))
    assert (shell.machine.phase, shell.machine.rule) == (Phase.PARTLY, "job.partly")
    assert shell.machine.text == "1 of 4 segments have no result: 1: their program failed (program)"


def test_a_train_goes_on_from_the_last_committed_state_at_another_provider() -> None:
    """Rows 7 and 10: what was served stays, held = r; the receipt over just that is accepted."""
    first = make_train(OK, OK)
    rest = go_on(first, OK, OK)
    shell = start(first, rest)
    shell.feed(see(first), first.prefix(2))
    assert list_accepted(shell) == []
    shell.feed(see(first, "delivered", 8, held=2, served=2))
    assert list_accepted(shell) == [(first.lease, (Span(0, 2),))]
    shell.feed(rest.closed, rest.awarded, see(rest), rest.delivered)
    shell.feed(see(first, "settled", 9, served=2), see(rest, "settled", 10))
    assert shell.machine.phase is Phase.SETTLED
    assert list_accepted(shell)[1:] == [(rest.lease, (Span(2, 2),))]


def test_a_train_that_starts_anew_from_another_state_is_refused() -> None:
    first = make_train(OK, OK)
    rest = go_on(first, OK, OK)
    rest.start = compute_digest(b"another state")
    shell = start(first, rest)
    shell.feed(first.prefix(2), see(first, "delivered", 8, held=2, served=2), rest.closed, rest.awarded)
    assert [one.rule for one in shell.get(e.TellTrouble)] == ["check.10"]
    shell.feed(rest.delivered)
    assert [lease for lease, _ in list_accepted(shell)] == [first.lease]


def test_only_what_the_chain_still_holds_is_accepted_of_a_lease_that_was_cut() -> None:
    """The broker put an older receipt on the chain: segments beyond it were not served."""
    first = make_train(OK, OK, OK)
    shell = start(first)
    shell.feed(see(first), first.prefix(1), first.prefix(2, 1), first.prefix(3, 2))
    shell.feed(see(first, "delivered", 8, held=2, served=2))
    assert list_accepted(shell) == [(first.lease, (Span(0, 2),))]
    (papers,) = shell.machine.documents.leases
    assert papers.receipt is not None
    assert papers.receipt.body.count == 2


ENDS = [
    ("returned", "nobody served them in time"),
    ("expired", "nobody served them in time"),
    ("unstarted", "nobody served them in time"),
]


@pytest.mark.parametrize(("state", "why"), ENDS)
def test_what_nobody_takes_up_is_missing_in_the_end(state: str, why: str) -> None:
    mine, other = make_map()
    shell = start(mine, other)
    shell.feed(other.awarded, see(mine), see(other, state, 7), mine.delivered, see(mine, "settled", 9))
    assert str(shell.machine.phase) == "running"
    shell.feed(other.make_left(state, 0), end("partly"))
    assert shell.machine.phase is Phase.PARTLY
    assert shell.machine.text == f"3 of 6 segments have no result: 3-5: {why}"


@pytest.mark.parametrize("end_state", ["cancelled", "settled"])
def test_what_its_owner_cancelled_is_told_so(end_state: str) -> None:
    """Row 12: what was served before a cancel is settled; the rest nobody takes up, since nobody is asked."""
    mine, other = make_map()
    shell = start(mine, other)
    shell.feed(other.awarded, see(mine), see(other, "cancelling", 7), mine.delivered, see(mine, "settled", 9))
    served = {"held": 1, "served": 1} if end_state == "settled" else {}
    shell.feed(other.prefix(1), see(other, end_state, 10, **served), other.make_left(end_state, len(served) // 2))
    shell.feed(end("partly"))
    gone = "3-5" if end_state == "cancelled" else "4-5"
    assert shell.machine.phase is Phase.PARTLY
    assert shell.machine.text.endswith(f" segments have no result: {gone}: you cancelled it")


def test_settled_segments_whose_results_do_not_come_are_lost_and_looked_for_again() -> None:
    mine, other = make_map()
    shell = start(mine, other)
    shell.feed(other.awarded, see(mine), see(other), mine.delivered, see(mine, "settled", 9), see(other, "settled", 9))
    assert str(shell.machine.phase) == "delivered"
    shell.sleep()
    assert str(shell.machine.phase) == "partly"
    assert "3-5: they are settled" in shell.machine.text
    assert kinds(shell.tell(e.Restarted()))[:2] == [e.WatchChain, e.Listen]
    shell.feed(other.delivered)
    assert shell.machine.phase is Phase.SETTLED


def test_many_reasons_are_cut_short() -> None:
    segments = 60
    world = make_alone(*[OK] * segments)
    shell = start(world)
    shell.feed(see(world), world.delivered)
    lot = shell.machine.lots[0]
    lot.failures = dict.fromkeys(range(0, segments, 2), BAD)
    shell.feed(see(world, "settled", 9))
    assert "and 18 more: their program failed" in shell.machine.text


def test_what_lies_behind_a_failed_step_is_not_said_to_have_found_no_provider() -> None:
    world = make_train(OK, BAD)
    shell = start(world)
    shell.feed(world.delivered, see(world), see(world, "settled", 9, served=2), end("partly"))
    assert "1: their program failed (program); 2-3: not run, since segment 1 failed" in shell.machine.text


@pytest.mark.parametrize(("tolerance", "why"), [(0, "not offered again, since more segments failed"), (1, "nobody")])
def test_what_lies_behind_too_many_failed_items_is_not_offered_again(tolerance: int, why: str) -> None:
    world = World(causes=(OK, BAD), segments=4, kind=Kind.MAP, prices=(200_000, 300_000))
    world.spec = replace(world.spec, tolerance=tolerance)
    shell = Shell(world)
    shell.feed(e.Restarted(), e.Submitted(), world.closed, world.awarded, world.delivered)
    shell.feed(see(world), see(world, "settled", 9, served=2), end("partly"))
    assert f"2-3: {why}" in shell.machine.text


# ---- whatever the order, the end is the same ----


def list_map_story() -> tuple[tuple[World, ...], list[Any], list[Any]]:
    mine, other = make_map()
    broker = [mine.closed, mine.awarded, other.awarded, mine.opened, other.opened, mine.prefix(1), other.prefix(2)]
    broker += [mine.prefix(3, 1), other.prefix(3, 2), mine.make_left("settled", 3), other.make_left("settled", 3)]
    chain = [see(mine, height=4), see(other, height=5), see(mine, "delivered", 6)]
    chain += [
        see(mine, "settled", 7),
        see(other, "settled", 8),
    ]
    return (mine, other), [*broker, end()], chain


def list_train_story() -> tuple[tuple[World, ...], list[Any], list[Any]]:
    first = make_train(OK, OK)
    rest = go_on(first, OK, OK)
    broker = [first.closed, first.awarded, first.opened, first.prefix(1), first.prefix(2, 1)]
    broker += [first.make_left("delivered", 2), rest.closed, rest.awarded, rest.opened, rest.prefix(1), rest.prefix(2)]
    chain = [see(first, height=4), see(first, "delivered", 5, held=2, served=2), see(rest, height=6)]
    chain += [see(first, "settled", 7, held=2, served=2), see(rest, "settled", 8)]
    return (first, rest), [*broker, end()], chain


def list_failed_story() -> tuple[tuple[World, ...], list[Any], list[Any]]:
    """The first award does not open; its part goes to the next bid, which fails at its second segment."""
    first = World(causes=(OK,), segments=3, kind=Kind.MAP, prices=(200_000, 300_000))
    second = first.also(first=0, causes=(OK, BAD), failed=frozenset([first.award_body.bid]))
    broker = [first.closed, first.awarded, first.make_failed(), second.awarded, second.opened, second.prefix(1)]
    broker += [second.prefix(2, 1), second.make_left("settled", 2)]
    chain = [see(second, height=4), see(second, "settled", 8, served=2)]
    return (first, second), [*broker, end("partly")], chain


STORIES: list[Callable[[], tuple[tuple[World, ...], list[Any], list[Any]]]] = [
    list_map_story,
    list_train_story,
    list_failed_story,
]


def play(worlds: tuple[World, ...], events: list[Any]) -> Shell:
    shell = Shell(*worlds)
    shell.feed(e.Restarted(), e.Submitted(), *events)
    return shell


@pytest.mark.parametrize("story", STORIES)
@given(data=st.data())
def test_no_interleaving_repetition_or_restart_changes_the_end(story: Any, data: st.DataObject) -> None:
    """Broker and chain each keep their own order; everything else is free. No lease is accepted twice."""
    worlds, broker, chain = story()
    plain = play(worlds, [*broker[:-1], *chain, broker[-1]])
    mixed: list[Any] = []
    left, right = list(broker), list(chain)
    while left or right:
        source = left if left and (not right or data.draw(st.booleans())) else right
        mixed.append(source.pop(0))
        if data.draw(st.integers(0, 5)) == 0:
            mixed.append(data.draw(st.sampled_from([e.Restarted(), *mixed])))
    shell = play(worlds, mixed)
    assert shell.machine.phase.is_over
    assert shell.machine.outcome == plain.machine.outcome
    assert look(replay(shell)) == look(shell.machine)
    signed = {post.acceptance for post in shell.get(e.PostAcceptance)}
    assert len({acceptance.body.lease for acceptance in signed}) == len(signed)
    named = {
        compute_receipt_id(CHAIN, papers.receipt.body) for papers in shell.machine.documents.leases if papers.receipt
    }
    assert {acceptance.body.receipt for acceptance in signed} <= named


@pytest.mark.parametrize("story", STORIES)
def test_the_documents_of_a_story_are_the_same_however_it_was_heard(story: Any) -> None:
    worlds, broker, chain = story()
    late = play(worlds, [*broker, *chain])
    mixed = play(worlds, [event for pair in zip(broker, [*chain, *chain], strict=False) for event in pair] + broker)
    for shell in (late, mixed):
        assert {papers.lease for papers in shell.machine.documents.leases} <= {world.lease for world in worlds}
    assert settle_down(late.machine)[0] == settle_down(mixed.machine)[0]


def test_a_lease_is_not_accepted_before_all_blobs_of_its_final_receipt_are_here() -> None:
    world = make_alone(OK, OK, OK, OK, OK, OK)
    shell = start(world)
    shell.feed(world.prefix(5))
    shell.tell(world.prefix(6, 5))
    (fetch,) = shell.get(e.FetchBlobs)[-1:]
    part = tuple(e.Found(digest, 1) for digest in fetch.digests[:-1])
    shell.tell(e.BlobsFetched(world.lease, part))
    assert list_accepted(shell) == []
    shell.sleep()
    shell.tell(make_found(world))
    assert len(list_accepted(shell)) == 1


def test_a_blob_for_another_lease_is_not_taken_for_this_one() -> None:
    mine, other = make_map()
    shell = start(mine, other)
    shell.tell(other.awarded, mine.delivered, other.delivered)
    shell.tell(change(make_found(mine), lease=other.lease))
    assert list_accepted(shell) == []
    assert shell.tell(change(make_found(mine), lease=bytes(32))) == []


def test_a_signed_award_of_other_parts_than_the_rule_gives_is_refused() -> None:
    """R12 a: the second part is the rival's from 3 on, not from 4 on."""
    mine, other = make_map()
    other.first = 4
    other.award_body = change(other.award_body, first=4, count=2)
    shell = start(mine, other)
    shell.tell(other.awarded)
    assert [one.rule for one in shell.get(e.TellTrouble)] == ["check.19"]


# ---- a lease that was refused, cut, or ended while blobs were under way ----


def refuse_third(first: World) -> Shell:
    """Two of four steps are here; the receipt over three is wrong by its provider's own hand."""
    shell = start(first)
    shell.feed(see(first), first.prefix(2))
    honest = first.prefix(3, 2)
    body = change(honest.delivery.receipt.body, usage=change(first.usage, cpu_ms=1))
    receipt = first.winner.sign(Tag.RECEIPT, CHAIN, body)
    storage = BROKER.sign(Tag.STORAGE, CHAIN, first.make_storage(body))
    shell.feed(change(honest, delivery=change(honest.delivery, receipt=receipt), storage=storage))
    assert [one.rule for one in shell.get(e.TellTrouble)] == ["check.30"]
    return shell


def test_nothing_of_a_refused_lease_is_accepted_and_nothing_goes_on_from_it() -> None:
    """Even where the chain cut it to the part that was right."""
    first = make_train(OK, OK, OK)
    rest = go_on(make_train(OK, OK), OK, OK)
    shell = refuse_third(first)
    shell.feed(see(first, "delivered", 8, held=2, served=2), rest.closed, rest.awarded, rest.delivered)
    assert list_accepted(shell) == []
    assert [(lot.checked, lot.waits) for lot in shell.machine.lots] == [(True, ""), (False, "start")]


def test_a_lease_whose_award_was_refused_keeps_its_segments() -> None:
    """The chain may have opened it: a second award for them could be paid for too."""
    wrong, right = World(), World()
    wrong.award = BROKER.sign(Tag.AWARD, CHAIN, change(wrong.award_body, price=1_000_001))
    wrong.award_body = wrong.award.body
    shell = start(wrong)
    shell.feed(right.awarded, right.delivered)
    assert [one.rule for one in shell.get(e.TellTrouble)] == ["check.7", "R2.covered"]
    assert list_accepted(shell) == []


def test_only_blobs_that_were_asked_for_count_as_found() -> None:
    """What comes unasked was measured by nobody's limit, and would be held without end."""
    world = make_alone(OK, OK, OK)
    shell = start(world)
    shell.tell(see(world), world.prefix(1), world.prefix(2, 1))
    asked = shell.tell(make_found(world))
    (fetch,) = [one for one in asked if isinstance(one, e.FetchBlobs)]
    assert fetch.digests == (compute_digest(world.get_output(1)),)


def test_a_second_receipt_over_the_same_segments_is_accepted_once_its_own_blobs_are_here() -> None:
    """The chain holds one that names a log, told behind one that names none."""
    first = make_train(OK, OK)
    shell = start(first)
    shell.feed(first.prefix(2))
    plain = first.prefix(2)
    body = change(plain.delivery.receipt.body, log=compute_digest(first.log))
    receipt = first.winner.sign(Tag.RECEIPT, CHAIN, body)
    storage = BROKER.sign(Tag.STORAGE, CHAIN, first.make_storage(body))
    named = compute_receipt_id(CHAIN, body)
    shell.tell(see(first, receipt=named))
    shell.tell(change(plain, delivery=change(plain.delivery, receipt=receipt), storage=storage))
    shell.tell(see(first, "delivered", 8, held=2, served=2, receipt=named))
    assert list_accepted(shell) == []
    shell.tell(e.BlobsFetched(first.lease, (e.Found(compute_digest(first.log), len(first.log)),)))
    (post,) = shell.get(e.PostAcceptance)
    assert post.acceptance.body.receipt == named


def test_of_a_lease_that_ended_unpaid_no_blob_is_waited_for() -> None:
    world = make_alone(OK, OK, OK)
    shell = start(world)
    shell.tell(see(world), world.delivered, e.FetchFailed(world.lease, "no answer"))
    shell.tell(see(world, "expired", 9, tx=""), end("partly"))
    assert shell.machine.wake_at() is None
    assert shell.tell(make_found(world)) == []
