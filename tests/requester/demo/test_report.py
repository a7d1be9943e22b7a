"""What the demo tells: it calls each broken promise a problem, and names who paid whom."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from chain.rpc.schema import LeaseView, Supply
from requester.demo.report import GONE, CaseCheck, Ending, JobEnding, describe_segments, list_paid

LEASE = LeaseView(
    id="aa", order="bb", award="cc", requester="r", provider="p", auctioneer="b", state="settled", replica=0, first=0,
    count=18, price=1800, commission_bps=100, locked=0, bond=0, paid=1800, commission=18, refunded=0, burned=0,
    opened=1, deadline=2, timer=0, receipt="", served=18, held=0, cause="ok", called=0, damages=0, start="",
)  # fmt: skip
OTHER = msgspec.structs.replace(LEASE, id="ab", provider="q", first=18)
TRAIN = msgspec.structs.replace(LEASE, id="ac", count=30, served=30, price=3000, paid=3000, commission=30)
JUDGE = msgspec.structs.replace(LEASE, id="ad", count=1, served=1, price=100, paid=100, commission=1)
BEFORE = Supply(genesis=1_000, total=990, burned=10, accounts=990, bonds=0, locked=0)
AFTER = Supply(genesis=1_000, total=988, burned=12, accounts=988, bonds=0, locked=0)
CASE = CaseCheck("x.case", 100, True, 60, 60)
TOLD = {"cost": 101, "cpu_ms": 5, "peak_bytes": 1 << 20, "receipts": 2}
BIDS = [{"round": 0, "provider": "q", "price": 120}, {"round": 0, "provider": "p", "price": 100}]


def make_job(name: str, kind: str, segments: int, *leases: LeaseView) -> JobEnding:
    return JobEnding("alice", name, kind, f"{name}-id", segments, TOLD, BIDS, leases, CASE)


SEARCH = make_job("search", "map", 36, LEASE, OTHER)
JOBS = (SEARCH, make_job("train", "train", 30, TRAIN), make_job("judge", "run", 1, JUDGE))
JUDGED = {"accuracy": 0.96, "held_out": 450, "loss": [2.0, 1.0, 0.5], "confusion": [[10, 0], [1, 9]]}
GOOD = Ending(
    seconds=1.0,
    jobs=JOBS,
    choice={"setting": {"hidden": 32, "rate": 0.1}, "score": 0.955},
    judged=JUDGED,
    names={"r": "alice", "p": "ada", "q": "bell", "b": "broker"},
    before={"alice": 500, "ada": 490},
    after={"alice": 399, "ada": 589},
    supply_before=BEFORE,
    supply_after=AFTER,
)


def test_a_good_ending_has_no_problem_and_all_members() -> None:
    assert GOOD.problems == []
    told = GOOD.to_json()
    wanted = {"seconds", "jobs", "segments", "accuracy", "case_files", "verified", "loss", "confusion", "payments"}
    assert wanted | {"credits_before", "credits_after", "credits_burned", "conserved", "problems"} <= set(told)
    assert (told["credits_before"], told["credits_after"], told["credits_burned"]) == (990, 988, 2)
    assert (told["jobs"], told["segments"], told["receipts"], told["verified"]) == (3, 67, 6, True)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert {case["file"] for case in told["case_files"]} == {"x.case"}
    gone = GOOD.to_json(has_files=False)["case_files"]
    assert [(case["file"], case["size"], case["verified"]) for case in gone] == [(None, 100, True)] * 3


def change_job(**changes: Any) -> dict[str, Any]:
    return {"jobs": (replace(SEARCH, **changes), *JOBS[1:])}


def change_lease(**changes: Any) -> dict[str, Any]:
    return change_job(leases=(msgspec.structs.replace(LEASE, **changes), OTHER))


BROKEN = [
    ({"judged": JUDGED | {"accuracy": 0.94}}, "accuracy 0.940 is below 0.95"),
    ({"judged": {}}, "accuracy 0.000 is below 0.95"),
    ({"jobs": JOBS[:2]}, "2 jobs were bought"),
    ({"jobs": JOBS[1:]}, "31 segments were paid for, not 57"),
    (change_job(case=replace(CASE, verified=False, passed=59)), "search: its case file did not pass its checks: 59 of"),
    (change_job(case=CaseCheck("", 0, False, 0, 0, "no such job")), "checks: no such job"),
    (
        change_lease(state="expired", served=0),
        "search: segments [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,",
    ),
    (change_lease(state="expired", served=0), "search: ada's lease of segments 0..17 is expired"),
    (change_lease(served=17), "search: ada's lease of segments 17..17 is settled"),
    (change_lease(served=17), "search: segments [17] were not paid for"),
    (change_lease(first=1), "segments [18] were paid for twice"),
    (change_lease(state="open", locked=5), "search: a lease is still open"),
    ({"after": {"alice": 399, "ada": 590}}, "not conserved"),
    ({"supply_after": msgspec.structs.replace(AFTER, total=989)}, "not conserved"),
    ({"supply_before": msgspec.structs.replace(BEFORE, burned=11)}, "not conserved"),
    ({"supply_after": msgspec.structs.replace(AFTER, locked=7)}, "0.000007 credits are still locked"),
    ({"faults": ("alice's job was not bought: no bid",)}, "alice's job was not bought: no bid"),
]


@pytest.mark.parametrize(("changes", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_each_broken_promise_is_a_problem(changes: dict[str, Any], problem: str) -> None:
    ending = replace(GOOD, **changes)
    assert any(problem in text for text in ending.problems)
    assert any(line.startswith("PROBLEM") and problem in line for line in ending.to_lines())
    assert ending.to_json()["problems"] == ending.problems


@pytest.mark.parametrize("state", ["open", "expired", "slashed", "returned", "delivered"])
def test_only_a_settled_lease_was_paid_for_segments(state: str) -> None:
    assert list(list_paid(LEASE)) == list(range(18))
    assert list(list_paid(msgspec.structs.replace(LEASE, state=state))) == []


def test_a_lease_that_another_provider_took_over_from_is_no_problem() -> None:
    left = msgspec.structs.replace(TRAIN, served=12, paid=1200)
    rest = msgspec.structs.replace(TRAIN, id="ae", provider="q", first=12, count=18, served=18, paid=1800)
    gone = msgspec.structs.replace(TRAIN, id="af", state="expired", served=0, paid=0)
    assert make_job("train", "train", 30, left, rest, gone).problems == []
    taken_over = replace(GOOD, jobs=(SEARCH, make_job("train", "train", 30, left, rest, gone), JOBS[2]))
    assert taken_over.problems == []
    assert describe_segments([0, 0, 2], 4) == "segments [1, 3] were not paid for; segments [0] were paid for twice"


def test_people_read_who_won_who_paid_whom_and_what_was_learned() -> None:
    text = "\n".join(GOOD.to_lines())
    assert "ada      bid     0.0001 credits  won" in text
    assert "bell     bid    0.00012 credits  won" in text
    assert "search   alice    ada          0..17     0.0018     0.0018   0.000018  settled" in text
    assert "search   alice    bell        18..35     0.0018     0.0018   0.000018  settled" in text
    assert "chosen     hidden 32, rate 0.1: 95.5%" in text
    assert "loss by epoch" in text
    assert "accuracy   96.0% on 450 digits" in text
    assert "verified offline, 60 of 60 checks passed: x.case" in text


def test_payments_name_every_lease_with_its_segments() -> None:
    rows = GOOD.list_payments()
    assert [(row["payer"], row["earner"], row["segments"], row["paid"]) for row in rows] == [
        ("alice", "ada", 18, 1800),
        ("alice", "bell", 18, 1800),
        ("alice", "ada", 30, 3000),
        ("alice", "ada", 1, 100),
    ]


def test_a_demo_that_bought_nothing_tells_so_in_full() -> None:
    ending = replace(GOOD, jobs=(), choice={}, judged={}, faults=("the buyer died",))
    assert ending.problems[0] == "the buyer died"
    assert ending.to_json()["verified"] is False
    assert "PROBLEM    the buyer died" in ending.to_lines()


def test_case_files_that_go_with_the_demo_are_said_to() -> None:
    assert GONE not in GOOD.to_lines()
    lines = replace(GOOD, is_kept=False).to_lines()
    last = max(index for index, line in enumerate(lines) if line.startswith("case "))
    assert lines[last + 1] == GONE
    assert "--directory FOLDER keeps them" in GONE
