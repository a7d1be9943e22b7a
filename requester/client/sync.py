"""The market for scripts and notebooks: the same calls without `await`.

It keeps a loop of its own in a thread, so that it works where a loop is running already, as in a notebook.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from chain.rpc.schema import AccountView
from requester.client.market import NO_HOOKS, AsyncMarket
from requester.client.news import Hooks
from requester.client.outcomes import JobResult
from requester.client.wishes import Wishes
from requester.store.jobs import JobRow

T = TypeVar("T")


class Market:
    """A market whose calls block. Make it by `connect`; close it, or use it as a context manager.

    An interrupted call leaves its job running; `result` takes it up again.
    """

    def __init__(self, market: AsyncMarket, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        self._market = market
        self._loop = loop
        self._thread = thread

    @classmethod
    def connect(cls, *, passphrase: str | None = None, **settings: str | None) -> Self:
        """A market that answers; see `AsyncMarket.connect`."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="tally-market", daemon=True)
        thread.start()
        try:
            market = _wait(loop, AsyncMarket.connect(passphrase=passphrase, **settings))
        except BaseException:
            _stop(loop, thread)
            raise
        return cls(market, loop, thread)

    def close(self) -> None:
        """Close the market and end its thread."""
        if not self._loop.is_closed():
            _wait(self._loop, self._market.close())
            _stop(self._loop, self._thread)

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
        """Run a function on the market; see `AsyncMarket.run`."""
        return self._do(self._market.run(function, *args, wishes=wishes, hooks=hooks, cap=cap, **rest))

    def run_script(
        self, path: str | Path, args: Sequence[str] = (), *, hooks: Hooks = NO_HOOKS, **wishes: Any
    ) -> JobResult:
        """Run a script on the market; see `AsyncMarket.run_script`."""
        return self._do(self._market.run_script(path, args, hooks=hooks, **wishes))

    def result(self, job: str, hooks: Hooks = NO_HOOKS) -> JobResult:
        """The result of a job by (the beginning of) its id; waits for it."""
        return self._do(self._market.result(self._market.store.find(job).id, hooks))

    def cancel(self, job: str) -> str:
        """Stop a job; see `AsyncMarket.cancel`."""
        return self._do(self._market.cancel(self._market.store.find(job).id))

    def jobs(self) -> list[JobRow]:
        """All jobs, newest first."""
        return self._market.store.list_jobs()

    def account(self) -> AccountView:
        """The own account on the chain."""
        return self._do(self._market.account())

    def _do(self, call: Coroutine[Any, Any, T]) -> T:
        return _wait(self._loop, call)


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
