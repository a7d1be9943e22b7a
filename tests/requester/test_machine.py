"""The purchase machine by scenarios: what it asks for, whatever is gone, and that a replay ends where it stood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.api import Accepted, Advanced, Announced, Ended, Unmatched
from chain.base.codec import encode
from chain.base.hashing import Tag, compute_digest
from chain.base.keys import verify
from chain.ledger.terms.outcome import FINAL_FAILURES, Cause
from chain.ledger.terms.work import Span, compute_receipt_id
from requester.purchase import events as e
from requester.purchase.machine import LAPSE_MARGIN_MS, RESULT_WAIT_MS, SETTLE_AFTER_MS, Purchase
from requester.purchase.order import OPENING_MS
from requester.purchase.phases import LEASE_ENDS, LEASE_WORDS, Phase, Result
from tests.requester.world import BROKER, CHAIN, LOG, NOW, OUTPUT, REQUESTER, RIVAL, World, change


class Shell:
    """Feeds a machine as the driver does: due deadlines first; and keeps what it was told, for a replay."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.machine = make_machine(self.world)
        self.now = NOW
        self.told: list[tuple[int, Any]] = []
        self.asked: list[Any] = []

    def tell(self, *items: Any, at: int | None = None) -> list[Any]:
        """Hand over events (the broker's bare, as heard); returns what the machine asks for."""
        self.now = self.now if at is None else at
        asked: list[Any] = []
        for item in items:
            event = item if isinstance(item, get_args(e.PurchaseEvent)) else e.Heard(item, len(self.told))
            asked += self.wake()
            if getattr(event, "durable", True):
                self.told.append((self.now, event))
            asked += self.machine.handle(event, self.now)
        self.asked += asked
        return asked

    def wake(self) -> Sequence[Any]:
        due = self.machine.wake_at()
        if due is None or due > self.now:
            return []
        self.told.append((self.now, None))
        return self.machine.wake(self.now)

    def sleep(self) -> list[Any]:
        """Until the machine's next deadline."""
        due = self.machine.wake_at()
        assert due is not None
        self.now = due
        asked = list(self.wake())
        self.asked += asked
        return asked

    @property
    def found(self) -> e.BlobsFetched:
        return e.BlobsFetched(tuple(e.Found(digest, size) for digest, size in self.world.found.items()))

    def lease(self, state: str = "open", height: int = 5, tx: str = "ab") -> e.LeaseSeen:
        return e.LeaseSeen(self.world.lease, state, 1_000_000, 20_000, 0, 0, height, NOW, tx)


def make_machine(world: World) -> Purchase:
    return Purchase(CHAIN, REQUESTER, world.order, world.spec)


def look(machine: Purchase) -> dict[str, Any]:
    """All a machine holds, for comparison."""
    return {name: value for name, value in vars(machine).items() if name != "_signer"}


def replay(shell: Shell) -> Purchase:
    machine = make_machine(shell.world)
    decoder = msgspec.msgpack.Decoder(e.PurchaseEvent)
    for now, event in shell.told:
        if event is None:
            machine.wake(now)
        else:
            machine.handle(decoder.decode(encode(event)), now)
    return machine


def kinds(asked: Sequence[Any]) -> list[type]:
    return [type(effect) for effect in asked]


def up_to_delivery(world: World | None = None) -> Shell:
    shell = Shell(world)
    w = shell.world
    shell.tell(e.Restarted(), e.Submitted(), Announced(NOW, 2, NOW + 2_000), w.closed, w.awarded, w.opened, w.delivered)
    return shell


# ---- the straight way ----


def test_one_job_from_signing_to_settlement() -> None:
    shell = Shell()
    w = shell.world
    steps: list[tuple[Any, list[type], Phase]] = [
        (e.Restarted(), [e.WatchChain, e.SubmitOrder], Phase.SIGNED),
        (e.Submitted(), [e.Listen, e.WatchChain, e.TellPhase], Phase.SENT),
        (Announced(NOW, 2, NOW + 2_000), [e.TellPhase], Phase.ANNOUNCED),
        (w.closed, [], Phase.ANNOUNCED),
        (w.awarded, [e.TellPhase], Phase.AWARDED),
        (shell.lease(), [e.TellPhase], Phase.RUNNING),
        (w.opened, [], Phase.RUNNING),
        (e.Moved(Advanced(NOW, w.lease, 0, 1, (), 0, b"hello")), [e.TellProgress], Phase.RUNNING),
        (w.delivered, [e.FetchBlobs, e.TellPhase], Phase.DELIVERED),
        (shell.found, [e.PostAcceptance, e.TellPhase], Phase.ACCEPTED),
        (e.AcceptancePosted(), [], Phase.ACCEPTED),
        (shell.lease("settled", 9), [e.KeepProof, e.TellPhase], Phase.SETTLED),
        (Ended(NOW, "settled", ""), [], Phase.SETTLED),
    ]
    for event, asked, phase in steps:
        assert kinds(shell.tell(event)) == asked, event
        assert shell.machine.phase is phase, event
    assert shell.machine.wake_at() is None
    assert shell.machine.result is Result.GOOD


@pytest.mark.parametrize("cause", [Cause.OK, *sorted(FINAL_FAILURES)])
def test_what_passes_is_accepted_whole_failed_or_not(cause: Cause) -> None:
    """R7, R9: every segment of the receipt, signed by the requester, so that anyone may settle."""
    shell = up_to_delivery(World(causes=(cause,)))
    (post, _) = shell.tell(shell.found)
    body = verify(post.acceptance, Tag.ACCEPTANCE, CHAIN, REQUESTER.key)
    assert body.segments == (Span(0, 1),)
    assert body.receipt == compute_receipt_id(CHAIN, shell.world.receipt_body)
    assert (body.lease, body.signer, body.release) == (shell.world.lease, REQUESTER.key, False)


def test_blobs_are_asked_for_by_digest_and_within_the_limits() -> None:
    shell = up_to_delivery()
    (fetch,) = [effect for effect in shell.asked if isinstance(effect, e.FetchBlobs)]
    assert set(fetch.digests) == {compute_digest(OUTPUT), compute_digest(LOG)}
    assert fetch.max_bytes == shell.world.spec.resources.output_bytes


# ---- what does not pass ----


def wrong_award(world: World) -> None:
    world.award = RIVAL.sign(Tag.AWARD, CHAIN, world.award_body)


def wrong_book(world: World) -> None:
    world.book = BROKER.sign(Tag.BOOK, CHAIN, change(world.book_body, last=bytes([1] * 32)))


def wrong_receipt(world: World) -> None:
    world.receipt = RIVAL.sign(Tag.RECEIPT, CHAIN, world.receipt_body)


def no_output(world: World) -> None:
    world.blobs = (LOG,)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [(wrong_award, "check.2"), (wrong_book, "check.17"), (wrong_receipt, "check.20"), (no_output, "check.35")],
)
def test_what_fails_a_check_is_never_accepted(spoil: Any, rule: str) -> None:
    world = World()
    spoil(world)
    shell = up_to_delivery(world)
    shell.tell(shell.found, e.Restarted(), shell.lease(), shell.world.delivered)
    assert shell.machine.phase is Phase.REFUSED
    assert shell.machine.rule == rule
    assert e.PostAcceptance not in kinds(shell.asked)
    assert [effect.rule for effect in shell.asked if isinstance(effect, e.TellPhase)][-1] == rule
    shell.tell(shell.lease("settled", 9))
    assert (shell.machine.phase, shell.machine.rule) == (Phase.REFUSED, rule)


def test_a_second_award_stands_for_one_that_did_not_open() -> None:
    world, later = World(), World()
    later.bid = world.bids[0]
    shell = Shell(world)
    shell.tell(e.Restarted(), e.Submitted(), world.closed, world.awarded, later.awarded)
    assert shell.machine.result is Result.NONE
    assert shell.machine.awarded == later.awarded
    assert shell.machine.phase is Phase.AWARDED


def test_an_award_after_opening_changes_nothing() -> None:
    world, later = World(), World()
    later.bid = world.bids[0]
    shell = Shell(world)
    shell.tell(e.Restarted(), e.Submitted(), world.closed, world.awarded, shell.lease(), later.awarded)
    assert shell.machine.awarded == world.awarded


def test_the_chain_may_be_ahead_of_the_broker() -> None:
    shell, tried = Shell(), World()
    w = shell.world
    tried.bid = w.bids[0]
    shell.tell(e.Restarted(), e.Submitted(), shell.lease(), tried.awarded, w.awarded, w.closed, w.delivered)
    assert shell.machine.awarded == w.awarded
    assert len(shell.machine.tried) == 1
    assert kinds(shell.tell(shell.found)) == [e.PostAcceptance, e.TellPhase]


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
    assert (shell.machine.phase, shell.machine.rule, shell.machine.text) == (
        Phase.REJECTED,
        "R12.funds",
        "pay in first",
    )
    assert shell.machine.wake_at() is None
    assert shell.tell(e.Restarted()) == []


def test_an_order_sent_too_late_says_so() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), at=NOW + 5_000)
    shell.tell(e.SubmitFailed("order.closes", "the auction has to close later", again=False))
    assert (shell.machine.phase, shell.machine.rule) == (Phase.REJECTED, "order.late")


def test_an_order_nobody_opened_lapses_and_a_lease_seen_late_revives_it() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), Announced(NOW, 1, NOW + 2_000))
    assert shell.machine.wake_at() == shell.world.order.body.closes + OPENING_MS + LAPSE_MARGIN_MS
    shell.sleep()
    phases = [shell.machine.phase]
    shell.tell(shell.lease())
    assert [*phases, shell.machine.phase] == [Phase.LAPSED, Phase.RUNNING]


def test_a_lease_only_the_broker_has_seen_lapses_with_the_order() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), shell.world.closed, shell.world.awarded, shell.world.opened)
    later = World()
    later.bid = shell.world.bids[0]
    shell.tell(later.awarded)
    assert shell.machine.awarded == shell.world.awarded
    shell.sleep()
    phases = [shell.machine.phase]
    assert shell.machine.wake_at() == shell.world.order.body.expiry
    shell.sleep()
    assert [*phases, shell.machine.phase] == [Phase.RUNNING, Phase.LAPSED]


def test_a_refused_delivery_stays_refused_however_the_lease_ends() -> None:
    world = World()
    wrong_receipt(world)
    shell = up_to_delivery(world)
    shell.tell(shell.lease("expired", 9))
    assert (shell.machine.phase, shell.machine.rule) == (Phase.REFUSED, "check.20")


def test_the_broker_is_gone_after_delivery_and_the_requester_settles_itself() -> None:
    """R7: anyone may submit the settle of a final receipt that is wholly accepted."""
    shell = up_to_delivery()
    shell.tell(shell.lease(), shell.found)
    asked = shell.tell(e.AcceptanceFailed("broker.unreachable", "no answer"))
    assert kinds(asked) == [e.TellTrouble, e.SubmitSettle]
    assert asked[1].receipt == shell.world.receipt
    shell.tell(e.SettleFailed("chain.unreachable", "no answer"))
    assert kinds(shell.sleep()) == [e.SubmitSettle]
    shell.tell(shell.lease("settled", 9))
    assert shell.machine.wake_at() is None


def test_a_provider_that_does_not_settle_is_settled_for() -> None:
    shell = up_to_delivery()
    shell.tell(shell.lease(), shell.found)
    shell.tell(e.AcceptancePosted(), at=NOW + 100)
    assert shell.machine.wake_at() == NOW + 100 + SETTLE_AFTER_MS
    assert kinds(shell.sleep()) == [e.SubmitSettle]


def test_silence_paid_and_the_result_is_still_fetched_without_acceptance() -> None:
    shell = Shell()
    w = shell.world
    shell.tell(e.Restarted(), e.Submitted(), w.closed, w.awarded, shell.lease("settled", 9), w.delivered, shell.found)
    assert shell.machine.phase is Phase.SETTLED
    assert e.PostAcceptance not in kinds(shell.asked)


def test_a_result_that_cannot_be_had_is_given_up_and_asked_for_again_after_a_restart() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), shell.world.closed, shell.world.awarded, shell.lease("settled", 9))
    assert shell.machine.wake_at() == NOW + RESULT_WAIT_MS
    shell.sleep()
    assert (shell.machine.phase, shell.machine.rule) == (Phase.LOST, "result.missing")
    assert kinds(shell.tell(e.Restarted())) == [e.WatchChain, e.Listen, e.TellPhase]
    shell.tell(shell.world.delivered, shell.found)
    assert shell.machine.phase is Phase.SETTLED


def test_blobs_that_cannot_be_fetched_are_asked_for_again() -> None:
    shell = up_to_delivery()
    shell.tell(e.FetchFailed("no answer"))
    assert kinds(shell.sleep()) == [e.FetchBlobs]


@pytest.mark.parametrize("state", sorted(LEASE_ENDS - {"settled"}))
def test_a_lease_that_ends_without_settling_ends_the_job_with_a_reason(state: str) -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), shell.world.closed, shell.world.awarded, shell.lease(state, 9))
    assert (shell.machine.phase, shell.machine.rule, shell.machine.text) == (
        Phase.ENDED,
        f"lease.{state}",
        LEASE_WORDS[state],
    )
    assert shell.machine.wake_at() is None


def test_older_news_of_the_chain_changes_nothing() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), shell.lease("delivered", 8), shell.lease("open", 7))
    assert shell.machine.lease is not None
    assert shell.machine.lease.state == "delivered"
    shell.tell(shell.lease("settled", 9), shell.lease("expired", 10))
    assert shell.machine.lease.state == "settled"


def test_nobody_bid() -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), Unmatched(NOW, 3_000_000, "a cap of 3 credits", ()))
    assert (shell.machine.phase, shell.machine.text) == (Phase.UNMATCHED, "a cap of 3 credits")
    assert shell.machine.unmatched is not None
    assert shell.machine.unmatched.lowest == 3_000_000


@pytest.mark.parametrize(("state", "phase"), [("withdrawn", Phase.WITHDRAWN), ("refused", Phase.REJECTED)])
def test_the_brokers_last_word_counts_where_the_chain_has_none(state: str, phase: Phase) -> None:
    shell = Shell()
    shell.tell(e.Restarted(), e.Submitted(), Ended(NOW, state, "why"))
    assert (shell.machine.phase, shell.machine.text) == (phase, "why")
    opened = Shell()
    opened.tell(e.Restarted(), e.Submitted(), opened.lease(), Ended(NOW, state, "why"))
    assert opened.machine.phase is Phase.RUNNING


# ---- restarts and replay ----


def test_a_restart_asks_again_for_all_that_is_outstanding() -> None:
    shell = up_to_delivery()
    assert kinds(shell.tell(e.Restarted())) == [e.WatchChain, e.Listen, e.FetchBlobs]
    shell.tell(shell.found)
    assert kinds(shell.tell(e.Restarted())) == [e.WatchChain, e.Listen, e.PostAcceptance]
    shell.tell(e.AcceptancePosted())
    assert kinds(shell.tell(e.Restarted())) == [e.WatchChain, e.Listen]


def list_events(shell: Shell) -> list[Any]:
    w = shell.world
    wrong = World()
    wrong_receipt(wrong)
    return [
        e.Restarted(),
        e.Submitted(),
        e.SubmitFailed("broker.unreachable", "no answer", again=True),
        e.SubmitFailed("R12.funds", "pay in", again=False),
        Announced(NOW, 2, NOW + 2_000),
        w.closed,
        w.awarded,
        w.opened,
        w.delivered,
        wrong.delivered,
        shell.found,
        e.BlobsFetched(()),
        e.FetchFailed("no answer"),
        e.AcceptancePosted(),
        e.AcceptanceFailed("broker.unreachable", "no answer"),
        shell.lease(),
        shell.lease("settled", 9),
        shell.lease("expired", 9, tx=""),
        e.SettleFailed("R7.state", "settled already"),
        e.Moved(Advanced(NOW, w.lease, 0, 1, (), 0, b"x")),
        Advanced(NOW, w.lease, 0, 1, (), 0, b"x"),
        Unmatched(NOW, 0, "nobody", ()),
        Accepted(NOW, REQUESTER.sign(Tag.ACCEPTANCE, CHAIN, _acceptance(w))),
        Ended(NOW, "withdrawn", ""),
    ]


def _acceptance(world: World) -> Any:
    shell = up_to_delivery(world)
    return shell.tell(shell.found)[0].acceptance.body


EVENTS = list_events(Shell())


@given(steps=st.lists(st.tuples(st.integers(0, len(EVENTS) - 1), st.integers(0, 40_000)), max_size=40))
def test_in_any_order_of_events_a_replay_ends_where_it_stood(steps: list[tuple[int, int]]) -> None:
    """Replay equals live; nothing is accepted that was not checked; once over for good, over for ever."""
    shell = Shell()
    settled = False
    for index, pause in steps:
        shell.tell(EVENTS[index], at=shell.now + pause)
        assert settled <= (shell.machine.phase in (Phase.SETTLED, Phase.REFUSED, Phase.ENDED))
        settled = settled or shell.machine.phase is Phase.SETTLED
    assert look(replay(shell)) == look(shell.machine)
    for effect in shell.asked:
        if isinstance(effect, e.PostAcceptance):
            assert effect.acceptance.body.receipt == compute_receipt_id(CHAIN, shell.world.receipt_body)
            assert shell.machine.result is Result.GOOD
