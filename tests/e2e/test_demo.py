"""`tally demo` as a user runs it: three paid jobs, verified and conserved, and a host that is as before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.host import read_host

TALLY = str(Path(sys.executable).with_name("tally"))


@pytest.mark.timeout(300)
def test_the_demo_pays_for_three_verified_jobs_and_conserves_every_credit(tmp_path: Path) -> None:
    before, environment = read_host(tmp_path), {**os.environ, "TMPDIR": str(tmp_path)}
    command = [TALLY, "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["problems"] == []
    assert told["accuracy"] >= 0.95
    assert [(job["kind"], job["segments"]) for job in told["bought"]] == [("map", 36), ("train", 30), ("run", 1)]
    assert (told["jobs"], told["segments"], told["receipts"]) == (3, 67, 4)
    assert told["verified"]
    assert all(case["verified"] and case["passed"] == case["checks"] > 60 for case in told["case_files"])
    check_money(told)
    assert [len(job["bids"]) for job in told["bought"]] == [3, 3, 3]
    assert len(told["loss"]) == 30
    assert told["loss"][-1] < told["loss"][0] / 10
    assert sum(sum(row) for row in told["confusion"]) == 450
    assert told["restarts"] == []
    assert before.added(read_host(tmp_path)) == {}


def check_money(told: dict[str, object]) -> None:
    """Every credit is somewhere, and everybody got what the payments say."""
    before, after, payments = told["balances_before"], told["balances_after"], told["payments"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert isinstance(payments, list)
    changes = {name: after[name] - before[name] for name in before}
    assert told["conserved"]
    assert sum(changes.values()) == -told["credits_burned"] < 0  # type: ignore[operator]  # it is an int
    for buyer in ("alice", "bob"):
        spent = sum(row["paid"] + row["commission"] for row in payments if row["payer"] == buyer)
        assert changes[buyer] == -spent < 0
    for row in payments:
        assert row["state"] == "settled"
        assert row["paid"] == row["price"]
    assert {row["earner"] for row in payments if row["job"] == "search"} == {"ada", "bell"}
    assert changes["cray"] == 0


def test_the_demo_fails_when_a_part_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "chain").write_text("a file where the chain's folder should be")
    command = [TALLY, "demo", "--json", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "tally-chain" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["tally", "tally-chain", "tally-broker", "tally-provider"])
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_every_command_introduces_itself(command: str, flag: str) -> None:
    program = str(Path(sys.executable).with_name(command))
    done = subprocess.run([program, flag], capture_output=True, text=True, timeout=60, check=False, env={**os.environ})
    assert done.returncode == 0
    assert "0.1.0" in done.stdout if flag == "--version" else "xamples" in done.stdout
