"""The market for scripts and notebooks: the same calls without `await`.

It keeps a loop of its own in a thread, so that it works where a loop is running already, as in a notebook.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from broker.protocol.api import ProviderView
from chain.base.errors import Refused
from chain.rpc.schema import AccountView
from requester.client.board import Progress
from requester.client.buying import Estimated
from requester.client.calls import Callee
from requester.client.connection import load_clients
from requester.client.handles import AsyncJobHandle
from requester.client.market import AsyncMarket
from requester.client.news import NO_HOOKS, Hooks
from requester.client.results import Finished, JobResult, MapResult, TrainResult
from requester.client.wishes import Wishes

T = TypeVar("T")
R = TypeVar("R", bound=Finished)


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
        """A market that answers; see `AsyncMarket.connect`.

            with Market.connect() as market:
                print(market.account().balance)

        Settings and errors are the same.
        """
        load_clients()
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

    # ---- buying ----

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

            done = market.run(max, [3, 1, 2], cap=1, memory="256MiB", wall="1min")
            print(done.value, done.credits)

        Wishes among the keyword arguments, or together as `wishes`:

        - `cap`: the most the job may cost, in credits, commission included; the only one without a default
        - `memory`, `output`: limits of memory and result of a segment, in bytes or as "512MiB"
        - `wall`: how long a segment may run, in seconds or as "10min"
        - `within`: how long after signing the work is done at the latest, which is the time it may wait
        - `auction`: how long to wait for bids if somebody is busy or silent
        - `acceptance`: how long after delivery your silence accepts
        - `cores`: cores of a segment, a number
        - `packages`: names of the packages that the job imports; pandas or pyarrow is added where an argument holds
          one of their tables, since only who has it can read that
        - `level`: the weakest isolation that is good enough, "ns" or "ns+cgroup"
        - `seed`: seed of the job's random numbers
        - `title`: its name in `jobs`
        - `python`: the minor version it needs, this program's if none is named
        - `parallelism`: of a `map`, among how many providers it is divided at a time at most
        - `tolerance`: of a `map`, how many of its items may fail without failing the job

        All other keyword arguments go to the function; one that needs such a name gets it by `functools.partial`.
        Arrays of 64 KiB and more in the value are read-only views of files in the store: copy what is to be changed.
        Raises `NoBid`, `JobFailed`, `CheckFailed`, `JobEnded`, `Refused`, `Unavailable`.
        """
        return self._do(self._market.run(function, *args, wishes=wishes, hooks=hooks, cap=cap, **rest))

    def run_script(
        self, path: str | Path, args: Sequence[Any] = (), *, hooks: Hooks = NO_HOOKS, **wishes: Any
    ) -> JobResult:
        """Run a script on the market; see `AsyncMarket.run_script`."""
        return self._do(self._market.run_script(path, args, hooks=hooks, **wishes))

    def run_folder(
        self, path: str | Path, args: Sequence[Any] = (), *, hooks: Hooks = NO_HOOKS, **wishes: Any
    ) -> JobResult:
        """Run a folder's `main.py` on the market; see `AsyncMarket.run_folder`."""
        return self._do(self._market.run_folder(path, args, hooks=hooks, **wishes))

    def map(
        self,
        function: Callee,
        items: Iterable[Any],
        *,
        partial: bool = False,
        copy: bool = False,
        wishes: Wishes | None = None,
        hooks: Hooks = NO_HOOKS,
        **rest: Any,
    ) -> MapResult:
        """Call `function(item)` for each item; see `AsyncMarket.map`.

            done = market.map(len, ["one", "three"], cap=1, wall=10)
            print(done.values)

        The default of `parallelism` is 4.
        """
        call = self._market.map(function, items, partial=partial, copy=copy, wishes=wishes, hooks=hooks, **rest)
        return self._do(call)

    def train(
        self,
        step: Callee,
        state: Any,
        steps: int,
        *,
        partial: bool = False,
        copy: bool = False,
        wishes: Wishes | None = None,
        hooks: Hooks = NO_HOOKS,
        **rest: Any,
    ) -> TrainResult:
        """Call `state = step(state, index)` so many times; see `AsyncMarket.train`.

            from requester import report

            def descend(x, index):
                x = x - 0.1 * 2 * x
                report(loss=x * x)
                return x

            done = market.train(descend, 3.0, 4, cap=1, wall=10)
            print(done.state, done.metrics[-1]["loss"])

        `report` sends metrics while the job runs.
        """
        call = self._market.train(step, state, steps, partial=partial, copy=copy, wishes=wishes, hooks=hooks, **rest)
        return self._do(call)

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        wishes: Wishes | None = None,
        hooks: Hooks = NO_HOOKS,
        cap: str | float | None = None,
        **rest: Any,
    ) -> JobHandle[JobResult]:
        """As `run`, but returns at once.

            handle = market.submit(sum, [1, 2, 3], cap=1)
            print(handle.id[:16], handle.result().value)

        The job goes on whether or not anybody asks for its result.
        """
        return self._hand(self._market.submit(function, *args, wishes=wishes, hooks=hooks, cap=cap, **rest))

    def submit_source(
        self, path: str | Path, args: Sequence[Any] = (), *, hooks: Hooks = NO_HOOKS, **wishes: Any
    ) -> JobHandle[JobResult]:
        """As `run_script` or `run_folder`, but returns at once."""
        return self._hand(self._market.submit_source(path, args, hooks=hooks, **wishes))

    def submit_map(
        self,
        function: Callee,
        items: Iterable[Any],
        *,
        wishes: Wishes | None = None,
        hooks: Hooks = NO_HOOKS,
        **rest: Any,
    ) -> JobHandle[MapResult]:
        """As `map`, but returns at once.

            handle = market.submit_map(abs, [-1, 2, -3], cap=1, wall=10)
            for index, value in handle.results():
                print(index, value)

        Values come in the order in which they are done.
        """
        return self._hand(self._market.submit_map(function, items, wishes=wishes, hooks=hooks, **rest))

    def submit_train(
        self,
        step: Callee,
        state: Any,
        steps: int,
        *,
        wishes: Wishes | None = None,
        hooks: Hooks = NO_HOOKS,
        **rest: Any,
    ) -> JobHandle[TrainResult]:
        """As `train`, but returns at once."""
        return self._hand(self._market.submit_train(step, state, steps, wishes=wishes, hooks=hooks, **rest))

    def estimate(
        self,
        function: Callee,
        *args: Any,
        items: Iterable[Any] | None = None,
        state: Any = None,
        steps: int | None = None,
        wishes: Wishes | None = None,
        **rest: Any,
    ) -> Estimated:
        """What a job would meet on the market just now; see `AsyncMarket.estimate`.

            found = market.estimate(abs, items=[-1, 2, -3], wall=10)
            print(found.matching, found.providers)

        Nothing is signed, and no cap is needed.
        """
        call = self._market.estimate(function, *args, items=items, state=state, steps=steps, wishes=wishes, **rest)
        return self._do(call)

    # ---- looking ----

    def result(self, job: bytes | str, hooks: Hooks = NO_HOOKS, *, partial: bool = False, copy: bool = False) -> Any:
        """The result of a job by its id, or by the beginning of its id as text; waits for it."""
        return self._do(self._market.result(job, hooks, partial=partial, copy=copy))

    def cancel(self, job: bytes | str) -> str:
        """Stop a job by its id, or by the beginning of its id as text; see `AsyncMarket.cancel`."""
        return self._do(self._market.cancel(job))

    def job(self, job: bytes | str) -> JobHandle[Any]:
        """The handle of a job by its id, or by the beginning of its id as text."""
        return JobHandle(self, self._do(_call(lambda: self._market.job(job))))

    def jobs(self) -> list[JobHandle[Any]]:
        """Handles of all jobs, newest first."""
        return [JobHandle(self, handle) for handle in self._do(_call(self._market.jobs))]

    def providers(self) -> list[ProviderView]:
        """The providers that offer themselves just now.

            for provider in market.providers():
                print(provider.key[:16], provider.pythons, provider.slots)

        Their bids may differ from their list prices.
        """
        return self._do(self._market.providers())

    def account(self) -> AccountView:
        """The own account on the chain."""
        return self._do(self._market.account())

    def _hand(self, call: Coroutine[Any, Any, AsyncJobHandle[R]]) -> JobHandle[R]:
        return JobHandle(self, self._do(call))

    def _do(self, call: Coroutine[Any, Any, T]) -> T:
        if self._shut.alive:
            return _wait(self._loop, call)
        call.close()
        raise Refused("this market is closed; open another one by `connect`", rule="market.closed")


class JobHandle(Generic[R]):
    """One job of a `Market`; see `AsyncJobHandle`. It goes on whether or not anybody holds its handle."""

    def __init__(self, market: Market, handle: AsyncJobHandle[R]) -> None:
        self.id = handle.id
        self._market = market
        self._handle = handle

    def __repr__(self) -> str:
        return f"<job {self.id[:16]}>"

    @property
    def phase(self) -> str:
        """Where it stands (`requester.purchase.phases.Phase`)."""
        return self._ask(lambda: self._handle.phase)

    @property
    def title(self) -> str:
        """What it is called."""
        return self._ask(lambda: self._handle.title)

    @property
    def signed(self) -> int:
        """When its order was signed, an Instant."""
        return self._ask(lambda: self._handle.signed)

    @property
    def is_over(self) -> bool:
        """Whether waiting longer changes nothing."""
        return self._ask(lambda: self._handle.is_over)

    @property
    def cost(self) -> int:
        """What it costs so far in micro-credits: verified segments at their price, commission included."""
        return self._ask(lambda: self._handle.cost)

    def result(self, *, partial: bool = False, copy: bool = False) -> R:
        """Wait for the job and give its result. Raises as `Market.map`."""
        return self._do(self._handle.result(partial=partial, copy=copy))

    def results(self, *, partial: bool = False, copy: bool = False) -> Iterator[tuple[int, Any]]:
        """(index, value) of each segment as soon as it is verified; see `AsyncJobHandle.results`."""
        return self._iterate(lambda: self._handle.results(partial=partial, copy=copy))

    def metrics(self) -> list[dict[str, Any]]:
        """What the job has reported so far, each report a dict with its `segment`. The job's own word."""
        return self._ask(self._handle.metrics)

    def progress(self) -> Progress:
        """How far it is, and its leases."""
        return self._ask(self._handle.progress)

    def cancel(self) -> str:
        """Stop it; see `AsyncMarket.cancel`."""
        return self._do(self._handle.cancel())

    def logs(self) -> Iterator[bytes]:
        """What it wrote, as it comes, until it is over. Hostile text."""
        return self._iterate(self._handle.logs)

    def _do(self, call: Coroutine[Any, Any, T]) -> T:
        return self._market._do(call)  # noqa: SLF001  # a handle is a part of its market

    def _ask(self, look: Callable[[], T]) -> T:
        """In the loop's thread, where what is looked at changes."""
        return self._do(_call(look))

    def _iterate(self, start: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        async def follow(found: AsyncIterator[T]) -> T:
            return await anext(found)

        found = self._ask(start)
        while True:
            try:
                yield self._do(follow(found))
            except StopAsyncIteration:
                return


async def _call(look: Callable[[], T]) -> T:
    return look()


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
