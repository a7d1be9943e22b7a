"""Life cycle of a long-running part: runs until SIGINT or SIGTERM, then shuts down tidily; a second signal ends it at
once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable


def run_service(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run `main(stop)` and return the exit code 0 once it returned. `stop` is set by the first signal; `main` then
    closes what it opened and returns. Errors of `main` pass through.
    """
    asyncio.run(_run(main))
    return 0


async def _run(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        if sys.platform == "win32":
            signal.signal(number, lambda got, _frame: loop.call_soon_threadsafe(on_signal, got))
        else:
            loop.add_signal_handler(number, on_signal, number)
    await main(stop)
