"""What goes wrong for a user on a real market: one clear message and the documented exit code each; the provider goes
on."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.market import Street, open_street

pytestmark = [pytest.mark.check, pytest.mark.timeout(300)]

TALLY = str(Path(sys.executable).with_name("tally"))


@dataclass(frozen=True)
class Mishap:
    """A script and flags of `tally run`, the exit code, and words that the message must hold."""

    name: str
    script: str
    flags: tuple[str, ...]
    code: int
    words: tuple[str, ...]


MISHAPS = (
    Mishap(
        "raises",
        "def f():\n    raise ValueError('no such mood')\nf()",
        (),
        5,
        ("ValueError: no such mood", "line 2, in f"),
    ),
    Mishap("memory", "x = bytearray(2_000_000_000)", ("--memory", "256MiB"), 5, ("oom", "256 MiB")),
    Mishap("time", "while True: pass", ("--wall", "1s"), 5, ("of 1 s",)),
    Mishap("carry", "result = {'model': [1, object()]}", (), 5, ("result['model'][1]", "object can't be carried")),
    Mishap("cap", "result = 1", ("--cap", "0.0001"), 6, ("lowest price at which someone would have bid is 0.00",)),
    Mishap("room", "result = 1", ("--memory", "900GiB"), 6, ("memory",)),
    Mishap("package", "import torch", ("--package", "torch"), 6, ("torch",)),
    Mishap("no-cap", "result = 1", ("--cap", ""), 1, ("units.credits",)),
    Mishap("escape", "raise SystemExit('\\x1b[2J')", (), 5, ("\\x1b[2J",)),
)


async def run_tally(street: Street, *arguments: str, home: Path | None = None) -> tuple[int, str, str]:
    folder = home or street.world.folder
    environment = {
        **os.environ,
        "TALLY_HOME": str(folder),
        "TALLY_BROKER": street.world.broker_url,
        "TALLY_CHAIN": street.world.chain_url,
    }
    process = await asyncio.create_subprocess_exec(
        TALLY, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
    )
    out, err = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_each_mishap_has_one_message_and_its_exit_code(tmp_path: Path) -> None:
    async with open_street(tmp_path) as street:
        pid = street.world.supervisor.running["ada"].pid
        for mishap in MISHAPS:
            script = tmp_path / "job.py"
            script.write_text(mishap.script)
            flags = mishap.flags if "--cap" in mishap.flags else (*mishap.flags, "--cap", "1")
            code, out, err = await run_tally(street, "run", str(script), *flags)
            assert code == mishap.code, f"{mishap.name}: {err}"
            assert all(word in err for word in mishap.words), f"{mishap.name}: {err}"
            assert out == ""
            assert "\x1b" not in err
            assert err.count("Traceback") <= 1
            assert len([line for line in err.splitlines() if line.startswith("tally: ")]) == 1, f"{mishap.name}: {err}"
        assert street.world.supervisor.running["ada"].pid == pid, "the provider was harmed"
        leases = await street.world.chain.leases(provider=street.world.accounts["ada"])
        paid = [lease for lease in leases if lease.state == "settled" and lease.paid > 0]
        assert len(paid) == len([mishap for mishap in MISHAPS if mishap.code == 5]), "a failed segment is paid"


async def test_accounts_and_keys(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text("result = 1")
    async with open_street(tmp_path / "market") as street:
        poor = tmp_path / "poor"
        code, _, err = await run_tally(street, "run", str(script), "--cap", "1", home=poor)
        assert (code, "tally wallet new" in err) == (1, True), err
        await run_tally(street, "wallet", "new", home=poor)
        code, _, err = await run_tally(street, "run", str(script), "--cap", "1", home=poor)
        assert (code, "does not know your account did:key:" in err) == (1, True), err
        code, out, err = await run_tally(street, "run", str(script), "--cap", "1", "--json", home=poor)
        assert (code, json.loads(out)["error"]["rule"]) == (1, "account.unknown"), err


@pytest.mark.parametrize("part", ["broker", "chain"])
async def test_a_part_that_is_not_running_is_named(tmp_path: Path, part: str) -> None:
    script = tmp_path / "job.py"
    script.write_text("result = 1")
    async with open_street(tmp_path / "market") as street:
        nowhere = {part: "http://127.0.0.1:9"}
        flags = [word for name, url in nowhere.items() for word in (f"--{name}", url)]
        code, _, err = await run_tally(street, *flags, "run", str(script), "--cap", "1")
        assert (code, "http://127.0.0.1:9" in err) == (3, True), err
