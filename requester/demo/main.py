"""`tally demo`: starts a market, buys one job in it, and shows what the chain, the receipt and the result say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from chain.base.errors import TallyError, Unavailable
from chain.runtime.files import write_atomically
from chain.runtime.keystore import create_key
from chain.runtime.processes import end_process
from requester.client.texts import escape_line
from requester.demo.report import Ending
from requester.demo.supervisor import STOP_SECONDS, die_with_parent
from requester.demo.world import World, run_command

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main(as_json: bool, keep: bool, directory: Path | None) -> int:
    """Run the demo; returns the exit code: 0 if all went as promised, 1 if not, 3 if a part did not start, 130 after
    Ctrl-C.
    """
    try:
        return asyncio.run(_until_signal(_tell(as_json, keep, directory)))
    except asyncio.CancelledError:
        sys.stderr.write("interrupted; everything was stopped\n")
        return INTERRUPTED
    except TallyError as error:
        sys.stderr.write(f"{error}\n")
        return 3 if isinstance(error, Unavailable) else 1


async def _until_signal(work: Any) -> int:
    """Run `work`; the first SIGINT or SIGTERM cancels it, later ones change nothing, since it is already stopping."""
    task: asyncio.Task[int] = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: task.cancel() if not task.cancelling() else None)
    return await task


async def _tell(as_json: bool, keep: bool, directory: Path | None) -> int:
    def say(line: str) -> None:
        print(line, file=sys.stderr if as_json else sys.stdout, flush=True)  # the demo's own words

    started = time.monotonic()
    async with _open_world(directory, keep, say) as world:
        ending = await _play(world, say, started)
        if as_json:
            print(json.dumps(ending.to_json(), allow_nan=False), flush=True)  # noqa: T201  # for machines
        else:
            say("\n".join(ending.to_lines()))
        if keep:
            await _stay(world, say)
        return 1 if ending.problems else 0


@contextlib.asynccontextmanager
async def _open_world(directory: Path | None, keep: bool, say: Any) -> AsyncIterator[World]:
    """A world in `directory`, or in a temporary folder that goes when the demo ends."""
    folder = directory or Path(tempfile.mkdtemp(prefix="tally-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder.resolve(), say)

    async def leave() -> None:
        await world.close()
        if directory is None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    try:
        yield world
    finally:
        await _finish(leave())


async def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Do `work` to its end; a cancellation that comes meanwhile is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


async def _play(world: World, say: Any, started: float) -> Ending:
    say("starting one chain node, one broker and three providers …")
    await world.start()
    requester = create_key(world.folder / "requester" / "key.pem")
    await world.fund("requester", requester.key)
    _write_settings(world)
    say(f"chain      {world.chain_url}\nbroker     {world.broker_url}\nproviders  ada, bell, cray (dearer)")
    before, supply_before = await _read_balances(world), await world.chain.supply()
    bought = await _buy(world, say)
    lease = (await world.chain.leases(order=bytes.fromhex(bought["job"])))[0]
    checked = json.loads(await _verify(world, bought["job"]))
    return Ending(
        seconds=time.monotonic() - started,
        bought=bought,
        lease=lease,
        names={key.hex(): name for name, key in world.accounts.items()},
        before=before,
        after=await _read_balances(world),
        supply_before=supply_before,
        supply_after=await world.chain.supply(),
        verified=checked["verified"],
        checks=checked["checks"],
        restarts=tuple(world.supervisor.restarts),
    )


def _write_settings(world: World) -> None:
    folder = world.folder / "requester"
    lines = {"broker": world.broker_url, "chain": world.chain_url, "key": folder / "key.pem", "genesis": world.genesis}
    text = "".join(f'{name} = "{value}"\n' for name, value in lines.items())
    write_atomically(folder / "settings.toml", text.encode(), mode=0o600)


async def _read_balances(world: World) -> dict[str, int]:
    """Balance plus bond of each account, in micro-credits."""
    found = {}
    for name, key in world.accounts.items():
        account = await world.chain.account(key)
        found[name] = account.balance + account.bond
    return found


async def _buy(world: World, say: Any) -> dict[str, Any]:
    """Run the buyer and return its last word. Raises `Unavailable` (`demo.buyer`) where it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "requester.demo.buyer",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, limit=1 << 20,
        env={**os.environ, "TALLY_HOME": str(world.folder)}, start_new_session=True,
        preexec_fn=die_with_parent,  # one prctl, and no thread of ours holds a lock it needs
    )  # fmt: skip
    try:
        assert process.stdout is not None
        last: dict[str, Any] = {}
        async for line in process.stdout:
            last = json.loads(line)
            _show(last, say)
        if await process.wait() != 0 or last.get("kind") != "result":
            raise Unavailable(f"the job was not bought: {last.get('text', 'the buyer died')}", rule="demo.buyer")
        return last
    finally:
        await end_process(process, STOP_SECONDS)


def _show(news: dict[str, Any], say: Any) -> None:
    match news["kind"]:
        case "signed":
            say(f"job        {news['job']}")
        case "phase":
            say(f"           {news['phase']}")
        case "output":
            for line in news["text"].splitlines():
                say(f"         | {escape_line(line)}")
        case "trouble":
            say(f"           {escape_line(news['text'])}")
        case _:
            pass


async def _verify(world: World, job: str) -> str:
    """Check the receipt as anyone could: offline, with nothing but the genesis file and the papers of the job."""
    genesis = str(world.genesis)
    return await run_command("tally", "receipt", job, "--verify", "--genesis", genesis, "--json", home=world.folder)


async def _stay(world: World, say: Any) -> None:
    say(
        f"\neverything keeps running; stop it with Ctrl-C\n  chain   {world.chain_url}\n  broker  {world.broker_url}"
        f"\n  folder  {world.folder}\n  try     TALLY_HOME={world.folder} tally jobs"
    )
    with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C is how a kept market ends
        await asyncio.Event().wait()
