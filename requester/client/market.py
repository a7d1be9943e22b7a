"""The market as an asyncio API: run, map and train, submit and follow; jobs of earlier programs are taken up again.

The signed order is on disk before it is sent. Not here: what to do at each event (`requester.purchase`), words for
terminals (`requester.cli`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from chain.base.errors import Refused
from requester.client.buying import Estimated
from requester.client.calls import Callee, make_call, make_calls, make_steps
from requester.client.following import Following
from requester.client.handles import AsyncJobHandle
from requester.client.news import NO_HOOKS, Hooks
from requester.client.opening import Opening
from requester.client.packing import Work, make_run, pack_source
from requester.client.results import JobResult, MapResult, TrainResult
from requester.client.settings import load_requester_settings, open_wallet
from requester.client.wishes import Wishes, split_wishes, take_wishes


class AsyncMarket(Following):
    """One requester at one broker and one chain. Make it by `connect`; close it, or use it as a context manager."""

    @classmethod
    def connect(cls, *, passphrase: str | None = None, **settings: str | None) -> Opening[Self]:
        """A market that answers. `settings` are those of `RequesterSettings`: broker, chain, key, genesis.

            async with AsyncMarket.connect() as market:
                print((await market.run(sum, [1, 2, 3], cap=1)).value)

        or `market = await AsyncMarket.connect()`, closed by `await market.close()`.

        Raises `Unavailable` naming the part that is not running, `Refused` for a key that can't be used, for parts of
        another protocol version, or for a broker and a node of two different chains (`chain.other`).
        """

        async def open_it() -> Self:
            found = load_requester_settings(**settings)
            market = cls(found, open_wallet(found, passphrase))
            try:
                await market.check()
            except BaseException:
                await market.close()
                raise
            return market

        return Opening(open_it)

    # ---- run ----

    async def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        wishes: Wishes | None = None,
        hooks: Hooks = NO_HOOKS,
        cap: str | float | None = None,
        **rest: Any,
    ) -> JobResult:
        """Run `function(*args, **kwargs)` on the market and return its result.

            done = await market.run(sum, [1, 2, 3], cap=1)
            print(done.value, done.credits)

        Names of `Wishes` among the keyword arguments are wishes: cap, memory, wall, acceptance, within, auction, cores,
        output, packages, level, seed, title, python, parallelism, tolerance; `Market.run` says what each is. All others
        go to the function; one that needs such a name gets it by `functools.partial`.

        Raises `NoBid`, `JobFailed`, `CheckFailed`, `JobEnded`, `Refused`, `Unavailable`.
        """
        wanted, kwargs = split_wishes(wishes, {"cap": cap, **rest})
        found: JobResult = await self.buy(make_call(function, args, kwargs), wanted, hooks)
        return found

    async def run_script(
        self, path: str | Path, args: Sequence[Any] = (), *, hooks: Hooks = NO_HOOKS, **wishes: Any
    ) -> JobResult:
        """Run a script; its result is the global `result` that it leaves. It finds `args` as a global and, as texts,
        in `sys.argv`; keyword arguments that are no wishes are in its global dict `inputs`. Raises as `run`.
        """
        wanted, inputs = split_wishes(None, wishes)
        if Path(path).is_dir():
            raise Refused(f"{path} is a folder; use run_folder", rule="script.file")
        work = make_run(pack_source(Path(path)), args, inputs)
        found: JobResult = await self.buy(work, wanted, hooks)
        return found

    async def run_folder(
        self, path: str | Path, args: Sequence[Any] = (), *, hooks: Hooks = NO_HOOKS, **wishes: Any
    ) -> JobResult:
        """Run the script `main.py` of a folder that travels as a whole, as `run_script` does. If it makes a
        folder `/job/outputs`, the files in it come back as `files` of the result. Raises as `run`.
        """
        wanted, inputs = split_wishes(None, wishes)
        if not Path(path).is_dir():
            raise Refused(f"{path} is no folder", rule="folder.file")
        work = make_run(pack_source(Path(path)), args, inputs)
        found: JobResult = await self.buy(work, wanted, hooks)
        return found

    # ---- map and train ----

    async def map(
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
        """Call `function(item)` for each item, divided among several providers; values come in the order of the items.

            done = await market.map(abs, [-1, 2, -3], cap=1)
            print(done.values)

        `function` may be `"FILE.py:function"` or `"FOLDER:function"`. Each item is a segment of its own: it is paid
        once it is done, and shares nothing with others. `parallelism` (default 4) is how many providers work at a
        time. With at most `tolerance` failed items (default 0) the others are done all the same: the result has None in
        the places of the failed ones and their errors in `failed`. With more of them, what lies behind a failed one is
        not offered again.

        Raises `JobFailed` where more than that have no value, unless `partial`; its `result` holds what came.
        `copy` gives arrays that can be written to. Otherwise as `run`.
        """
        work = make_calls(function, items)
        job = await self.sign(work, take_wishes(wishes, rest), hooks)
        found: MapResult = await self.result(job, hooks, partial=partial, copy=copy)
        return found

    async def train(
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
        """Call `state = step(state, index)` for index 0 .. steps - 1, each a segment that is paid once it is done.

            def halve(state, index):
                return state / 2

            done = await market.train(halve, 8.0, 3, cap=1)
            print(done.state, list(done.states))

        If a provider leaves, another one goes on from the last state. `step` may be `"FILE.py:function"` or
        `"FOLDER:function"`. `partial` and `copy` as in `map`. Raises as `map`.
        """
        work = make_steps(step, state, steps)
        job = await self.sign(work, take_wishes(wishes, rest), hooks)
        found: TrainResult = await self.result(job, hooks, partial=partial, copy=copy)
        return found

    # ---- submit ----

    async def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        wishes: Wishes | None = None,
        hooks: Hooks = NO_HOOKS,
        cap: str | float | None = None,
        **rest: Any,
    ) -> AsyncJobHandle[JobResult]:
        """As `run`, but returns at once: the order is signed and stored, and is sent and followed beside."""
        wanted, kwargs = split_wishes(wishes, {"cap": cap, **rest})
        return await self.start(make_call(function, args, kwargs), wanted, hooks)

    async def submit_source(
        self, path: str | Path, args: Sequence[Any] = (), *, hooks: Hooks = NO_HOOKS, **wishes: Any
    ) -> AsyncJobHandle[JobResult]:
        """As `run_script` or `run_folder`, but returns at once."""
        wanted, inputs = split_wishes(None, wishes)
        return await self.start(make_run(pack_source(Path(path)), args, inputs), wanted, hooks)

    async def submit_map(
        self,
        function: Callee,
        items: Iterable[Any],
        *,
        wishes: Wishes | None = None,
        hooks: Hooks = NO_HOOKS,
        **rest: Any,
    ) -> AsyncJobHandle[MapResult]:
        """As `map`, but returns at once; the handle's `results` gives values as they come."""
        return await self.start(make_calls(function, items), take_wishes(wishes, rest), hooks)

    async def submit_train(
        self,
        step: Callee,
        state: Any,
        steps: int,
        *,
        wishes: Wishes | None = None,
        hooks: Hooks = NO_HOOKS,
        **rest: Any,
    ) -> AsyncJobHandle[TrainResult]:
        """As `train`, but returns at once; the handle's `results` gives states as they come."""
        work = make_steps(step, state, steps)
        return await self.start(work, take_wishes(wishes, rest), hooks)

    async def buy(self, work: Work, wishes: Wishes, hooks: Hooks = NO_HOOKS) -> Any:
        """Sign, send, wait, check, accept."""
        return await self.result(await self.sign(work, wishes, hooks), hooks)

    async def start(self, work: Work, wishes: Wishes, hooks: Hooks = NO_HOOKS) -> AsyncJobHandle[Any]:
        """Sign, and follow beside."""
        handle: AsyncJobHandle[Any] = AsyncJobHandle(self, await self.sign(work, wishes, hooks), hooks)
        handle.follow()
        return handle

    def job(self, job: bytes | str) -> AsyncJobHandle[Any]:
        """The handle of a job (see `find`) of this or an earlier program."""
        return AsyncJobHandle(self, self.find(job).id)

    def jobs(self) -> list[AsyncJobHandle[Any]]:
        """Handles of all jobs, newest first."""
        return [AsyncJobHandle(self, row.id) for row in self.list_jobs()]

    # ---- estimate ----

    async def estimate(
        self,
        function: Callee,
        *args: Any,
        items: Iterable[Any] | None = None,
        state: Any = None,
        steps: int | None = None,
        wishes: Wishes | None = None,
        **rest: Any,
    ) -> Estimated:
        """What a job would meet on the market just now; nothing is signed, and no cap is needed.

            found = await market.estimate(abs, items=[-1, 2, -3], memory="256MiB", wall=10)
            print(found.matching, found.likely, found.advice)

        With `items` it is a `map`, with `steps` (and `state`) a `train`, else a `run` with `args`. Raises `Refused`,
        `Unavailable`.
        """
        wanted, kwargs = split_wishes(wishes, rest)
        work = make_any(function, args, kwargs, items=items, state=state, steps=steps)
        return await self.estimate_work(work, wanted)


def make_any(
    what: Callee,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    items: Iterable[Any] | None = None,
    state: Any = None,
    steps: int | None = None,
) -> Work:
    """A `map` where there are items, a `train` where there are steps, else a `run`."""
    if items is not None:
        return make_calls(what, items)
    if steps is not None:
        return make_steps(what, state, steps)
    return make_call(what, args, kwargs) if callable(what) else make_run(pack_source(Path(what)), args, kwargs)
