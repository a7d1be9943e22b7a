"""What happens in the demo: two requesters buy three jobs, everybody is paid, and every claim is read back and checked.

The buyers are processes of their own; what they say is shown by a `Picture`, what counts is read from the chain and
from the case files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chain.base.errors import TallyError, Unavailable
from chain.runtime.processes import end_process
from requester.demo.beat import Beat
from requester.demo.picture import Picture
from requester.demo.report import CaseCheck, Ending, JobEnding
from requester.demo.screen import Screen, make_sayer
from requester.demo.supervisor import STOP_SECONDS, die_with_parent
from requester.demo.world import World, run_command

SEARCHER, TRAINER = "alice", "bob"

FRAME_SECONDS = 0.1
CHAIN_SECONDS = 0.5
"""How often the picture is drawn, and how often the chain is asked for its height."""

LINE_BYTES = 4 << 20
"""Longest line of a buyer: a confusion matrix, or metrics of a page of events."""


@dataclass
class Stage:
    """What a play needs: the market, where it is shown, and how many seconds a segment and a job may take."""

    world: World
    screen: Screen
    wall: float = 3
    within: float = 240

    def __post_init__(self) -> None:
        self.beat = Beat(self.screen)
        self.names: dict[str, str] = {}
        self.picture = Picture(self.names, time.monotonic())
        self.say: Callable[[str], None] = make_sayer(self.screen, self.picture.say)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.faults: list[str] = []


async def play(stage: Stage) -> Ending:
    """Buy everything in a started market, and read back what came of it. A job that cannot be bought is a fault of the
    ending, and what leans on it is left out.
    """
    world = stage.world
    stage.beat.tell(f"giving {SEARCHER} and {TRAINER} keys and credits")
    homes = {name: await world.add_requester(name) for name in (SEARCHER, TRAINER)}
    stage.names |= {key.hex(): name for name, key in world.accounts.items()}
    before, supply_before = await _read_balances(world), await world.chain.supply()
    with _show(stage):
        choice, judged = await _buy_all(stage, homes)
    orders = [(owner, line) for owner, line in stage.told if line["kind"] == "order"]
    async with stage.beat.running():
        stage.beat.tell("writing a case file of each job and verifying it offline")
        jobs = await asyncio.gather(*(_read_job(stage, homes, owner, line) for owner, line in orders))
    return Ending(
        seconds=time.monotonic() - stage.picture.started,
        jobs=[job for job in jobs if job is not None],
        choice=choice,
        judged=judged,
        names=stage.names,
        before=before,
        after=await _read_balances(world),
        supply_before=supply_before,
        supply_after=await world.chain.supply(),
        restarts=tuple(world.supervisor.restarts),
        faults=tuple(stage.faults),
    )


async def _buy_all(stage: Stage, homes: Mapping[str, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the first chose, what the second's network is worth); empty where it was not bought."""
    limits = ("--wall", str(stage.wall), "--within", str(stage.within))
    choice: dict[str, Any] = {}
    judged: dict[str, Any] = {}
    try:
        choice = await _run_buyer(stage, SEARCHER, homes[SEARCHER], ("search", *limits))
        setting = json.dumps(choice["setting"])
        judged = await _run_buyer(stage, TRAINER, homes[TRAINER], ("train", *limits, "--", setting))
    except Unavailable as error:
        stage.faults.append(error.message)
    return choice, judged


async def _run_buyer(stage: Stage, name: str, home: Path, words: Sequence[str]) -> dict[str, Any]:
    """Run a buyer to its end and return its last word. Raises `Unavailable` (`demo.buyer`) where it fails."""
    stage.beat.note(f"{name} starts and prepares what to buy")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "requester.demo.buyer", *words,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES,
        env={**os.environ, "TALLY_HOME": str(home)}, start_new_session=True,
        preexec_fn=die_with_parent,  # one prctl, and no thread of ours holds a lock it needs
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line: dict[str, Any] = {}
        async for data in process.stdout:
            line = json.loads(data)
            if line["kind"] in ("order", "signed", "book", "bought"):
                stage.told.append((name, line))
            for text in stage.picture.hear(name, line, time.monotonic()):
                stage.say(text)
            stage.beat.note(stage.picture.describe_last())
        if await process.wait() != 0 or line.get("kind") != "result":
            why = line.get("text") if line.get("kind") == "failed" else None
            raise Unavailable(f"{name}'s job was not bought: {why or 'the buyer died'}", rule="demo.buyer")
        return line
    finally:
        await end_process(process, STOP_SECONDS)


@contextlib.contextmanager
def _show(stage: Stage) -> Iterator[None]:
    """While inside, the chain's height is asked for, and a live screen is redrawn; another one shows signs of life."""

    async def ask() -> None:
        while True:
            with contextlib.suppress(TallyError):  # a node that restarts is back in a moment
                stage.picture.chain = await stage.world.chain.info()
            await asyncio.sleep(CHAIN_SECONDS)

    async def draw() -> None:
        while True:
            stage.screen.draw(stage.picture.draw(time.monotonic()))
            await asyncio.sleep(FRAME_SECONDS)

    tasks = [asyncio.ensure_future(work()) for work in ((ask, draw) if stage.screen.is_live else (stage.beat.run,))]
    try:
        yield
        stage.screen.draw(stage.picture.draw(time.monotonic()))
    finally:
        for task in tasks:
            task.cancel()
        stage.screen.leave()


# ---- what is read back ----


async def _read_balances(world: World) -> dict[str, int]:
    """Balance plus bond of each account, in micro-credits."""
    found = {}
    for name, key in world.accounts.items():
        account = await world.chain.account(key)
        found[name] = account.balance + account.bond
    return found


async def _read_job(stage: Stage, homes: Mapping[str, Path], owner: str, order: Mapping[str, Any]) -> JobEnding | None:
    """One job as chain and case file have it; None where it was not even signed."""
    name = order["name"]
    lines = {line["kind"]: line for _, line in stage.told if line["name"] == name}
    if "signed" not in lines:
        return None
    job = lines["signed"]["job"]
    nothing = {"cost": 0, "cpu_ms": 0, "peak_bytes": 0, "receipts": 0}
    return JobEnding(
        owner=owner,
        name=name,
        kind=order["job_kind"],
        job=job,
        segments=order["segments"],
        told=lines.get("bought", nothing),
        bids=lines["book"]["bids"] if "book" in lines else [],
        leases=sorted(
            await stage.world.chain.leases(order=bytes.fromhex(job)), key=lambda lease: (lease.first, lease.opened)
        ),
        case=await _check_case(stage.world, homes[owner], name, job),
    )


async def _check_case(world: World, home: Path, name: str, job: str) -> CaseCheck:
    """Write the job's case file, and check it as anyone could: with an empty home and nothing but the genesis file."""
    folder, empty = world.folder / "cases", world.folder / "nobody"
    folder.mkdir(exist_ok=True)
    empty.mkdir(exist_ok=True)
    path = folder / f"{name}.case"
    try:
        await run_command("tally", "--json", "case", job, "-o", str(path), "--outputs", "--inputs", home=home)
        words = ("--json", "verify", str(path), "--genesis", str(world.genesis))
        checked = json.loads(await run_command("tally", *words, home=empty, codes=(0, 1, 7)))
    except Unavailable as error:
        return CaseCheck(str(path), 0, False, 0, 0, error.message)
    rows = [row for row in checked.get("checks", ()) if not row["skipped"]]
    passed = sum(row["passed"] for row in rows)
    return CaseCheck(str(path), path.stat().st_size, checked.get("verified", False), passed, len(rows))
