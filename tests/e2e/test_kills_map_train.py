"""kill -9 of requester, provider and broker at twelve points of a `map` on two providers and of a `train`, and of the
chain's node at four: each segment is paid at most once, the job ends, no credit is lost or made, and nothing is left
behind."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from requester.demo.report import list_paid
from requester.demo.world import ProviderPlan
from tests.e2e.host import read_host
from tests.e2e.line import RECEIPT
from tests.e2e.market import Said, Shopper, Street, open_street, until

pytestmark = [pytest.mark.check, pytest.mark.timeout(300)]

TWO = (ProviderPlan("ada"), ProviderPlan("bell", 110))
COUNT = 10
WISHES = {"cap": 5, "wall": 5, "memory": "256MiB", "within": 300}

MAP = {
    "what": "map",
    # The second half takes longer, so that one of the two leases is over first.
    "items": [{"number": number, "pause": 0.15 if number < COUNT // 2 else 0.4} for number in range(COUNT)],
    "wishes": {**WISHES, "parallelism": 2},
}
TRAIN = {"what": "train", "steps": COUNT, "pause": 0.15, "wishes": WISHES}
ORDERS: dict[str, dict[str, Any]] = {"map": MAP, "train": TRAIN}
VALUES = {"map": [10 * number for number in range(COUNT)], "train": list(range(COUNT))}

PHASES = (
    "sent", "announced", "awarded", "running", "delivered", "accepted", "settled",
)  # fmt: skip
"""In their order; any but the last may be passed over."""

Holds = Callable[[list[Said]], bool]


def phase(name: str) -> Holds:
    """The job has reached this phase or a later one."""
    later = PHASES[PHASES.index(name) :]
    return lambda lines: any(line.get("phase") in later for line in lines if line["kind"] == "phase")


def told(count: int) -> Holds:
    """Providers say that so many segments are done."""

    def holds(lines: list[Said]) -> bool:
        done: dict[str, int] = {line["lease"]: line["done"] for line in lines if line["kind"] == "progress"}
        return sum(done.values()) >= count

    return holds


def here(count: int) -> Holds:
    """So many segments are verified and here."""
    return lambda lines: any(line["done"] >= count for line in lines if line["kind"] == "segments")


def lease(*states: str) -> Holds:
    """A lease of the job is in one of these states."""
    return lambda lines: any(line["phase"] in states for line in lines if line["kind"] == "lease")


POINTS: list[tuple[str, str, Holds]] = [
    ("requester", "sent", phase("sent")),
    ("requester", "first segment here", here(1)),
    ("requester", "last segment here", here(COUNT)),
    ("requester", "a lease settled", lease("settled")),
    ("ada", "awarded", phase("awarded")),
    ("ada", "first segment done", told(1)),
    ("ada", "half done", told(COUNT // 2)),
    ("ada", "delivered", lease("delivered", "settled")),
    ("broker", "awarded", phase("awarded")),
    ("broker", "half done", told(COUNT // 2)),
    ("broker", "last segment done", told(COUNT)),
    ("broker", "accepted", phase("accepted")),
    # A lease opens or is settled in the very moment; the node's store decides what was final.
    ("chain", "sent", phase("sent")),
    ("chain", "half done", told(COUNT // 2)),
    ("chain", "a lease delivered", lease("delivered", "settled")),
    ("chain", "last segment here", here(COUNT)),
]


@contextlib.asynccontextmanager
async def open_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lined: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Street, Path]]:
    """A street of two providers and a requester's home; at the end the host has to be as before, and no provider may
    keep a folder of a lease."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = read_host(temporary)
    async with open_street(tmp_path / "market", TWO, lined) as street:
        home = await street.world.add_requester("alice")
        yield street, home

        def is_tidy() -> bool:
            return not [path for plan in TWO for path in (tmp_path / "market" / plan.name / "leases").glob("*")]

        await until(is_tidy, "no folder of a lease is left")
    assert before.added(read_host(temporary)) == {}


async def check_paid(street: Street, job: bytes, count: int = COUNT) -> None:
    """Each segment paid exactly once."""
    leases = await street.over(job)
    assert sorted(index for one in leases for index in list_paid(one)) == list(range(count)), leases


@pytest.mark.parametrize("what", ["map", "train"])
@pytest.mark.parametrize(("who", "point", "holds"), POINTS, ids=[f"{who}, {point}" for who, point, _ in POINTS])
async def test_a_kill_costs_nobody_a_credit_and_no_segment_is_paid_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, who: str, point: str, holds: Holds
) -> None:
    async with open_clean(tmp_path, monkeypatch) as (street, home):
        shopper = await Shopper(home, ORDERS[what]).start()
        try:
            await shopper.reach(holds, point)
            job = shopper.job
            if who == "requester":
                await shopper.kill()
                await shopper.close()
                shopper = await Shopper(home, {"what": "resume", "job": job.hex()}).start()
            else:
                street.kill(who)
                await street.restarted(who)
            assert (await shopper.end()).get("value") == VALUES[what]
        finally:
            await shopper.close()
        await check_paid(street, job)


@pytest.mark.parametrize("what", ["map", "train"])
@pytest.mark.parametrize("who", ["ada", "broker"])
async def test_a_kill_between_a_prefix_and_its_storage_receipt_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, who: str
) -> None:
    async with open_clean(tmp_path, monkeypatch, lined=("ada",)) as (street, home):
        line = street.world.lines["ada"]
        line.held = RECEIPT
        shopper = await Shopper(home, ORDERS[what]).start()
        try:
            await until(line.cut.is_set, "a prefix is handed in")
            street.kill(who)
            line.held = None
            await street.restarted(who)
            assert (await shopper.end()).get("value") == VALUES[what]
        finally:
            await shopper.close()
        await check_paid(street, shopper.job)


@pytest.mark.parametrize("what", ["map", "train"])
async def test_another_provider_takes_over_from_one_that_is_gone_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async with open_clean(tmp_path, monkeypatch) as (street, home):
        shopper = await Shopper(home, ORDERS[what]).start()
        try:
            await shopper.reach(here(2), "two segments are here")
            await street.kill_for_good("ada")
            assert (await shopper.end()).get("value") == VALUES[what]
        finally:
            await shopper.close()
        await check_paid(street, shopper.job)
        await street.world.start_provider(TWO[0])  # years later it is back, and puts its things in order
        leases = await street.world.chain.leases(order=shopper.job)
        bell = street.world.accounts["bell"].hex()
        later = [one for one in leases if one.provider == bell and one.state == "settled"]
        if what == "train":
            [rest] = later
            assert rest.first > 0
            assert rest.first + rest.count == COUNT


async def test_the_broker_killed_while_it_auctions_a_gap_serves_it_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"number": number, "pause": 0.1, "fail": number == 1} for number in range(COUNT)]
    order = {"what": "map", "items": items, "wishes": {**WISHES, "parallelism": 1, "tolerance": 1}}
    async with open_clean(tmp_path, monkeypatch) as (street, home):
        shopper = await Shopper(home, order).start()

        def two_leases(lines: list[Said]) -> bool:
            return len({line["lease"] for line in lines if line["kind"] == "lease"}) > 1

        try:
            await shopper.reach(two_leases, "a later round is awarded")
            street.kill("broker")
            await street.restarted("broker")
            last = await shopper.end()
        finally:
            await shopper.close()
        assert last["kind"] == "value", last  # one failure is tolerated
        assert last["value"] == [None if number == 1 else 10 * number for number in range(COUNT)]
        await check_paid(street, shopper.job)
