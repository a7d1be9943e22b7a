"""The play among doubles: what a buyer that fails, dies or babbles leads to, and what is read back from the chain and
from the commands."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chain.base.errors import Unavailable
from chain.rpc.schema import Supply
from requester.demo import play as module
from requester.demo.play import Stage, play
from requester.demo.screen import Screen
from requester.demo.world import World
from tests.requester.demo.test_report import JUDGE, LEASE, OTHER, TRAIN

SUPPLY = Supply(genesis=1_000, total=1_000, burned=0, accounts=1_000, bonds=0, locked=0)
JOBS = {
    "search": ("map", 36, "aa", (LEASE, OTHER)),
    "train": ("train", 30, "bb", (TRAIN,)),
    "judge": ("run", 1, "cc", (JUDGE,)),
}
SETTING = {"hidden": 32}


class Chain:
    async def account(self, key: bytes) -> Any:
        return SimpleNamespace(balance=key[0], bond=1)

    async def supply(self) -> Supply:
        return SUPPLY

    async def leases(self, order: bytes) -> Any:
        return [lease for _, _, job, leases in JOBS.values() if job == order.hex() for lease in leases][::-1]


class Market:
    """As much of a world as a play asks for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.genesis = folder, folder / "genesis.json"
        self.chain = Chain()
        self.accounts = {"ada": b"\x07"}
        self.supervisor = SimpleNamespace(restarts=["ada"])

    async def add_requester(self, name: str) -> Path:
        self.accounts[name] = name.encode()
        return self.folder / name


def list_lines(*names: str) -> list[dict[str, Any]]:
    """What a buyer says of these jobs."""
    lines: list[dict[str, Any]] = []
    for name in names:
        kind, segments, job, leases = JOBS[name]
        told = {"cost": 5, "cpu_ms": 1, "peak_bytes": 2, "receipts": len(leases), "settled": True, "providers": {}}
        lines += [
            {"kind": "order", "name": name, "job_kind": kind, "segments": segments},
            {"kind": "signed", "name": name, "job": job},
            {"kind": "phase", "name": name, "job": job, "phase": "settled"},
            {"kind": "book", "name": name, "bids": [{"round": 0, "provider": "p", "price": 100}]},
            {"kind": "bought", "name": name, "job": job, **told},
        ]
    return lines


SEARCHED = [*list_lines("search"), {"kind": "result", "setting": SETTING, "score": 0.96}]
TRAINED = [*list_lines("train", "judge"), {"kind": "result", "accuracy": 0.97, "held_out": 450}]
CHECKS = [{"passed": True, "skipped": False}] * 5 + [{"passed": False, "skipped": True}]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage whose buyers print what stands in a file of their name, and end with the code that stands there."""
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called\ncat {tmp_path}/$3.out\nexit $(cat {tmp_path}/$3.code)\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    async def run_command(command: str, *words: str, home: Path, codes: Any = (0,)) -> str:
        if "case" in words:
            Path(words[words.index("-o") + 1]).write_bytes(b"case")
            return "{}"
        assert list(home.iterdir()) == []
        return json.dumps({"verified": True, "checks": CHECKS})

    monkeypatch.setattr(module, "run_command", run_command)
    put(tmp_path, "search", SEARCHED)
    put(tmp_path, "train", TRAINED)
    return Stage(cast(World, Market(tmp_path)), Screen(io.StringIO(), is_live=False))


def put(folder: Path, name: str, lines: list[dict[str, Any]], code: int = 0) -> None:
    (folder / f"{name}.out").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / f"{name}.code").write_text(str(code))


async def test_three_jobs_are_bought_and_read_back(stage: Stage, tmp_path: Path) -> None:
    ending = await play(stage)
    assert ending.problems == []
    assert [(job.owner, job.name, job.job, job.segments) for job in ending.jobs] == [
        ("alice", "search", "aa", 36), ("bob", "train", "bb", 30), ("bob", "judge", "cc", 1),
    ]  # fmt: skip
    assert [lease.first for lease in ending.jobs[0].leases] == [0, 18]
    assert ending.jobs[0].case.size == 4
    assert (ending.jobs[0].case.passed, ending.jobs[0].case.checks) == (5, 5)
    assert ending.before["ada"] == 8
    assert ending.restarts == ("ada",)


async def test_the_second_buyer_trains_with_what_the_first_chose(stage: Stage, tmp_path: Path) -> None:
    await play(stage)
    first, second = (tmp_path / "called").read_text().splitlines()
    assert first.split()[:3] == ["-m", "requester.demo.buyer", "search"]
    assert second.split()[:3] == ["-m", "requester.demo.buyer", "train"]
    assert json.loads(second.partition(" -- ")[2]) == SETTING


FAILED = {"kind": "failed", "text": "no bid", "rule": "auction.unmatched"}
MISHAPS = [
    ("search", [FAILED], 1, "alice's job was not bought: no bid", 0),
    ("search", [], 9, "alice's job was not bought: the buyer died", 0),
    ("search", SEARCHED[:-1], 0, "alice's job was not bought: the buyer died", 1),
    ("search", [*SEARCHED[:1], FAILED], 1, "alice's job was not bought: no bid", 0),
    ("train", [*TRAINED[:5], FAILED], 1, "bob's job was not bought: no bid", 2),
    ("train", TRAINED, 1, "bob's job was not bought: the buyer died", 3),
]


@pytest.mark.parametrize(("who", "lines", "code", "problem", "jobs"), MISHAPS)
async def test_a_buyer_without_a_result_is_a_problem_and_what_was_bought_is_told(
    stage: Stage, tmp_path: Path, who: str, lines: list[dict[str, Any]], code: int, problem: str, jobs: int
) -> None:
    put(tmp_path, who, lines, code)
    ending = await play(stage)
    assert ending.problems[0] == problem
    assert len(ending.jobs) == jobs
    assert ending.to_json()["problems"] == ending.problems


async def test_a_case_that_cannot_be_written_is_a_problem(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_command(*_words: str, **_settings: Any) -> str:
        raise Unavailable("tally --json failed (exit 4): no such job", rule="demo.part")

    monkeypatch.setattr(module, "run_command", run_command)
    ending = await play(stage)
    assert [job.case.verified for job in ending.jobs] == [False] * 3
    assert any("no such job" in problem for problem in ending.problems)


async def test_what_the_buyers_say_is_shown_line_by_line(stage: Stage) -> None:
    out = io.StringIO()
    await play(Stage(stage.world, Screen(out, is_live=False)))
    assert "search   settled\n" in out.getvalue()
    assert "giving alice and bob keys and credits …\n" in out.getvalue()
    assert "writing a case file of each job and verifying it offline …\n" in out.getvalue()
    assert "search   36 segment(s): ; 0.000005 credits\n" in out.getvalue()
