"""Capacity: nothing is promised twice, nobody promised is forgotten, work starts as soon as promises allow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chain.base.errors import Fault
from provider.bidding.capacity import MAX_BOOKINGS, Booking, Capacity, Need, Pool, Request

SMALL = Need(1, 1)


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def ask(number: int, *, ready: int = 10, duration: int = 100, due: int = 10_000, need: Need = SMALL) -> Request:
    return Request(key(number), need, ready, duration, due, runs_out=ready)


def find_oversold(pool: Pool, bookings: tuple[Booking, ...], now: int) -> str:
    """Where plans overlap beyond the pool. Running work that stays too long counts until now."""
    for at in [now, *(booking.start for booking in bookings)]:
        held = [b for b in bookings if b.start <= at < b.end or (b.running and at == now)]
        memory, cores = sum(b.need.memory_bytes for b in held), sum(b.need.millicores for b in held)
        if len(held) > pool.slots or memory > pool.memory_bytes or cores > pool.millicores:
            return f"at {at}: {held}"
    return ""


def test_twenty_orders_at_once_on_two_slots_are_all_served() -> None:
    capacity, length = Capacity(Pool(2, 100, 100)), 100
    due = 10 + 10 * length
    booked = [capacity.reserve(ask(n, duration=length, due=due), now=0) for n in range(20)]
    assert [booking.start for booking in booked if booking] == [10 + n // 2 * length for n in range(20)]
    assert capacity.reserve(ask(20, due=due), now=0) is None
    now, waiting, running = 5, {key(n) for n in range(20)}, dict[bytes, int]()
    for one in sorted(waiting):
        assert capacity.confirm(one, now, length)
    while waiting or running:
        for one in capacity.take(waiting, now):
            waiting.discard(one)
            running[one] = now + length
        assert len(running) == 2
        now = min(running.values())
        for one in [one for one, end in running.items() if end <= now]:
            assert now <= due
            del running[one]
            capacity.release(one)
    assert capacity.bookings == ()


@pytest.mark.parametrize(
    ("pool", "need", "fits"),
    [
        (Pool(1, 10, 10), Need(10, 10), 1),
        (Pool(4, 10, 10), Need(5, 1), 2),
        (Pool(4, 10, 10), Need(1, 4), 2),
        (Pool(0, 10, 10), Need(1, 1), 0),
        (Pool(4, 10, 10), Need(11, 1), 0),
        (Pool(4, 10, 10), Need(1, 11), 0),
    ],
)
def test_slots_memory_and_cores_each_bind(pool: Pool, need: Need, fits: int) -> None:
    capacity = Capacity(pool)
    asked = [capacity.reserve(ask(n, due=110, need=need), now=0) for n in range(5)]
    assert sum(booking is not None for booking in asked) == fits


def test_a_bid_that_ran_out_is_forgotten_and_an_open_lease_is_not() -> None:
    capacity = Capacity(Pool(1, 10, 10))
    assert capacity.reserve(ask(1, due=110), now=0) and capacity.confirm(key(1), 5, 100)
    assert capacity.reserve(ask(2), now=5)
    capacity.expire(11)
    assert [booking.key for booking in capacity.bookings] == [key(1)]
    assert not capacity.confirm(key(2), 12, 100)


def test_work_starts_before_a_bid_that_may_never_win_if_both_are_served_in_time() -> None:
    capacity = Capacity(Pool(1, 10, 10))
    assert capacity.reserve(ask(1, ready=50, due=300), now=0)
    assert capacity.reserve(ask(2, ready=50, due=10_000), now=0)
    assert capacity.confirm(key(2), 1, 100)
    assert capacity.take([key(2)], 1) == [key(2)]
    moved = capacity.get(key(1))
    assert moved is not None and moved.start == 101


def test_work_waits_for_a_bid_that_would_miss_its_deadline() -> None:
    capacity = Capacity(Pool(1, 10, 10))
    assert capacity.reserve(ask(1, ready=50, due=150), now=0)
    assert capacity.reserve(ask(2, ready=50, due=10_000), now=0)
    assert capacity.confirm(key(2), 1, 100)
    assert capacity.take([key(2)], 1) == []
    assert capacity.wake_at(1) == 51
    assert capacity.take([key(2)], 51) == [key(2)]


def test_an_unconfirmed_bid_never_starts_and_running_work_starts_once() -> None:
    capacity = Capacity(Pool(2, 10, 10))
    assert capacity.reserve(ask(1), now=0)
    assert capacity.take([key(1)], 5) == []
    assert capacity.confirm(key(1), 6, 100) and capacity.confirm(key(1), 7, 100)
    assert capacity.take([key(1)], 8) == [key(1)]
    assert capacity.take([key(1)], 9) == []


def test_a_lease_on_a_part_makes_room_for_what_was_not_awarded() -> None:
    capacity = Capacity(Pool(1, 10, 10))
    assert capacity.reserve(ask(1, due=200), now=0)
    assert capacity.reserve(ask(2, due=150), now=0) is None
    assert capacity.confirm(key(1), 10, 40)
    booked = capacity.reserve(ask(2, due=150), now=10)
    assert booked is not None and booked.start == 50


def test_work_that_stays_too_long_pushes_the_next_back() -> None:
    capacity = Capacity(Pool(1, 10, 10))
    for number in (1, 2):
        assert capacity.reserve(ask(number), now=0) and capacity.confirm(key(number), 0, 100)
    assert capacity.take([key(1), key(2)], 0) == [key(1)]
    assert capacity.take([key(2)], 100) == []
    assert capacity.take([key(2)], 5_000) == []
    capacity.release(key(1))
    assert capacity.take([key(2)], 5_000) == [key(2)]


def test_plans_are_packed_anew_where_that_makes_room() -> None:
    capacity = Capacity(Pool(1, 10, 10))
    assert capacity.reserve(ask(1, due=110), now=0)
    assert capacity.reserve(ask(2, due=250), now=0)
    capacity.release(key(1))
    booked = capacity.reserve(ask(3, ready=15, due=230), now=0)
    first = capacity.get(key(2))
    assert booked is not None and first is not None
    assert (booked.start, first.start) == (15, 115)
    assert capacity.reserve(ask(4, ready=15, due=230), now=0) is None


def test_a_lease_of_an_earlier_life_is_adopted_even_late() -> None:
    capacity = Capacity(Pool(1, 10, 10))
    capacity.adopt(ask(1, due=20), now=500)
    assert capacity.take([key(1)], 500) == [key(1)]


def test_an_order_is_booked_once_and_only_so_many_wait() -> None:
    capacity = Capacity(Pool(1, 10, 10))
    assert capacity.reserve(ask(1, due=10**9), now=0)
    with pytest.raises(Fault, match="once"):
        capacity.reserve(ask(1), now=0)
    booked = [capacity.reserve(ask(n, due=10**9), now=0) for n in range(2, MAX_BOOKINGS + 5)]
    assert sum(booking is not None for booking in booked) == MAX_BOOKINGS - 1


class CapacityLife(RuleBasedStateMachine):
    """Random bids, answers, starts, ends within the limits, in random order and time: never oversold, never late."""

    @initialize(slots=st.integers(1, 3), memory=st.integers(2, 12), cores=st.integers(2, 12))
    def begin(self, slots: int, memory: int, cores: int) -> None:
        self.pool = Pool(slots, memory, cores)
        self.capacity = Capacity(self.pool)
        self.now = 0
        self.number = 0
        self.open: set[bytes] = set()
        self.running: dict[bytes, int] = {}

    @rule(
        need=st.builds(Need, st.integers(1, 6), st.integers(1, 6)),
        ready=st.integers(1, 50),
        duration=st.integers(1, 60),
        slack=st.integers(0, 200),
    )
    def bid(self, need: Need, ready: int, duration: int, slack: int) -> None:
        self.number += 1
        at = self.now + ready
        request = Request(key(self.number), need, at, duration, at + duration + slack, at)
        booking = self.capacity.reserve(request, self.now)
        assert booking is None or (booking.start >= at and booking.end <= booking.due)

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        waiting = [b.key for b in self.capacity.bookings if b.runs_out is not None and b.runs_out >= self.now]
        if waiting:
            one = data.draw(st.sampled_from(waiting))
            if data.draw(st.booleans()):
                booked = self.capacity.get(one)
                assert booked is not None
                assert self.capacity.confirm(one, self.now, data.draw(st.integers(1, booked.duration)))
                self.open.add(one)
            else:
                self.capacity.release(one)

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        wanting = data.draw(st.sets(st.sampled_from(sorted(self.open)))) if self.open else set()
        for one in self.capacity.take(wanting, self.now):
            self._run(one)

    @rule(step=st.integers(1, 40))
    def wait(self, step: int) -> None:
        """Time passes in steps no longer than to the next instant at which something must be done, as a shell does."""
        for _ in range(step):
            self.now += 1
            for one in [one for one, end in self.running.items() if end <= self.now]:
                del self.running[one]
                self.capacity.release(one)
            for one in self.capacity.take(sorted(self.open), self.now):
                self._run(one)

    @rule(data=st.data())
    @precondition(lambda self: self.running)
    def end_early(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[one]
        self.capacity.release(one)

    def _run(self, one: bytes) -> None:
        self.open.discard(one)
        booking = self.capacity.get(one)
        assert booking is not None and booking.end <= booking.due, "it started too late to be done in time"
        self.running[one] = booking.end

    @invariant()
    def nothing_is_oversold(self) -> None:
        if hasattr(self, "capacity"):
            self.capacity.expire(self.now)
            assert not find_oversold(self.pool, self.capacity.bookings, self.now)
            assert all(b.end <= b.due for b in self.capacity.bookings)


TestCapacityLife = CapacityLife.TestCase


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(0, 100), st.integers(1, 30))
def test_find_start_gives_the_first_instant_that_fits(lengths: list[int], ready: int, duration: int) -> None:
    capacity = Capacity(Pool(1, 100, 100))
    for number, length in enumerate(lengths):
        capacity.reserve(Request(key(number), SMALL, 10 + 20 * number, length, 10**6, 10**6), now=0)
    start = capacity.find_start(SMALL, ready, duration, 0)
    busy = [(b.start, b.end) for b in capacity.bookings]

    def fits(at: int) -> bool:
        return all(at + duration <= begin or at >= end for begin, end in busy)

    assert start == next(at for at in range(ready, 10**6) if fits(at))
