"""The market for scripts and notebooks: the same calls without `await`.

It keeps a loop of its own in a thread, so that it works where a loop is running already, as in a notebook.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from chain.base.errors import Refused
from chain.rpc.schema import AccountView
from requester.client.market import NO_HOOKS, AsyncMarket
from requester.client.news import Hooks
from requester.client.outcomes import JobResult
from requester.client.wishes import Wishes
from requester.store.jobs import JobRow

T = TypeVar("T")


class Market:
    """A market whose calls block. Make it by `connect`; close it, or use it as a context manager.

    An interrupted call leaves its job running; `result` takes it up again. A market that was never closed is
    closed once nobody uses it, at the latest when the program ends.
    """

    def __init__(self, market: AsyncMarket, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        self._market = market
        self._loop = loop
        self._shut = weakref.finalize(self, _close, market, loop, thread)

    @classmethod
    def connect(cls, *, passphrase: str | None = None, **settings: str | None) -> Self:
        """A market that answers; see `AsyncMarket.connect`."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="tally-market", daemon=True)
        thread.start()
        try:
            market = _wait(loop, _open(passphrase, settings))
        except BaseException:
            _stop(loop, thread)
            raise
        return cls(market, loop, thread)

    def close(self) -> None:
        """Close the market and end its thread. Further calls raise `Refused` under `market.closed`."""
        self._shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        wishes: Wishes | None = None,
        hooks: Hooks = NO_HOOKS,
        cap: str | float | None = None,
        **rest: Any,
    ) -> JobResult:
        """Run `function(*args, **rest)` on the market and return its result.

        Wishes among the keyword arguments, or together as `wishes`:

        - `cap`: the most the job may cost, in credits, commission included; the only one without a default
        - `memory`, `output`: limits of memory and result, in bytes or as "512MiB"
        - `wall`: how long the job may run, in seconds or as "10min"
        - `within`: how long after signing the work is done at the latest, which is the time it may wait
        - `auction`: how long to wait for bids if somebody is busy or silent
        - `acceptance`: how long after delivery your silence accepts
        - `cores`: cores of the job, a number
        - `packages`: names of the packages that the job imports
        - `level`: the weakest isolation that is good enough, "ns" or "ns+cgroup"
        - `seed`: seed of the job's random numbers
        - `title`: its name in `jobs`
        - `python`: the minor version it needs, this program's if none is named

        All other keyword arguments go to the function; one that needs such a name gets it by `functools.partial`.
        Raises `NoBid`, `JobFailed`, `CheckFailed`, `JobEnded`, `Refused`, `Unavailable`.
        """
        return self._do(self._market.run(function, *args, wishes=wishes, hooks=hooks, cap=cap, **rest))

    def run_script(
        self, path: str | Path, args: Sequence[str] = (), *, hooks: Hooks = NO_HOOKS, **wishes: Any
    ) -> JobResult:
        """Run a script on the market; see `AsyncMarket.run_script`."""
        return self._do(self._market.run_script(path, args, hooks=hooks, **wishes))

    def result(self, job: bytes | str, hooks: Hooks = NO_HOOKS) -> JobResult:
        """The result of a job by its id, or by the beginning of its id as text; waits for it."""
        return self._do(self._market.result(job, hooks))

    def cancel(self, job: bytes | str) -> str:
        """Stop a job by its id, or by the beginning of its id as text; see `AsyncMarket.cancel`."""
        return self._do(self._market.cancel(job))

    def jobs(self) -> list[JobRow]:
        """All jobs, newest first."""
        return self._market.list_jobs()

    def account(self) -> AccountView:
        """The own account on the chain."""
        return self._do(self._market.account())

    def _do(self, call: Coroutine[Any, Any, T]) -> T:
        if self._shut.alive:
            return _wait(self._loop, call)
        call.close()
        raise Refused("this market is closed; open another one by `connect`", rule="market.closed")


async def _open(passphrase: str | None, settings: dict[str, str | None]) -> AsyncMarket:
    return await AsyncMarket.connect(passphrase=passphrase, **settings)


def _close(market: AsyncMarket, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Close market, loop and thread. The loop's own thread, which may be collecting garbage, can't wait for itself."""
    if threading.current_thread() is thread:
        threading.Thread(target=_close, args=(market, loop, thread), name="tally-market-close").start()
        return
    _wait(loop, market.close())
    _stop(loop, thread)


def _wait(loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, T]) -> T:
    future = asyncio.run_coroutine_threadsafe(call, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
