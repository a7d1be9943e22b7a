"""`tally demo`: starts a market, lets two requesters buy three jobs in it, and shows what the chain, the case files and
the results say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from chain.base.errors import Refused, TallyError, Unavailable
from requester.demo.beat import Beat
from requester.demo.play import TRAINER, Stage, play
from requester.demo.screen import Screen
from requester.demo.world import World

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

    def stop() -> None:
        if not task.cancelling():
            sys.stderr.write("\nstopping everything; this takes a moment\n")
            sys.stderr.flush()
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return await task


async def _tell(as_json: bool, keep: bool, directory: Path | None) -> int:
    out = sys.stderr if as_json else sys.stdout
    screen = Screen(out, is_live=out.isatty())
    started = time.monotonic()
    check_folder(directory)
    async with _open_world(directory, keep, screen.say) as world:
        beat = Beat(screen)
        async with beat.running():
            await world.start(tell=beat.tell)
        screen.say(f"chain      {world.chain_url}\nbroker     {world.broker_url}\nproviders  ada, bell, cray (dearer)")
        ending = await play(Stage(world, screen))
        ending = replace(ending, seconds=time.monotonic() - started, is_kept=directory is not None)
        if as_json:
            told = ending.to_json(has_files=keep or directory is not None)
            print(json.dumps(told, allow_nan=False), flush=True)  # noqa: T201  # for machines
        else:
            screen.say("\n".join(ending.to_lines()))
        if keep:
            await _stay(world, screen.say, is_kept=directory is not None)
    if keep:
        rest = "was removed" if directory is None else "stays"
        screen.say(f"everything was stopped; the folder {world.folder} {rest}")
    return 1 if ending.problems else 0


def check_folder(directory: Path | None) -> None:
    """Raise `Refused` under `demo.folder` for a folder with a market in it, before anything is started."""
    if directory is not None and (directory / "chain" / "genesis.json").exists():
        message = f"--directory {directory} holds a market already; name another folder, or remove this one first"
        raise Refused(message, rule="demo.folder")


@contextlib.asynccontextmanager
async def _open_world(directory: Path | None, keep: bool, say: Callable[[str], None]) -> AsyncIterator[World]:
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


async def _stay(world: World, say: Callable[[str], None], *, is_kept: bool) -> None:
    rest = "the folder stays" if is_kept else "removes the folder (--directory FOLDER keeps one)"
    say(
        f"\neverything keeps running; Ctrl-C stops it, and {rest}\n  chain   {world.chain_url}"
        f"\n  broker  {world.broker_url}\n  folder  {world.folder}"
        f"\n  genesis {world.genesis}"
        f"\n  try     TALLY_HOME={world.folder / TRAINER} tally jobs"
    )
    with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C is how a kept market ends
        await asyncio.Event().wait()
