"""Who may use which part of the machine when, so that what was promised in bids can be kept in the worst case.

A booking is made with each bid and holds until the bid is answered, has run out, or its lease is over. Each has a
plan: an interval as long as the order's wall limits allow the work to take, starting no earlier than the bid can be
taken up at the latest, and ending before its due Instant. Plans never overlap beyond slots, memory or cores (the
invariant of this file); an order whose plan finds no room is declined as busy. So bids queue as far as deadlines
permit, twenty orders at once on two slots are all served if their deadlines allow ten in a row, and no lease is
missed (R3 d). Work that really starts may start earlier than planned if everybody else still meets their due. Not
here: prices, bonds, which orders at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from chain.base.errors import Fault

MAX_BOOKINGS = 64
"""Planning costs the third power of this; a host with that many jobs waiting is busy by any measure."""

OVERSTAY_MS = 1_000
"""How much longer than planned a running job is thought to run, again and again, until it is released."""


class Need(msgspec.Struct, frozen=True):
    """What one job takes besides one slot: bytes of memory, thousandths of a core."""

    memory_bytes: int
    millicores: int


class Pool(msgspec.Struct, frozen=True):
    """What there is: slots, bytes of memory, thousandths of a core."""

    slots: int
    memory_bytes: int
    millicores: int


class Booking(msgspec.Struct, frozen=True):
    """One promise: milliseconds and Instants.

    `ready` is the earliest Instant it may be planned at, `start` where it is planned (or did start), `due` the latest
    end. `runs_out` is None once the lease is open.
    """

    key: bytes
    need: Need
    ready: int
    start: int
    duration: int
    due: int
    runs_out: int | None
    running: bool = False

    @property
    def end(self) -> int:
        """When it is over at the latest, by plan."""
        return self.start + self.duration


class Request(msgspec.Struct, frozen=True):
    """What a bid would need: see `Booking`."""

    key: bytes
    need: Need
    ready: int
    duration: int
    due: int
    runs_out: int


class Capacity:
    """The bookings of one host. All methods first forget bids that ran out at `now`."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._bookings: dict[bytes, Booking] = {}

    @property
    def bookings(self) -> tuple[Booking, ...]:
        """All bookings, by planned start."""
        return tuple(sorted(self._bookings.values(), key=lambda booking: (booking.start, booking.key)))

    def get(self, key: bytes) -> Booking | None:
        """The booking of an order, if any."""
        return self._bookings.get(key)

    def find_start(self, need: Need, ready: int, duration: int, now: int) -> int:
        """The first Instant from `ready` on at which such a job fits among the plans."""
        self.expire(now)
        return _find_start(self.pool, self._intervals(now), need, ready, duration)

    def reserve(self, request: Request, now: int) -> Booking | None:
        """Book, or None where the plan would end after its due Instant or too many wait. Raises `Fault` for a key
        that is booked.
        """
        if request.key in self._bookings:
            raise Fault("an order is booked once", rule="capacity.twice")
        start = self.find_start(request.need, max(request.ready, now), request.duration, now)
        if len(self._bookings) >= MAX_BOOKINGS or not self._is_possible(request.need):
            return None
        booking = Booking(
            request.key, request.need, request.ready, start, request.duration, request.due, request.runs_out
        )
        plan = self._bookings | {request.key: booking} if booking.end <= booking.due else self._replan(booking, now)
        if plan is None:
            return None
        self._bookings = plan
        return plan[request.key]

    def confirm(self, key: bytes, now: int, duration: int) -> bool:
        """The lease is open: the booking no longer runs out and is planned as early as it fits, for as long as the
        awarded part may take. False where there is no booking (any more).
        """
        booking = self._bookings.get(key)
        if booking is None:
            return False
        if booking.runs_out is None:
            return True
        confirmed = msgspec.structs.replace(booking, runs_out=None, ready=now, duration=duration)
        self.expire(now)
        self._bookings.pop(key, None)
        start = _find_start(self.pool, self._intervals(now), booking.need, now, duration)
        self._bookings[key] = msgspec.structs.replace(confirmed, start=start)
        return True

    def adopt(self, request: Request, now: int) -> None:
        """Book an open lease of which nothing was booked (a bid of an earlier life): wherever it fits, even if late."""
        start = self.find_start(request.need, now, request.duration, now)
        self._bookings[request.key] = Booking(
            request.key, request.need, now, start, request.duration, request.due, None
        )

    def take(self, wanting: Iterable[bytes], now: int) -> list[bytes]:
        """Which of the confirmed bookings that want to start may start now; they count as running from then on."""
        self.expire(now)
        wanted = set(wanting)
        return [booking.key for booking in self.bookings if booking.key in wanted and self._begin(booking, now)]

    def release(self, key: bytes) -> None:
        """The booking is over: bid lost or withdrawn, lease ended."""
        self._bookings.pop(key, None)

    def expire(self, now: int) -> None:
        """Forget bids that ran out, and bring stale plans up to date."""
        for booking in list(self._bookings.values()):
            if booking.runs_out is not None and booking.runs_out < now:
                del self._bookings[booking.key]
        self._repair(now)

    def wake_at(self, now: int) -> int | None:
        """When time alone may let a waiting job start: the next bid to run out, or the next planned start."""
        instants = [one.start if one.runs_out is None else one.runs_out + 1 for one in self.bookings if not one.running]
        return min((instant for instant in instants if instant > now), default=None)

    def _is_possible(self, need: Need) -> bool:
        pool = self.pool
        return pool.slots > 0 and need.memory_bytes <= pool.memory_bytes and need.millicores <= pool.millicores

    def _begin(self, booking: Booking, now: int) -> bool:
        if booking.running or booking.runs_out is not None:
            return False
        begun = msgspec.structs.replace(booking, start=now, running=True)
        others = [other for other in self.bookings if other.key != booking.key]
        plan = _plan(self.pool, [begun, *(other for other in others if other.running)], others, now)
        if plan is None:
            return False
        self._bookings = plan
        return True

    def _replan(self, booking: Booking, now: int) -> dict[bytes, Booking] | None:
        """All plans made anew with `booking` among them, the earliest due first, or None if one would miss its due."""
        plan = {one.key: one for one in self.bookings if one.running}
        intervals = [_interval(one, now) for one in plan.values()]
        waiting = [one for one in self.bookings if not one.running]
        for one in sorted([*waiting, booking], key=lambda one: (one.due, one.start, one.key)):
            start = _find_start(self.pool, intervals, one.need, max(one.ready, now), one.duration)
            if start + one.duration > one.due:
                return None
            plan[one.key] = msgspec.structs.replace(one, start=start)
            intervals.append(_interval(plan[one.key], now))
        return plan

    def _repair(self, now: int) -> None:
        """Plans whose start has passed unused, or that a job running too long collides with, move to where they fit."""
        kept = [booking for booking in self.bookings if booking.running]
        waiting = [booking for booking in self.bookings if not booking.running]
        for booking in waiting:
            start = max(booking.start, now)
            intervals = [_interval(other, now) for other in kept]
            if not _fits(self.pool, intervals, booking.need, start, booking.duration):
                start = _find_start(self.pool, intervals, booking.need, start, booking.duration)
            kept.append(booking if start == booking.start else msgspec.structs.replace(booking, start=start))
        self._bookings = {booking.key: booking for booking in kept}

    def _intervals(self, now: int) -> list[tuple[int, int, Need]]:
        return [_interval(booking, now) for booking in self._bookings.values()]


def _interval(booking: Booking, now: int) -> tuple[int, int, Need]:
    end = now + OVERSTAY_MS if booking.running and booking.end <= now else booking.end
    return booking.start, end, booking.need


def _plan(pool: Pool, fixed: Sequence[Booking], others: Sequence[Booking], now: int) -> dict[bytes, Booking] | None:
    """All bookings with `fixed` where they are and the waiting ones where they fit, or None if one then misses its
    due Instant that met it before.
    """
    intervals: list[tuple[int, int, Need]] = []
    for booking in fixed:
        if not _fits(pool, intervals, booking.need, max(booking.start, now), 1):
            return None
        intervals.append(_interval(booking, now))
    plan = {booking.key: booking for booking in fixed}
    for booking in others:
        if booking.running:
            continue
        ready = max(booking.ready, now)
        start = booking.start
        if start < ready or not _fits(pool, intervals, booking.need, start, booking.duration):
            start = _find_start(pool, intervals, booking.need, ready, booking.duration)
        if start + booking.duration > max(booking.due, booking.end):
            return None
        plan[booking.key] = msgspec.structs.replace(booking, start=start)
        intervals.append(_interval(plan[booking.key], now))
    return plan


def _find_start(pool: Pool, taken: Sequence[tuple[int, int, Need]], need: Need, ready: int, duration: int) -> int:
    """First Instant from `ready` on where `need` fits for `duration`: `ready` itself, or the end of something."""
    candidates = sorted({ready, *(end for _, end, _ in taken if end > ready)})
    for candidate in candidates:
        if _fits(pool, taken, need, candidate, duration):
            return candidate
    return candidates[-1]


def _fits(pool: Pool, taken: Sequence[tuple[int, int, Need]], need: Need, start: int, duration: int) -> bool:
    """Whether at no Instant of [start, start + duration) slots, memory or cores are taken twice. Use grows only where
    an interval starts.
    """
    end = start + duration
    overlapping = [interval for interval in taken if interval[0] < end and interval[1] > start]
    instants = {start, *(interval[0] for interval in overlapping if interval[0] > start)}
    return all(_is_free(pool, overlapping, need, instant) for instant in instants)


def _is_free(pool: Pool, taken: Iterable[tuple[int, int, Need]], need: Need, instant: int) -> bool:
    used = [interval[2] for interval in taken if interval[0] <= instant < interval[1]]
    return (
        len(used) < pool.slots
        and sum(other.memory_bytes for other in used) + need.memory_bytes <= pool.memory_bytes
        and sum(other.millicores for other in used) + need.millicores <= pool.millicores
    )
