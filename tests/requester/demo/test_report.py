"""What the demo tells: it calls each broken promise a problem, and names who paid whom."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from chain.rpc.schema import LeaseView, Supply
from requester.demo.report import Ending

LEASE = LeaseView(
    id="aa", order="bb", award="cc", requester="r", provider="p", auctioneer="b", state="settled", replica=0, first=0,
    count=1, price=100, commission_bps=100, locked=0, bond=0, paid=100, commission=1, refunded=0, burned=0, opened=1,
    deadline=2, timer=0, receipt="", served=1,
)  # fmt: skip
BEFORE = Supply(genesis=1_000, total=990, burned=10, accounts=990, bonds=0, locked=0)
AFTER = Supply(genesis=1_000, total=988, burned=12, accounts=988, bonds=0, locked=0)
BOUGHT = {
    "job": "bb",
    "provider": "p",
    "accuracy": 0.96,
    "held_out": 450,
    "segments": 1,
    "cost": 101,
    "cpu_ms": 5,
    "peak_bytes": 1 << 20,
    "bids": [{"provider": "q", "price": 120}, {"provider": "p", "price": 100}],
}
GOOD = Ending(
    seconds=1.0,
    bought=BOUGHT,
    lease=LEASE,
    names={"r": "requester", "p": "ada", "q": "bell", "b": "broker"},
    before={"requester": 500, "ada": 490},
    after={"requester": 399, "ada": 589},
    supply_before=BEFORE,
    supply_after=AFTER,
    verified=True,
    checks=[{"passed": True}, {"passed": True}],
    restarts=(),
)


def test_a_good_ending_has_no_problem_and_all_members() -> None:
    assert GOOD.problems == []
    told = GOOD.to_json()
    wanted = {"seconds", "jobs", "segments", "accuracy", "receipts", "receipts_verified"}
    assert wanted | {"credits_before", "credits_after", "credits_burned"} <= set(told)
    assert (told["credits_before"], told["credits_after"], told["credits_burned"]) == (990, 988, 2)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bought": BOUGHT | {"accuracy": 0.94}}, "accuracy 0.940 is below 0.95"),
        ({"verified": False}, "offline check"),
        ({"lease": msgspec.structs.replace(LEASE, state="expired")}, "the lease is expired"),
        ({"after": {"requester": 399, "ada": 590}}, "not conserved"),
        ({"supply_after": msgspec.structs.replace(AFTER, total=989)}, "not conserved"),
        ({"supply_before": msgspec.structs.replace(BEFORE, burned=11)}, "not conserved"),
    ],
)
def test_each_broken_promise_is_a_problem(changes: dict[str, object], problem: str) -> None:
    ending = replace(GOOD, **changes)  # type: ignore[arg-type]  # the table holds fields of several types
    assert any(problem in text for text in ending.problems)
    assert any(line.startswith("PROBLEM") for line in ending.to_lines())


def test_people_read_who_won_and_who_paid_whom() -> None:
    text = "\n".join(GOOD.to_lines())
    assert "ada        bid     0.0001 credits  won" in text
    assert "requester -> ada: 0.0001 credits for work" in text
    assert "requester -> broker: 0.000001 credits of commission" in text
    assert "2 of 2 checks passed" in text
