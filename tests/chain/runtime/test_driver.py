"""The driver: deadlines before the event, store before effects, replay equals live, a failed machine stops alone."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.base.codec import decode, encode
from chain.base.errors import Fault
from chain.runtime.clock import Clock, SystemClock
from chain.runtime.database import open_database
from chain.runtime.driver import Driver
from chain.runtime.journal import SCHEMA, Journal
from tests.support.toy import (
    Added,
    FakeClock,
    Heard,
    Recorder,
    Report,
    Restarted,
    Say,
    Scheduled,
    Toy,
    ToyEffect,
    ToyEvent,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    connection = open_database(tmp_path / "toy.db", kind="toy", version=1, schema=SCHEMA)
    yield Journal(connection)
    connection.close()


def open_memory() -> Journal:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA)
    return Journal(connection)


def make_driver(
    journal: Journal, perform: Any = None, clock: Clock | None = None, name: str = "toy"
) -> Driver[ToyEvent, ToyEffect]:
    return Driver(
        name, Toy(), perform or Recorder(), journal=journal, events=ToyEvent, restarted=Restarted(),
        clock=clock or FakeClock(),
    )  # fmt: skip


def read_events(journal: Journal, name: str = "toy") -> list[ToyEvent | str]:
    union: Any = ToyEvent
    return [decode(data, union) if data else "wake" for _, data in journal.load(name)]


async def wait_until(condition: Any) -> None:
    """Hands the loop on until the condition holds; the test's own time limit ends a wait that is in vain."""
    while not condition():
        await asyncio.sleep(0)


async def test_an_event_is_stored_before_its_effects_are_carried_out(journal: Journal) -> None:
    seen: list[tuple[str, int]] = []
    driver = make_driver(journal, lambda effect: seen.append((effect.text, len(read_events(journal)))))
    await driver.start()
    driver.post(Added(5))
    assert seen == [("restarted", 1), (repr(Added(5)), 2), ("done", 2)]
    await driver.close()


async def test_effects_are_carried_out_in_order(journal: Journal) -> None:
    recorder = Recorder()
    driver = make_driver(journal, recorder)
    for number in range(3):
        driver.post(Added(number))
    expected = [Say(text) for number in range(3) for text in (repr(Added(number)), "done")]
    assert recorder.effects == expected
    await driver.close()


async def test_due_deadlines_are_settled_before_the_event(journal: Journal) -> None:
    """The sum reported at the deadline does not hold what came after it, though the timer had no turn yet."""
    clock, recorder = FakeClock(), Recorder()
    driver = make_driver(journal, recorder, clock)
    driver.post(Added(1))
    driver.post(Scheduled(2_000))
    driver.post(Scheduled(2_500))
    clock.time = 3_000
    driver.post(Added(100))
    reports = [one for one in recorder.effects if isinstance(one, Report)]
    assert reports == [Report(1, 1_000), Report(1, 500)]
    assert recorder.effects[-2:] == [Say(repr(Added(100))), Say("done")]
    assert [str(one) for one in read_events(journal)][-2:] == ["wake", str(Added(100))]
    await driver.close()


async def test_a_deadline_that_falls_due_while_effects_are_carried_out_goes_before_the_next_event(
    journal: Journal,
) -> None:
    clock, recorder = FakeClock(), Recorder()

    def take_long(effect: ToyEffect) -> None:
        if effect == Say(repr(Added(1))):
            clock.time = 3_000
            driver.post(Added(100))

    recorder.also = take_long
    driver = make_driver(journal, recorder, clock)
    driver.post(Scheduled(2_000))
    driver.post(Added(1))
    assert Report(1, 1_000) in recorder.effects
    assert recorder.effects.index(Report(1, 1_000)) < recorder.effects.index(Say(repr(Added(100))))
    await driver.close()


async def test_a_deadline_is_due_at_its_own_instant_and_not_before(journal: Journal) -> None:
    clock, recorder = FakeClock(), Recorder()
    driver = make_driver(journal, recorder, clock)
    driver.post(Scheduled(2_000))
    clock.time = 1_999
    driver.post(Added(1))
    assert not any(isinstance(one, Report) for one in recorder.effects)
    clock.time = 2_000
    driver.post(Added(1))
    assert Report(1, 0) in recorder.effects
    await driver.close()


async def test_an_event_that_is_not_durable_is_handled_and_not_stored(journal: Journal) -> None:
    recorder = Recorder()
    driver = make_driver(journal, recorder)
    driver.post(Heard("half"))
    assert recorder.effects == [Say("half")]
    assert read_events(journal) == []
    await driver.close()


async def test_events_posted_by_effects_wait_for_their_turn(journal: Journal) -> None:
    order: list[str] = []

    def perform(effect: ToyEffect) -> None:
        order.append(effect.text if isinstance(effect, Say) else "report")
        if effect == Say(repr(Added(1))):
            driver.post(Added(2))
            order.append("posted")

    driver = make_driver(journal, perform)
    driver.post(Added(1))
    assert order == [repr(Added(1)), "posted", "done", repr(Added(2)), "done"]
    await driver.close()


async def test_what_runs_beside_comes_back_as_an_event(journal: Journal) -> None:
    async def work(amount: int) -> ToyEvent | None:
        await asyncio.sleep(0)
        return Added(amount) if amount else None

    def perform(effect: ToyEffect) -> Any:
        amounts: dict[ToyEffect, int] = {Say("one"): 40, Say("none"): 0}
        return work(amounts[effect]) if effect in amounts else None

    driver = make_driver(journal, perform)
    driver.post(Heard("one"))
    driver.post(Heard("none"))
    await wait_until(lambda: Added(40) in read_events(journal))
    assert driver.failed is None
    await driver.close()


async def test_close_ends_what_runs_beside_and_hears_nothing_more(journal: Journal) -> None:
    ended = asyncio.Event()

    async def work() -> ToyEvent | None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return None

    driver = make_driver(journal, lambda effect: work())
    driver.post(Heard("go"))
    await asyncio.sleep(0)
    await driver.close()
    assert ended.is_set()
    driver.post(Added(1))
    assert read_events(journal) == []


async def test_an_effect_may_close_its_own_driver(journal: Journal) -> None:
    async def work() -> ToyEvent | None:
        await driver.close()
        return Added(1)

    driver = make_driver(journal, lambda effect: work())
    driver.post(Heard("go"))
    tasks = [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
    await asyncio.gather(*tasks)
    assert driver.failed is None
    assert read_events(journal) == []


# ---- failures ----


async def test_a_performer_that_raises_leaves_the_event_stored_and_stops_the_machine(journal: Journal) -> None:
    error = RuntimeError("the world broke")
    told: list[BaseException] = []
    driver = make_driver(journal, Recorder(lambda effect: (_ for _ in ()).throw(error)))
    driver.on_fault = told.append
    driver.post(Added(7))
    assert (driver.failed, told) == (error, [error])
    assert read_events(journal) == [Added(7)]
    driver.post(Added(8))
    assert read_events(journal) == [Added(7)]
    await driver.close()


async def test_a_machine_that_raises_stops_alone(journal: Journal) -> None:
    """Its neighbour in the same loop and journal goes on, and whoever posted is not hit."""
    broken, sound = make_driver(journal, name="broken"), make_driver(journal, name="sound")
    broken.post(Added(13))
    sound.post(Added(1))
    broken.post(Added(2))
    assert isinstance(broken.failed, ZeroDivisionError)
    assert sound.failed is None
    assert read_events(journal, "sound") == [Added(1)]
    assert read_events(journal, "broken") == [Added(13)]
    await broken.close()
    await sound.close()


async def test_what_runs_beside_and_raises_stops_the_machine(journal: Journal) -> None:
    async def work() -> ToyEvent | None:
        raise OSError("no such place")

    driver = make_driver(journal, lambda effect: work())
    driver.post(Heard("go"))
    await wait_until(lambda: driver.failed is not None)
    assert isinstance(driver.failed, OSError)
    await driver.close()


async def test_events_that_waited_behind_a_failure_are_dropped(journal: Journal) -> None:
    def perform(effect: ToyEffect) -> None:
        driver.post(Added(2))
        raise RuntimeError("after posting")

    driver = make_driver(journal, perform)
    driver.post(Added(1))
    assert read_events(journal) == [Added(1)]
    await driver.close()


async def test_a_journal_that_cannot_store_stops_the_machine_before_any_effect(journal: Journal) -> None:
    recorder = Recorder()
    driver = make_driver(journal, recorder)
    journal._connection.execute("DROP TABLE journal")
    driver.post(Added(1))
    assert isinstance(driver.failed, sqlite3.Error)
    assert recorder.effects == []
    assert isinstance(driver.machine, Toy)
    assert driver.machine.total == 0
    await driver.close()


UNREADABLE: list[Any] = [Added(-1), Added(2**63), Added("1"), Scheduled(None)]  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("event", UNREADABLE, ids=repr)
async def test_an_event_that_could_not_be_read_back_never_reaches_the_journal(journal: Journal, event: Any) -> None:
    recorder = Recorder()
    driver = make_driver(journal, recorder)
    driver.post(event)
    assert isinstance(driver.failed, Fault)
    assert driver.failed.rule == "journal.form"
    assert (recorder.effects, journal.load("toy")) == ([], [])
    await driver.close()


async def test_a_row_that_is_no_event_is_a_fault_at_start(journal: Journal) -> None:
    journal.append("toy", 5, encode(("nonsense",)))
    driver = make_driver(journal)
    with pytest.raises(Fault) as fault:
        await driver.start()
    assert fault.value.rule == "journal.form"


# ---- the timer ----


class LoopClock:
    """The loop's own time in milliseconds: what the timer runs on."""

    def now(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)


async def test_the_timer_wakes_the_machine_and_is_armed_again(journal: Journal) -> None:
    clock, recorder = LoopClock(), Recorder()
    driver = make_driver(journal, recorder, clock)
    start = clock.now()
    for after in (30, 10, 20):
        driver.post(Scheduled(start + after))
    await wait_until(lambda: sum(isinstance(one, Report) for one in recorder.effects) == 3)
    assert driver.machine.wake_at() is None
    assert driver._timer is None
    woken = [now for now, data in journal.load("toy") if not data]
    assert all(now >= start + 10 for now in woken)
    await driver.close()


def get_timer(driver: Driver[ToyEvent, ToyEffect]) -> asyncio.TimerHandle | None:
    return driver._timer


async def test_an_earlier_deadline_moves_the_timer_and_none_stops_it(journal: Journal) -> None:
    clock = FakeClock()
    driver = make_driver(journal, clock=clock)
    loop = asyncio.get_running_loop()
    assert get_timer(driver) is None
    timers = []
    for seconds in (60, 30):
        driver.post(Scheduled(clock.time + 1_000 * seconds))
        timer = get_timer(driver)
        assert timer is not None
        assert timer.when() - loop.time() == pytest.approx(seconds, abs=5)
        timers.append(timer)
    assert [one.cancelled() for one in timers] == [True, False]
    clock.time = 100_000
    driver.post(Added(1))
    assert [one.cancelled() for one in timers] == [True, True]
    assert get_timer(driver) is None
    await driver.close()


async def test_a_far_deadline_is_looked_at_again_within_the_hour(journal: Journal) -> None:
    """So that a clock that was set is noticed."""
    driver = make_driver(journal)
    driver.post(Scheduled(10**12))
    assert driver._timer is not None
    assert driver._timer.when() - asyncio.get_running_loop().time() <= 3_600
    driver._on_timer()
    assert driver._timer is not None
    assert [one for one in read_events(journal) if one == "wake"] == []
    await driver.close()


async def test_a_closed_or_failed_driver_arms_no_timer(journal: Journal) -> None:
    clock = FakeClock()
    closed = make_driver(journal, clock=clock, name="closed")
    failed = make_driver(journal, clock=clock, name="failed")
    for driver in (closed, failed):
        driver.post(Scheduled(61_000))
    timers = [closed._timer, failed._timer]
    await closed.close()
    failed.post(Added(13))
    assert all(one is not None and one.cancelled() for one in timers)
    clock.time = 100_000
    for driver in (closed, failed):
        driver._on_timer()
        assert "wake" not in read_events(journal, driver.name)
    await failed.close()


# ---- replay ----

STEPS = st.lists(
    st.tuples(
        st.integers(0, 500),
        st.builds(Added, st.integers(0, 100).filter(lambda amount: amount != 13))
        | st.builds(Scheduled, st.integers(0, 5_000))
        | st.builds(Heard, st.text(max_size=3)),
    ),
    max_size=30,
)


@given(STEPS, STEPS)
def test_replay_equals_live(before: list[tuple[int, ToyEvent]], after: list[tuple[int, ToyEvent]]) -> None:
    """A machine rebuilt from its journal is the one that wrote it, wherever it was cut, and makes no effect anew."""

    async def live() -> None:
        journal, clock = open_memory(), FakeClock()
        first = make_driver(journal, clock=clock)
        await first.start()
        await feed(first, clock, before)
        await first.close()
        second = make_driver(journal, recorder := Recorder(), clock=clock)
        assert second.replay() == len(journal.load("toy"))
        assert get_state(second) == get_state(first)
        assert recorder.effects == []
        second.post(Restarted())
        assert recorder.effects[-1] == Say("restarted")
        await feed(second, clock, after)
        await second.close()
        third = make_driver(journal, clock=clock)
        third.replay()
        assert get_state(third) == get_state(second)

    asyncio.run(live())


async def feed(driver: Driver[ToyEvent, ToyEffect], clock: FakeClock, steps: list[tuple[int, ToyEvent]]) -> None:
    for wait, event in steps:
        clock.time += wait
        driver.post(event)


def get_state(driver: Driver[ToyEvent, ToyEffect]) -> Any:
    assert driver.failed is None
    assert isinstance(driver.machine, Toy)
    return driver.machine.state


async def test_the_machine_is_told_what_a_replay_will_read(journal: Journal) -> None:
    """Handed a list where a tuple belongs, the live machine sees the tuple that the journal holds."""

    class Many(msgspec.Struct, frozen=True, array_like=True, tag="many"):
        items: tuple[int, ...]

    class Keeper(Toy):
        def handle(self, event: Any, now: int) -> list[ToyEffect]:
            self.log.append((repr(event), now))
            return []

    live, again = Keeper(), Keeper()
    for machine in (live, again):
        driver: Driver[Any, Any] = Driver(
            "many", machine, Recorder(), journal=journal, events=Many, restarted=None, clock=FakeClock()
        )
        if machine is live:
            driver.post(Many([1, 2]))  # type: ignore[arg-type]  # on purpose
        else:
            driver.replay()
        await driver.close()
    assert live.log == again.log == [(repr(Many((1, 2))), 1_000)]


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from chain.runtime.database import open_database
from chain.runtime.driver import Driver
from chain.runtime.journal import SCHEMA, Journal
from tests.support.toy import Added, FakeClock, Restarted, Toy, ToyEvent

def perform(effect):
    if "amount=7" in effect.text:
        print("performing", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    journal = Journal(open_database(Path(sys.argv[1]), kind="toy", version=1, schema=SCHEMA))
    driver = Driver("toy", Toy(), perform, journal=journal, events=ToyEvent, restarted=Restarted(), clock=FakeClock())
    await driver.start()
    driver.post(Added(7))
    print("survived")

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="platform: no SIGKILL")
def test_a_process_killed_inside_an_effect_leaves_the_event_stored(tmp_path: Path) -> None:
    path = tmp_path / "toy.db"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-9, "performing\n"), done.stderr
    connection = open_database(path, kind="toy", version=1, schema=SCHEMA)
    assert read_events(Journal(connection)) == [Restarted(), Added(7)]
    connection.close()


def test_the_system_clock_counts_milliseconds_since_1970() -> None:
    assert 1_700_000_000_000 < SystemClock().now() < 10_000_000_000_000
