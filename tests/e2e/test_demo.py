"""`tally demo` as a user runs it: a paid job, verified and conserved, and a host that is as before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.host import read_host

TALLY = str(Path(sys.executable).with_name("tally"))


def test_the_demo_pays_for_a_verified_job_and_conserves_every_credit(tmp_path: Path) -> None:
    before, environment = read_host(tmp_path), {**os.environ, "TMPDIR": str(tmp_path)}
    command = [TALLY, "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["accuracy"] >= 0.95
    assert (told["jobs"], told["segments"]) == (1, 1)
    assert told["receipts"] == told["receipts_verified"] == 1
    assert told["credits_before"] == told["credits_after"] + told["credits_burned"]
    assert told["credits_burned"] > 0
    assert len(told["bids"]) == 3
    assert told["restarts"] == []
    changes = {name: told["balances_after"][name] - told["balances_before"][name] for name in told["balances_before"]}
    assert sum(changes.values()) == -told["credits_burned"]
    assert changes["requester"] == -told["paid"] - told["commission"]
    assert told["paid"] == min(bid["price"] for bid in told["bids"])
    assert before.added(read_host(tmp_path)) == {}


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
